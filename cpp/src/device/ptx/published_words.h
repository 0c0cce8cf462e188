// Words in global memory by which blocks of a launch tell each other results. The memory is filled with
// kUnpublished before the launch; a word that is anything else is a result, and nothing else need be waited
// for or made visible: every word tells of itself alone. sm_70.
#pragma once

#include <cstdint>
#include <cstdio>

#include "device/ptx/mbarrier.h"

namespace epiconv::ptx {

inline constexpr int kUnpublishedByte = 0xFF;
inline constexpr std::uint32_t kUnpublished = 0xFFFFFFFF;

// The bits of a value, of which none are kUnpublished's: that would be a NaN, which has others too.
__device__ __forceinline__ std::uint32_t publishable(float value) {
  const std::uint32_t bits = __float_as_uint(value);
  return bits == kUnpublished ? 0x7FFFFFFF : bits;
}
__device__ __forceinline__ bool is_published(float value) { return __float_as_uint(value) != kUnpublished; }

// PTX ISA 9.7.9.11 "st" and 9.7.9.8 "ld", relaxed: of the whole card, each word for itself.
__device__ __forceinline__ void publish(float* to, float value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(publishable(value)) : "memory");
}
__device__ __forceinline__ void publish(float2* to, float x, float y) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(publishable(x)),
               "r"(publishable(y))
               : "memory");
}
__device__ __forceinline__ float load_published(const float* from) {
  float value;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ float2 load_published(const float2* from) {
  float2 value;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "l"(from)
               : "memory");
  return value;
}

// A counter beside them tells who comes last. It orders nothing. Returns what it was before. (9.7.13.5
// "atom")
__device__ __forceinline__ std::uint32_t count_up(std::uint32_t* counter) {
  std::uint32_t before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// A wait for what others publish, between two looks at it. Not to take other warps their turns to issue, it
// sleeps.
class PatientWait {
 public:
  __device__ __forceinline__ PatientWait([[maybe_unused]] const char* role, [[maybe_unused]] int index) {
    jitter();
#if defined(EPICONV_WATCHDOG)
    role_ = role;
    index_ = index;
    begin_ = clock64();
#endif
  }
  __device__ __forceinline__ void go_on(bool is_over) const {
    if (is_over) return;
#if defined(EPICONV_WATCHDOG)
    if (clock64() - begin_ > 4'000'000'000ll) {
      printf("watchdog: block %d warp %d lane %d waits for %s %d\n", static_cast<int>(blockIdx.x),
             static_cast<int>(threadIdx.x / 32), static_cast<int>(threadIdx.x % 32), role_, index_);
      __trap();
    }
#endif
    __nanosleep(20);
  }

#if defined(EPICONV_WATCHDOG)
 private:
  const char* role_;
  int index_;
  long long begin_;
#endif
};

}  // namespace epiconv::ptx
