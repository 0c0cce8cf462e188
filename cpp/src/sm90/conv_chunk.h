// The chunk of a convolution's epilogue: what a lane holds of two filters, a word of positions each. What the
// evaluators of device/evaluators.h run on.
#pragma once

#include "device/evaluators.h"
#include "sm90/conv_parameters.h"
#include "sm90/stored_pairs.h"

namespace epiconv {

namespace sm90 {

// kTheWord positions of each filter: 8 are all that a piece has. `kTheOnlyOfFilters`: all operands have one
// element for each filter. kThePhases: of columns, 1 only where there are no phases of rows either.
template <int kTheWord, bool kTheOnlyOfFilters, int kThePhases = 1>
struct ConvShape {
  static constexpr int kPhases = kThePhases;
  static constexpr bool kOnlyOfFilters = kTheOnlyOfFilters;
  using T = float;
  using Index = std::int32_t;
  using Parameters = EpilogueParameters;
  static constexpr int kWord = kTheWord;
  static constexpr int kWords = 2;
  static constexpr int kCount = kWord * kWords;
};

// What a warpgroup knows of its tile. In shared memory:
struct TileTables {
  const HaloGeometry& g;
  const Tile& tile;
  std::int32_t image;      // n of the first position
  std::int32_t row_phase;  // of phases and joint rows
  // Where the positions lie in the output, from `begin` on, in elements; -1 for what is dropped.
  const std::int32_t* offsets;
  // Of the operands that have one element for each filter: [place][kGroupFilters].
  const float* of_filters;
  const PairTable* pairs;  // of StoreKind::kSectors

  // The output row that offsets count from.
  __device__ __forceinline__ std::int32_t first_row() const {
    return (g.stacked ? 0 : tile.first_row) * g.output_rows() + row_phase;
  }
  // Of filter 0 in the tensor, which is laid out like the output.
  __device__ __forceinline__ std::int64_t begin(const PixelTensor& tensor) const {
    return static_cast<std::int64_t>(image) * tensor.strides[0] +
           static_cast<std::int64_t>(first_row()) * tensor.strides[2];
  }
};

// Tiles with the same pattern have the same offsets; -1 is a pattern of its own each time.
__device__ __forceinline__ std::int32_t offset_pattern(const HaloGeometry& g, const Tile& tile) {
  const bool is_whole = !g.stacked && (tile.first_row + g.run_rows) * g.output_rows() <= g.out_height;
  return is_whole ? tile.strip * kTilePixels + tile.offset : -1;
}

}  // namespace sm90

// Word h holds filter + 8 * h at the positions piece_position(quad, i) from a place in a piece on.
template <int kTheWord, bool kOnlyOfFilters, int kPhases>
struct Chunk<sm90::ConvShape<kTheWord, kOnlyOfFilters, kPhases>> {
  static constexpr int kWord = kTheWord;
  static constexpr int kWords = 2;
  using Tensor = sm90::PixelTensor;
  using Values = float[kWord * kWords];

  const sm90::EpilogueParameters& pass;
  const sm90::TileTables& tables;
  std::int32_t filter;    // the first, of the warpgroup's
  std::int32_t group;     // the warpgroup's first filter
  std::int32_t position;  // of the lane's first value
  // With operands of filters only: what load_ones gives for each of them.
  const float (*ones)[kWords];

  __device__ __forceinline__ static std::int64_t product(std::int32_t a, std::int32_t b) {
    return static_cast<std::int64_t>(a) * b;
  }

  // Whether the tensor, an operand, has one element for all positions of a filter.
  __device__ __forceinline__ bool load_ones(const Tensor& tensor, float (&to)[kWords]) const {
    if (!kOnlyOfFilters && tensor.pattern != Pattern::kOne) return false;
    if constexpr (kOnlyOfFilters) {
#pragma unroll
      for (int h = 0; h < kWords; ++h) to[h] = ones[&tensor - pass.operands][h];
      return true;
    }
    const float* const row = tables.of_filters + (&tensor - pass.operands) * sm90::kGroupFilters + filter;
#pragma unroll
    for (int h = 0; h < kWords; ++h) to[h] = row[8 * h];
    return true;
  }

  __device__ __forceinline__ void load(const Tensor& tensor, Values& values) const {
    float of_filters[kWords];
    if (load_ones(tensor, of_filters)) {
#pragma unroll
      for (int i = 0; i < kWord * kWords; ++i) values[i] = of_filters[i / kWord];
      return;
    }
    std::int64_t first[kWords];
#pragma unroll
    for (int h = 0; h < kWords; ++h) {
      // The last filter stands for those behind it.
      first[h] = product(min(group + filter + 8 * h, tables.g.filters - 1), tensor.strides[1]);
    }
    if (tensor.pattern == Pattern::kLinear) {
      const std::int64_t begin = tables.begin(tensor);
      load_positions(tensor, first, values, [&](int at) {
        const std::int32_t offset = tables.offsets[at];
        return begin + (offset < 0 ? 0 : offset);
      });
    } else {
      load_positions(tensor, first, values, [&](int at) {
        const sm90::Pixel pixel = sm90::Pixel::of(tables.g, tables.tile, tables.row_phase, at);
        if (!pixel.valid) return std::int64_t{0};
        return product(pixel.n, tensor.strides[0]) + product(pixel.p, tensor.strides[2]) +
               product(pixel.q, tensor.strides[3]);
      });
    }
  }

 private:
  // offset(position) is the pixel's, in elements.
  template <typename Offset>
  __device__ __forceinline__ void load_positions(const Tensor& tensor, const std::int64_t (&first)[kWords],
                                                 Values& values, Offset&& offset) const {
    std::int64_t offsets[kWord];
#pragma unroll
    for (int i = 0; i < kWord; ++i) offsets[i] = offset(position + sm90::piece_position<kPhases>(0, i));
    const auto load_all = [&](const auto& load_one) {
#pragma unroll
      for (int h = 0; h < kWords; ++h) {
#pragma unroll
        for (int i = 0; i < kWord; ++i) values[h * kWord + i] = load_one(first[h] + offsets[i]);
      }
    };
    if (is_floating(tensor.dtype)) {
      visit_floating<float>(tensor.dtype, [&]<typename Stored>() {
        load_all(
            [&](std::int64_t at) { return from_stored<float>(static_cast<const Stored*>(tensor.data)[at]); });
      });
    } else {
      load_all([&](std::int64_t at) { return load_element<float>(tensor.data, tensor.dtype, at); });
    }
  }
};

}  // namespace epiconv
