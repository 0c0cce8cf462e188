// PTX ISA 9.7.9.25.4 "cp.async.bulk", 9.7.9.26 "cp.async.bulk.tensor": copies by the copy engine, which
// completes those to shared memory on an mbarrier and those from shared memory as groups of a thread. sm_90.
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
__device__ __forceinline__ void tensor_copy(std::uint32_t shared, const void* map, int x0, int x1, int x2,
                                            int x3, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(barrier)
      : "memory");
}

// Stores one box of a tensor of four dimensions; what lies outside of the tensor is left out.
__device__ __forceinline__ void tensor_store(const void* map, std::uint32_t shared, int c, int w, int h,
                                             int n) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(shared), "r"(c), "r"(w), "r"(h), "r"(n)
      : "memory");
}
// Ends a group of this thread's stores, which may be empty.
__device__ __forceinline__ void bulk_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until this thread's stores have been read from shared memory.
__device__ __forceinline__ void bulk_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace epiconv::ptx
