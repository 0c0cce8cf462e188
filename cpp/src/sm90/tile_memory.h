// What a consumer warpgroup keeps of its tile in shared memory: where the positions lie in the output, and
// the operands that have one element for each filter.
#pragma once

#include "sm90/conv_chunk.h"
#include "sm90/stored_pairs.h"

namespace epiconv::sm90 {

// A warpgroup's tables; `thread` is of the warpgroup.
struct TileMemory {
  std::int32_t* offsets;
  float* of_filters;
  PairTable* pairs;

  __device__ __forceinline__ static TileMemory at(std::uint8_t* memory) {
    auto* const offsets = reinterpret_cast<std::int32_t*>(memory);
    auto* const of_filters = reinterpret_cast<float*>(offsets + kTilePixels);
    return {offsets, of_filters,
            reinterpret_cast<PairTable*>(of_filters + kNumFilterOperands * kGroupFilters)};
  }

  __device__ __forceinline__ void fill_offsets(const EpilogueParameters& pass, const TileTables& tables,
                                               int thread) const {
#pragma unroll
    for (int at = thread; at < kTilePixels; at += kTilePixels / 2) {
      const Pixel pixel = Pixel::of(tables.g, tables.tile, tables.row_phase, at);
      const auto& strides = pass.output.strides;
      offsets[at] = pixel.valid ? (pixel.n - tables.image) * strides[0] +
                                      (pixel.p - tables.first_row()) * strides[2] + pixel.q * strides[3]
                                : -1;
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

  __device__ __forceinline__ void fill_of_filters(const EpilogueParameters& pass, const HaloGeometry& g,
                                                  std::int32_t group, int thread) const {
    const int filter = min(group + thread % kGroupFilters, g.filters - 1);
    for (int i = thread / kGroupFilters; i < pass.num_of_filters; i += 2) {
      const int place = pass.of_filters[i];
      const PixelTensor& tensor = pass.operands[place];
      of_filters[place * kGroupFilters + thread % kGroupFilters] = load_element<float>(
          tensor.data, tensor.dtype, static_cast<std::int64_t>(filter) * tensor.strides[1]);
    }
  }
};

}  // namespace epiconv::sm90
