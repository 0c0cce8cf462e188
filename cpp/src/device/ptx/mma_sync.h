// PTX ISA 9.7.14.5 "mma": a warp multiplies matrices in its registers, d += a b, in float32. sm_80.
//
// a is 16 x 8 (TF32) or 16 x 16 (16 bits), b is 8 or 16 x 8. Lane l holds, of 4 bytes each: of a rows l / 4
// and l / 4 + 8 at l % 4, then the same behind the middle of the row; of b column l / 4 at l % 4, and behind
// the middle; of d rows l / 4 and l / 4 + 8, columns 2 * (l % 4) and the next. So ldmatrix loads a and b
// alike.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

#define EPICONV_MMA(name, shape_and_types)                                                                   \
  __device__ __forceinline__ void name(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t* b) { \
    asm("mma.sync.aligned." shape_and_types                                                                  \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                   \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                     \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                 \
  }
EPICONV_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
EPICONV_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
EPICONV_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
#undef EPICONV_MMA

}  // namespace epiconv::ptx
