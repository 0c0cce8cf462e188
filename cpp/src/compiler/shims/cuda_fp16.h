// <cuda_fp16.h> for the run-time compiler, which does not find CUDA's: numbers and roundings that kernels
// use.
#pragma once

#include "device/ptx/convert_half.h"

struct __align__(2) __half {
  unsigned short bits;
  __device__ __forceinline__ operator float() const { return epiconv::ptx::float_of_half(bits); }
};
struct __align__(4) __half2 {
  unsigned int bits;
};
__device__ __forceinline__ __half __float2half_rn(float value) { return {epiconv::ptx::half_of(value)}; }
__device__ __forceinline__ __half2 __floats2half2_rn(float low, float high) {
  return {epiconv::ptx::halves_of(low, high)};
}
