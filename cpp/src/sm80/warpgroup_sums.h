// Sums of a warpgroup's products, for kernels compiled for one plan on compute capability 9.0.
#pragma once

namespace epiconv::sm80 {

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
