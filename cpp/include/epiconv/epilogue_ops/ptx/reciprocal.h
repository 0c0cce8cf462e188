// PTX ISA 9.7.3.13 "rcp" with .approx.ftz: the reciprocal within 1 ulp, of normal numbers with a normal
// result. One instruction; CUDA C++ has only the correctly rounded one, which branches for the other numbers.
#pragma once

namespace epiconv::ptx {

__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace epiconv::ptx
