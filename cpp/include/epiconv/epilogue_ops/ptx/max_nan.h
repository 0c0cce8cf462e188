// PTX ISA 9.7.3 "max", "min" with .NaN: the larger (smaller) of two, NaN if either is NaN, +0.0 larger than
// -0.0. One instruction on sm_80 and newer; CUDA C++ has no name for it.
#pragma once

namespace epiconv::ptx {

__device__ __forceinline__ float max_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

__device__ __forceinline__ float min_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

}  // namespace epiconv::ptx
