// PTX ISA 9.7.9.22 "cvt": roundings that CUDA C++ does not offer.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// To TF32, nearest even, as a float whose low bits are zero. sm_90.
__device__ __forceinline__ std::uint32_t round_to_tf32(float value) {
  std::uint32_t rounded;
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

// The same on any card from sm_80 on; before sm_90, which takes one instruction instead of three, ties go
// away from zero.
__device__ __forceinline__ std::uint32_t round_to_nearest_tf32(float value) {
  std::uint32_t rounded;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
#endif
  return rounded;
}

}  // namespace epiconv::ptx
