// PTX ISA 9.7.15 "wgmma": matrix products of a warpgroup with both factors in shared memory. sm_90a.
#pragma once

#include <cstdint>

#include "device/ptx/accumulators.h"

namespace epiconv::ptx {

// Before the first product of a batch: orders it behind earlier uses of the accumulators' registers.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most the youngest kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Describes a factor whose rows (of K) have row_bytes = 32, 64 or 128 bytes, swizzled by as many, and lie
// one behind the other. The first row may be any. (9.7.15.5.1 "Matrix descriptor format")
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t address, std::uint32_t row_bytes) {
  const std::uint64_t swizzle = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
  const std::uint32_t eight_rows = 8 * row_bytes;
  return (swizzle << 62) | (static_cast<std::uint64_t>(eight_rows >> 4) << 32) | (std::uint64_t{1} << 16) |
         ((address & 0x3FFFF) >> 4);
}

// wgmma_<type><kColumns, kFirst>(d, a, b, accumulate): d (64 x kColumns), which begins with the thread's
// d[kFirst], = a (64 x 32 bytes) * b (kColumns x 32 bytes)^T, added to d if `accumulate`.
#define EPICONV_WGMMA_OF(kColumns, kShape, kSigns, kA, kB, kAccumulate)                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " kAccumulate                                              \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #kColumns kShape " {" EPICONV_REGISTERS_##kColumns \
               "}, " kA ", " kB ", p, " kSigns ";\n}"                                                       \
               : EPICONV_ACCUMULATORS_##kColumns                                                            \
               : "l"(a), "l"(b), "r"(accumulate))
#define EPICONV_WGMMA(kType, kShape, kSigns)                                                          \
  template <int kColumns, int kFirst, int kCount>                                                     \
  __device__ __forceinline__ void wgmma_##kType(float (&d)[kCount], std::uint64_t a, std::uint64_t b, \
                                                int accumulate) {                                     \
    static_assert(kFirst + kColumns / 2 <= kCount);                                                   \
    static_assert(kColumns % 32 == 0 && kColumns <= 256);                                             \
    if constexpr (kColumns == 256) {                                                                  \
      EPICONV_WGMMA_OF(256, kShape, kSigns, "%128", "%129", "%130");                                  \
    } else if constexpr (kColumns == 224) {                                                           \
      EPICONV_WGMMA_OF(224, kShape, kSigns, "%112", "%113", "%114");                                  \
    } else if constexpr (kColumns == 192) {                                                           \
      EPICONV_WGMMA_OF(192, kShape, kSigns, "%96", "%97", "%98");                                     \
    } else if constexpr (kColumns == 160) {                                                           \
      EPICONV_WGMMA_OF(160, kShape, kSigns, "%80", "%81", "%82");                                     \
    } else if constexpr (kColumns == 128) {                                                           \
      EPICONV_WGMMA_OF(128, kShape, kSigns, "%64", "%65", "%66");                                     \
    } else if constexpr (kColumns == 96) {                                                            \
      EPICONV_WGMMA_OF(96, kShape, kSigns, "%48", "%49", "%50");                                      \
    } else if constexpr (kColumns == 64) {                                                            \
      EPICONV_WGMMA_OF(64, kShape, kSigns, "%32", "%33", "%34");                                      \
    } else {                                                                                          \
      EPICONV_WGMMA_OF(32, kShape, kSigns, "%16", "%17", "%18");                                      \
    }                                                                                                 \
  }
EPICONV_WGMMA(tf32, "k8.f32.tf32.tf32", "1, 1")
EPICONV_WGMMA(bf16, "k16.f32.bf16.bf16", "1, 1, 0, 0")
EPICONV_WGMMA(fp16, "k16.f32.f16.f16", "1, 1, 0, 0")
#undef EPICONV_WGMMA
#undef EPICONV_WGMMA_OF

// Registers of this warpgroup's threads from here on. (9.7.20.5 "setmaxnreg")
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace epiconv::ptx
