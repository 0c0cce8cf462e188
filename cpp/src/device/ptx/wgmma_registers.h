// PTX ISA 9.7.15 "wgmma": matrix products of a warpgroup whose first factor is in registers. sm_90a.
//
// A warp has 16 of the 64 rows: it holds a, 16 rows of 32 bytes, and d as mma_sync.h says of its a and of
// tiles of 8 columns of its d, one behind the other. Registers of a and d belong to the products until
// wgmma_wait says that they are done.
#pragma once

#include "device/ptx/wgmma.h"

namespace epiconv::ptx {

// wgmma_<type>_registers<kColumns>(d, a, b, accumulate): d (64 x kColumns) = a (64 x 32 bytes) * b (kColumns
// x 32 bytes)^T, b by its descriptor, added to d if `accumulate`.
#define EPICONV_WGMMA_REGISTERS_OF(kColumns, kShape, kSigns, kA, kB, kAccumulate)                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " kAccumulate                                        \
               ", 0;\n"                                                                               \
               "wgmma.mma_async.sync.aligned.m64n" #kColumns kShape " {" EPICONV_REGISTERS_##kColumns \
               "}, {" kA "}, " kB ", p, " kSigns ";\n}"                                               \
               : EPICONV_ACCUMULATORS_##kColumns                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
#define EPICONV_WGMMA_REGISTERS(kType, kShape, kSigns)                                          \
  template <int kColumns>                                                                       \
  __device__ __forceinline__ void wgmma_##kType##_registers(                                    \
      float (&d)[kColumns / 2], const std::uint32_t (&a)[4], std::uint64_t b, int accumulate) { \
    constexpr int kFirst = 0;                                                                   \
    static_assert(kColumns % 32 == 0 && kColumns <= 160);                                       \
    if constexpr (kColumns == 160) {                                                            \
      EPICONV_WGMMA_REGISTERS_OF(160, kShape, kSigns, "%80, %81, %82, %83", "%84", "%85");      \
    } else if constexpr (kColumns == 128) {                                                     \
      EPICONV_WGMMA_REGISTERS_OF(128, kShape, kSigns, "%64, %65, %66, %67", "%68", "%69");      \
    } else if constexpr (kColumns == 96) {                                                      \
      EPICONV_WGMMA_REGISTERS_OF(96, kShape, kSigns, "%48, %49, %50, %51", "%52", "%53");       \
    } else if constexpr (kColumns == 64) {                                                      \
      EPICONV_WGMMA_REGISTERS_OF(64, kShape, kSigns, "%32, %33, %34, %35", "%36", "%37");       \
    } else {                                                                                    \
      EPICONV_WGMMA_REGISTERS_OF(32, kShape, kSigns, "%16, %17, %18, %19", "%20", "%21");       \
    }                                                                                           \
  }
EPICONV_WGMMA_REGISTERS(tf32, "k8.f32.tf32.tf32", "1, 1")
EPICONV_WGMMA_REGISTERS(bf16, "k16.f32.bf16.bf16", "1, 1, 0")
EPICONV_WGMMA_REGISTERS(fp16, "k16.f32.f16.f16", "1, 1, 0")
#undef EPICONV_WGMMA_REGISTERS
#undef EPICONV_WGMMA_REGISTERS_OF

}  // namespace epiconv::ptx
