// Order among threads and between ordinary and asynchronous accesses to shared memory. sm_90.
#pragma once

namespace epiconv::ptx {

// PTX ISA 9.7.13.4 "fence.proxy.async": this thread's writes to shared memory come before what the tensor
// cores and the copy engine read behind the next barrier.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// PTX ISA 9.7.13.1 "barrier": waits for kThreads threads of the block; barrier 0 is __syncthreads'.
template <int kBarrier, int kThreads>
__device__ __forceinline__ void named_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

// The same of a barrier that is not known to the compiler.
template <int kThreads>
__device__ __forceinline__ void named_barrier(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// The same, and whether any of the threads says so.
template <int kBarrier, int kThreads>
__device__ __forceinline__ bool named_barrier_any(bool says) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.s32 p, %1, 0;\n"
      "barrier.cta.red.or.pred p, %2, %3, p;\n"
      "selp.s32 %0, 1, 0, p;\n"
      "}"
      : "=r"(any)
      : "r"(says ? 1 : 0), "n"(kBarrier), "n"(kThreads)
      : "memory");
  return any != 0;
}

}  // namespace epiconv::ptx
