// <cuda_bf16.h> for the run-time compiler, which does not find CUDA's: numbers and roundings that kernels
// use.
#pragma once

#include "device/ptx/convert_half.h"

struct __align__(2) __nv_bfloat16 {
  unsigned short bits;
  __device__ __forceinline__ operator float() const { return __uint_as_float(bits << 16); }
};
struct __align__(4) __nv_bfloat162 {
  unsigned int bits;
};
__device__ __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {epiconv::ptx::bfloat16_of(value)};
}
__device__ __forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {epiconv::ptx::bfloat16s_of(low, high)};
}
