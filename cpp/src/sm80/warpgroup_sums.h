// Sums of a warpgroup's products, for kernels compiled for one plan on compute capability 9.0.
#pragma once

#include "device/ptx/wgmma_registers.h"
#include "sm80/math.h"

namespace epiconv::sm80 {

// d (64 x kColumns) = a (64 x 32 bytes), in registers, * b (kColumns x 32 bytes)^T, by its descriptor.
template <typename Math, int kColumns>
__device__ __forceinline__ void multiply_rows(float (&d)[kColumns / 2], const std::uint32_t (&a)[4],
                                              std::uint64_t b, bool accumulate) {
  if constexpr (std::is_same_v<Math, Tf32>) {
    ptx::wgmma_tf32_registers<kColumns>(d, a, b, accumulate);
  } else if constexpr (std::is_same_v<Math, Bf16>) {
    ptx::wgmma_bf16_registers<kColumns>(d, a, b, accumulate);
  } else {
    ptx::wgmma_fp16_registers<kColumns>(d, a, b, accumulate);
  }
}

// kRowTiles times (64 rows, kColumns columns): a thread's of each.
template <int kTheRowTiles, int kTheColumns>
struct WarpgroupSums {
  static constexpr int kRowTiles = kTheRowTiles;
  static constexpr int kColumns = kTheColumns;
  static constexpr int kCount = kRowTiles * kColumns / 2;

  float sums[kRowTiles][kColumns / 2];

  __device__ __forceinline__ void clear() {
    visit([](float& sum, int) { sum = 0.0f; });
  }
  // Calls visitor(sum, number) with each of the thread's.
  template <typename Visitor>
  __device__ __forceinline__ void visit(Visitor&& visitor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) visitor(sums[i / (kColumns / 2)][i % (kColumns / 2)], i);
  }
};

}  // namespace epiconv::sm80
