// PTX ISA 9.7.13.15 "mbarrier": barriers in shared memory that threads and asynchronous copies arrive at.
// sm_90.
//
// Built with EPICONV_WATCHDOG, a wait that takes longer than about two seconds says which one it is and
// traps. Built with EPICONV_JITTER, threads sleep for random times before they wait, to shake out races.
#pragma once

#include <cstdint>
#if defined(EPICONV_WATCHDOG) && !defined(__CUDACC_RTC__)
#include <cstdio>
#endif

namespace epiconv::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers are given by their shared-memory address.
__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to asynchronous copies.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase wait for that many bytes of asynchronous copies besides.
__device__ __forceinline__ void mbarrier_arrive_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

#if defined(EPICONV_JITTER)
__device__ __forceinline__ void jitter() {
  std::uint32_t random = static_cast<std::uint32_t>(clock64()) * 2654435761u ^ (threadIdx.x / 32 * 40503u);
  random ^= random >> 13;
  if (random % 4 == 0) __nanosleep(random % 3000);
}
#else
__device__ __forceinline__ void jitter() {}
#endif

// Waits for the end of the phase of that parity. `role` names the waiting place in the watchdog's message.
__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity,
                                              [[maybe_unused]] const char* role,
                                              [[maybe_unused]] int index = 0) {
  jitter();
#if defined(EPICONV_WATCHDOG)
  const long long begin = clock64();
  while (!mbarrier_try_wait(barrier, parity)) {
    if (clock64() - begin < 4'000'000'000ll) continue;
    printf("watchdog: block %d warp %d lane %d waits for %s %d, parity %u\n", static_cast<int>(blockIdx.x),
           static_cast<int>(threadIdx.x / 32), static_cast<int>(threadIdx.x % 32), role, index, parity);
    __trap();
  }
#else
  // A loop that the compiler does not see: it would take what follows for divergent.
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra wait;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#endif
}

}  // namespace epiconv::ptx
