// One thread that lets the copy engine bring all steps of a block's tiles (im2col_conv.h), as far ahead of
// the products as the ring has stages: of the next tile, too, while the last one is stored.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "sm80/im2col_geometry.h"
#include "sm80/im2col_ring.h"

namespace epiconv::sm80 {

// Where the taps and channels of a step begin; in the order of packed weights.
struct Im2colPlace {
  std::int32_t tap[kDims], block;

  __device__ __forceinline__ static Im2colPlace of(const Geometry& g, const PackedPhase& phase,
                                                   std::int32_t step) {
    Im2colPlace place{{}, 0};
    if (step == 0) return place;
    const std::int32_t other = step / g.channel_blocks;
    place.block = step - other * g.channel_blocks;
    spread_taps(g, phase.count, other, false, place.tap);
    return place;
  }
  __device__ __forceinline__ void next(const Geometry& g, const PackedPhase& phase) {
    if (++block < g.channel_blocks) return;
    block = 0;
#pragma unroll
    for (int d = kDims - 1; d >= 0; --d) {
      if (++tap[d] < phase.count[d]) return;
      tap[d] = 0;
    }
  }
};

// What a phase meets: known to the compiler where there is one.
__device__ __forceinline__ PackedPhase im2col_phase(const Geometry& g, const void* weights,
                                                    std::int32_t phase) {
  if (g.all_phases() == 1) return PhaseTaps::of(g, Phase{}).packed(g);
  return static_cast<const PackedPhase*>(weights)[phase];
}

__device__ __forceinline__ std::int32_t steps_of(const Im2colWalk& walk, const PackedPhase& phase) {
  return walk.end == Im2colWalk::kAllSteps ? phase.steps : walk.end - walk.first;
}

// All of a step; or of a cluster's step the block's part, to all blocks. `weights`: bytes behind the first
// step.
__device__ __forceinline__ void bring_filters(const Geometry& g, const void* packed, const Im2colMap& map,
                                              std::int64_t step, std::int32_t rank, const Im2colRing& ring) {
  if (g.im2col_cluster == 1) {
    return ptx::bulk_copy(ring.filters(), static_cast<const std::uint8_t*>(packed) + step,
                          g.tile_filters * kStepBytes, ring.full());
  }
  const std::int32_t rows = g.tile_filters / g.im2col_cluster;
  const auto row = static_cast<std::int32_t>((step - g.packed_step(0, 0, 0, 0)) / kStepBytes);
  ptx::tensor_copy_to_all(ring.filters() + rank * rows * kStepBytes, &map, 0, row + rank * rows, ring.full(),
                          static_cast<std::uint16_t>((1 << g.im2col_cluster) - 1));
}

// Lines of a tile's positions, from the input pixels on that the tap at `place` meets.
__device__ __forceinline__ void bring_lines(const Geometry& g, const Im2colMap& map, const Tile& tile,
                                            const PackedPhase& phase, const Im2colPlace& place,
                                            const Im2colRing& ring) {
  const int line = kStepBytes / g.element_bytes;  // pixels, and channels of a step
  int at[kDims];
#pragma unroll
  for (int d = 0; d < kDims; ++d) {
    at[d] = tile.first[1 + d] + phase.offset[d] + place.tap[d] * phase.offset_step[d];
  }
  const int channel = tile.group * g.channels + place.block * line;
#pragma unroll 1
  for (int number = 0; number < g.tile_positions / line; ++number) {
    const Position first = Position::of(g, number * line);
    ptx::tensor_copy(ring.positions() + number * line * kStepBytes, &map, at[2] + first.at[3],
                     at[1] + first.at[2], at[0] + first.at[1], channel, tile.first[0] + first.at[0],
                     ring.full());
  }
}

template <int kRank>
__device__ __forceinline__ void bring_tile(const ConvParameters& p, const ConvLaunch& launch,
                                           const Im2colMaps& maps, const Im2colWalk& walk, std::int32_t rank,
                                           Im2colRing& ring) {
  const Geometry& g = p.geometry;
  const Tile tile = im2col_tile(g, walk.tile, rank);
  const PackedPhase phase = im2col_phase(g, launch.weights, tile.phase);
  const Im2colMap* const map = &maps.of_phase[g.all_phases() == 1 ? 0 : tile.phase];
  int first[kDims], low[kDims];
#pragma unroll
  for (int d = 0; d < kDims; ++d) {
    const std::int32_t last = phase.offset[d] + (phase.count[d] - 1) * phase.offset_step[d];
    low[d] = min(phase.offset[d], last);
    first[d] = tile.first[1 + d] * g.advance(d) + low[d];
  }
  std::int64_t weights = g.packed_step(tile.phase, tile.group, tile.filter_tile, walk.first);
  Im2colPlace place = Im2colPlace::of(g, phase, walk.first);
  const std::int32_t block_channels = kStepBytes / g.element_bytes;
#pragma unroll 1
  for (std::int32_t left = steps_of(walk, phase); left > 0; --left) {
    ring.wait_empty();
    ptx::mbarrier_arrive_expect(ring.full(), g.im2col_bytes());
    if (g.im2col_lines) {
      bring_lines(g, *map, tile, phase, place, ring);
    } else {
      int offset[kDims];
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        offset[d] = phase.offset[d] + place.tap[d] * phase.offset_step[d] - low[d];
      }
      ptx::im2col_copy<kRank>(ring.positions(), map, tile.group * g.channels + place.block * block_channels,
                              tile.first[0], first, offset, ring.full());
    }
    bring_filters(g, launch.weights, maps.weights, weights, rank, ring);
    weights += g.step_bytes();
    place.next(g, phase);
    ring.next();
  }
}

}  // namespace epiconv::sm80
