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

// Pixels of a tensor (C, W, N), (C, W, H, N) or (C, W, H, D, N) that follow each other in the box of the map,
// which is one of im2col, from `at` on, each moved by `offset`: as many, and of as many channels, as the map
// says. Spatial dimensions come first to last in `at` and `offset`: d, h, w.
template <int kRank>
__device__ __forceinline__ void im2col_copy(std::uint32_t shared, const void* map, int channel, int n,
                                            const int (&at)[3], const int (&offset)[3],
                                            std::uint32_t barrier) {
  static_assert(kRank >= 3 && kRank <= 5);
  const auto w = static_cast<std::uint16_t>(offset[2]), h = static_cast<std::uint16_t>(offset[1]),
             d = static_cast<std::uint16_t>(offset[0]);
  if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5], {%6};" ::"r"(shared),
        "l"(map), "r"(channel), "r"(at[2]), "r"(n), "r"(barrier), "h"(w)
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(shared),
        "l"(map), "r"(channel), "r"(at[2]), "r"(at[1]), "r"(n), "r"(barrier), "h"(w), "h"(h)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5, %6}], [%7], {%8, %9, %10};" ::"r"(shared),
        "l"(map), "r"(channel), "r"(at[2]), "r"(at[1]), "r"(at[0]), "r"(n), "r"(barrier), "h"(w), "h"(h),
        "h"(d)
        : "memory");
  }
}

// Brings a map, which is a parameter of the kernel, to where the copy engine looks for it.
__device__ __forceinline__ void prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Stores one box of a tensor of four dimensions; what lies outside of the tensor is left out.
__device__ __forceinline__ void tensor_store(const void* map, std::uint32_t shared, int c, int w, int h,
                                             int n) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(shared), "r"(c), "r"(w), "r"(h), "r"(n)
      : "memory");
}
// The same of two dimensions, both ways.
__device__ __forceinline__ void tensor_copy(std::uint32_t shared, const void* map, int x, int y,
                                            std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void tensor_store(const void* map, std::uint32_t shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y)
               : "memory");
}
// The same of three dimensions.
__device__ __forceinline__ void tensor_copy(std::uint32_t shared, const void* map, int x, int y, int z,
                                            std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void tensor_store(const void* map, std::uint32_t shared, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y), "r"(z)
               : "memory");
}
// The same of five dimensions.
__device__ __forceinline__ void tensor_copy(std::uint32_t shared, const void* map, int x0, int x1, int x2,
                                            int x3, int x4, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(shared),
      "l"(map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void tensor_store(const void* map, std::uint32_t shared, int x0, int x1, int x2,
                                             int x3, int x4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
      "r"(shared), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "memory");
}
// Ends a group of this thread's stores, which may be empty.
__device__ __forceinline__ void bulk_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until this thread's stores but for the youngest kPending groups have been read from shared memory.
template <int kPending = 0>
__device__ __forceinline__ void bulk_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace epiconv::ptx
