// PTX ISA 9.7.9.25 "cp.async": copies from global to shared memory that threads need not wait for. sm_80 and
// newer.
#pragma once

namespace epiconv::ptx {

// 16 bytes, both addresses aligned to 16; past the L1 cache.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// kBytes, 4 or 16, both addresses aligned to them, through the L1 cache; zeros instead where `exists` is
// false. The shared address is of that window.
template <int kBytes>
__device__ __forceinline__ void cp_async_or_zeros(unsigned shared, const void* global, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(kBytes),
               "r"(exists ? kBytes : 0)
               : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the youngest kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace epiconv::ptx
