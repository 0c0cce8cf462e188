// PTX ISA 9.7.9.8 "ld": loads from global memory that are left out, without a branch, where they are not
// wanted; zero then. They stay where they are, so that what is loaded ahead of its use is.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// Of kBytes, 2 or 4.
template <int kBytes>
__device__ __forceinline__ std::uint32_t load_if(bool wanted, const void* from) {
  std::uint32_t value;
  if constexpr (kBytes == 4) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, 0; @p ld.global.b32 %0, [%1]; }"
                 : "=r"(value)
                 : "l"(from), "r"(static_cast<int>(wanted)));
  } else {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, 0; @p ld.global.u16 %0, [%1]; }"
                 : "=r"(value)
                 : "l"(from), "r"(static_cast<int>(wanted)));
  }
  return value;
}

// Of 16 aligned bytes.
__device__ __forceinline__ void load_if(bool wanted, const void* from, std::uint32_t* values) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
      "@p ld.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
      : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
      : "l"(from), "r"(static_cast<int>(wanted)));
}

}  // namespace epiconv::ptx
