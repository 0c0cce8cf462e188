// Special functions as the hardware has them, denormal numbers taken for 0. sm_75.
#pragma once

namespace epiconv::ptx {

// PTX ISA 9.7.3.21 "ex2": 2^x with a relative error of 2^-22.
__device__ __forceinline__ float quick_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// PTX ISA 9.7.3.22 "tanh": with a relative error of 2^-11.
__device__ __forceinline__ float quick_tanh(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace epiconv::ptx
