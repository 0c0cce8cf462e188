// PTX ISA 9.7.14.5.15 "ldmatrix": a warp loads 8 x 8 matrices of 16-bit elements. sm_75.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// Four matrices. Lane 8 * m + r gives the shared-memory address of matrix m's row r, 16 bytes; register m of
// each lane receives matrix m's elements (2 * (lane % 4), lane / 4) and that of the next row.
__device__ __forceinline__ void ldmatrix_4_transposed(std::uint32_t address, std::uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// The same, not transposed: register m of each lane receives the 4 bytes at l % 4 of row l / 4 of matrix m.
__device__ __forceinline__ void ldmatrix_4(std::uint32_t address, std::uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

}  // namespace epiconv::ptx
