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

}  // namespace epiconv::ptx
