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

}  // namespace epiconv::ptx
