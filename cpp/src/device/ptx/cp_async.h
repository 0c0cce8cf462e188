// PTX ISA 9.7.9.25 "cp.async": copies from global to shared memory that threads need not wait for. sm_80 and
// newer.
#pragma once

namespace epiconv::ptx {

// 16 bytes, both addresses aligned to 16, the shared one of that window; past the L1 cache.
__device__ __forceinline__ void cp_async_16(unsigned shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// The same, kDistance bytes behind both addresses.
template <int kDistance>
__device__ __forceinline__ void cp_async_16_at(unsigned shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(shared), "l"(global),
               "n"(kDistance)
               : "memory");
}

__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  cp_async_16(static_cast<unsigned>(__cvta_generic_to_shared(shared)), global);
}

// The same through the L1 cache; zeros instead where `exists` is false.
__device__ __forceinline__ void cp_async_16_or_zeros(unsigned shared, const void* global, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the youngest kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Of all copies of the thread.
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace epiconv::ptx
