// Loads from shared memory by its address.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// PTX ISA 9.7.9.8 "ld"; `from` is aligned to 16 bytes.
__device__ __forceinline__ uint4 load_shared(std::uint32_t from) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

// Two; aligned to 8 bytes.
__device__ __forceinline__ int2 load_shared_2(std::uint32_t from) {
  int2 value;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(from) : "memory");
  return value;
}

// What has 2, 4, 8 or 16 bytes, and is aligned to as many.
template <typename T>
__device__ __forceinline__ T load_shared_as(std::uint32_t from) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 2) {
    std::uint16_t value;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
    return __builtin_bit_cast(T, value);
  } else if constexpr (sizeof(T) == 4) {
    std::uint32_t value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
    return __builtin_bit_cast(T, value);
  } else if constexpr (sizeof(T) == 8) {
    return __builtin_bit_cast(T, load_shared_2(from));
  } else {
    return __builtin_bit_cast(T, load_shared(from));
  }
}

}  // namespace epiconv::ptx
