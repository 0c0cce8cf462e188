// PTX ISA 9.7.14.5.16 "stmatrix": a warp stores 8 x 8 matrices of 16-bit elements. sm_90.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// Four matrices. Lane 8 * m + r gives the shared-memory address of matrix m's row r, 16 bytes; register m of
// each lane holds matrix m's elements (lane / 4, 2 * (lane % 4)) and the next. `transposed`: the matrices'
// columns are stored as rows.
__device__ __forceinline__ void stmatrix_4(std::uint32_t address, const std::uint32_t (&matrices)[4],
                                           bool transposed) {
  if (transposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
  }
}

}  // namespace epiconv::ptx
