// PTX ISA 9.7.9.22 "cvt": roundings that CUDA C++ does not offer. sm_90.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// To TF32, nearest even, as a float whose low bits are zero.
__device__ __forceinline__ std::uint32_t round_to_tf32(float value) {
  std::uint32_t rounded;
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

}  // namespace epiconv::ptx
