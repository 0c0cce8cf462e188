// Counters in global memory, by which blocks of a launch tell each other that what they wrote can be read.
// sm_70.
#pragma once

#include <cstdint>
#include <cstdio>

#include "device/ptx/mbarrier.h"

namespace epiconv::ptx {

// PTX ISA 9.7.13.9 "red": what this thread wrote, or has seen others write, comes before the sum.
__device__ __forceinline__ void release_add(std::uint32_t* counter, std::uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* counter) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// Waits until the counter has reached `count`, behind which this thread reads what was released with it. The
// block that counts must be running. `role` as in mbarrier_wait.
__device__ __forceinline__ void wait_for_count(const std::uint32_t* counter, std::uint32_t count,
                                               [[maybe_unused]] const char* role,
                                               [[maybe_unused]] int index = 0) {
  jitter();
#if defined(EPICONV_WATCHDOG)
  const long long begin = clock64();
  while (load_acquire(counter) < count) {
    if (clock64() - begin < 4'000'000'000ll) continue;
    printf("watchdog: block %d warp %d lane %d waits for %s %d to reach %u\n", static_cast<int>(blockIdx.x),
           static_cast<int>(threadIdx.x / 32), static_cast<int>(threadIdx.x % 32), role, index, count);
    __trap();
  }
#else
  // A loop that the compiler does not see: it would take what follows for divergent. It sleeps, not to take
  // the tensor cores' warps their turns to issue.
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .u32 seen;\n"
      "wait:\n"
      "ld.acquire.gpu.global.u32 seen, [%0];\n"
      "setp.lo.u32 p, seen, %1;\n"
      "@p nanosleep.u32 200;\n"
      "@p bra wait;\n"
      "}" ::"l"(counter),
      "r"(count)
      : "memory");
#endif
}

}  // namespace epiconv::ptx
