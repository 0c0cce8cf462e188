// Stores to shared memory by its address. PTX ISA 9.7.9.11 "st".
#pragma once

#include <cstdint>

namespace epiconv::ptx {

__device__ __forceinline__ void store_shared(std::uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

}  // namespace epiconv::ptx
