// Stores to shared memory by its address. PTX ISA 9.7.9.11 "st".
#pragma once

#include <cstdint>

namespace epiconv::ptx {

__device__ __forceinline__ void store_shared(std::uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

// Two side by side, aligned to 8 bytes.
__device__ __forceinline__ void store_shared(std::uint32_t address, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(first), "f"(second) : "memory");
}

__device__ __forceinline__ void store_shared(std::uint32_t address, std::uint32_t first,
                                             std::uint32_t second) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(first), "r"(second) : "memory");
}

// Four side by side, aligned to 16 bytes.
__device__ __forceinline__ void store_shared(std::uint32_t address, std::uint32_t first, std::uint32_t second,
                                             std::uint32_t third, std::uint32_t fourth) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(first), "r"(second), "r"(third),
               "r"(fourth)
               : "memory");
}

// What has 2, 4, 8 or 16 bytes, and is aligned to as many.
template <typename T>
__device__ __forceinline__ void store_shared_as(std::uint32_t address, const T& value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 2) {
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(__builtin_bit_cast(std::uint16_t, value))
                 : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(__builtin_bit_cast(std::uint32_t, value))
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    const auto two = __builtin_bit_cast(uint2, value);
    store_shared(address, two.x, two.y);
  } else {
    const auto four = __builtin_bit_cast(uint4, value);
    store_shared(address, four.x, four.y, four.z, four.w);
  }
}

}  // namespace epiconv::ptx
