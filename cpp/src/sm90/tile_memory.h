// What a consumer warpgroup keeps of its tile in shared memory: where the positions lie in the output, and
// the operands that have one element for each filter.
#pragma once

#include "sm90/conv_chunk.h"
#include "sm90/stored_pairs.h"

namespace epiconv::sm90 {

// A warpgroup's tables; `thread` is of the warpgroup.
struct TileMemory {
  float* of_filters;
  PairTable* pairs;
  float2* statistics;     // of each row of M: mean, and squared distances from it
  float* counts;          // of each warp: positions
  std::int32_t* offsets;  // of each of the joint rows

  __device__ __forceinline__ static TileMemory at(std::uint8_t* memory) {
    std::uint8_t* const pairs = memory + kOfFiltersBytes;
    std::uint8_t* const statistics = pairs + kPairTableBytes;
    std::uint8_t* const counts = statistics + kGroupFilters * sizeof(float2);
    return {reinterpret_cast<float*>(memory), reinterpret_cast<PairTable*>(pairs),
            reinterpret_cast<float2*>(statistics), reinterpret_cast<float*>(counts),
            reinterpret_cast<std::int32_t*>(statistics + kNormBytes)};
  }

  // What a warp sees of joint row `joint`.
  __device__ __forceinline__ TileTables tables(const HaloGeometry& g, const Tile& tile,
                                               std::int32_t row_phase, std::int32_t joint) const {
    return {g, tile, tile.image(g), row_phase + joint, offsets + joint * kTilePixels, of_filters, pairs};
  }

  // `tables` are those of joint row 0.
  __device__ __forceinline__ void fill_offsets(const EpilogueParameters& pass, const TileTables& tables,
                                               int joint_rows, int thread) const {
    for (int joint = 0; joint < joint_rows; ++joint) {
#pragma unroll
      for (int at = thread; at < kTilePixels; at += kTilePixels / 2) {
        const Pixel pixel = Pixel::of(tables.g, tables.tile, tables.row_phase + joint, at);
        const auto& strides = pass.output.strides;
        offsets[joint * kTilePixels + at] =
            pixel.valid ? (pixel.n - tables.image) * strides[0] +
                              (pixel.p - tables.first_row() - joint) * strides[2] + pixel.q * strides[3]
                        : -1;
      }
    }
  }

  __device__ __forceinline__ void fill_pairs(const EpilogueParameters& pass, const TileTables& tables,
                                             int thread) const {
    if (pass.store != StoreKind::kSectors) return;
    const int place = ring_number(tables.g, tables.tile, thread) % kRingPairs;
    reinterpret_cast<std::uint8_t*>(pairs->places)[PairTable::place(thread)] =
        static_cast<std::uint8_t>(place * kPairBytes);
    if (thread <= kPieces) {
      pairs->before[thread] =
          static_cast<std::uint8_t>(pairs_before(tables.g, tables.tile, thread * kPiecePixels));
    }
  }

  // Those numbered from `first` up to `last`, of an image.
  __device__ __forceinline__ void fill_of_filters(const EpilogueParameters& pass, const HaloGeometry& g,
                                                  std::int32_t group, std::int32_t image, int first, int last,
                                                  int thread) const {
    const int filter = min(group + thread % kGroupFilters, g.filters - 1);
    for (int i = first + thread / kGroupFilters; i < last; i += 2) {
      const int place = pass.of_filters[i];
      const PixelTensor& tensor = pass.operands[place];
      const std::int64_t from = static_cast<std::int64_t>(image) * tensor.strides[0] +
                                static_cast<std::int64_t>(filter) * tensor.strides[1];
      of_filters[place * kGroupFilters + thread % kGroupFilters] =
          load_element<float>(tensor.data, tensor.dtype, from);
    }
  }
};

}  // namespace epiconv::sm90
