// PTX ISA 9.7.9.25.4 "cp.async.bulk", 9.7.9.26 "cp.async.bulk.tensor": copies to shared memory by the copy
// engine, which completes them on an mbarrier. sm_90.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// Addresses and bytes are multiples of 16.
__device__ __forceinline__ void bulk_copy(std::uint32_t shared, const void* global, std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// One box of a tensor of four dimensions; `map` is a CUtensorMap in parameter or global memory.
__device__ __forceinline__ void tensor_copy(std::uint32_t shared, const void* map, int c, int w, int h, int n,
                                            std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(barrier)
      : "memory");
}

}  // namespace epiconv::ptx
