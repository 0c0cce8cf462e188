// Streams packed weights into their stages, one tap at a time, in the order in which the consumers use them.
// One thread.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "sm90/conv_parameters.h"
#include "sm90/pipeline.h"

namespace epiconv::sm90 {

__device__ __forceinline__ void load_stage(const SharedMemory& shared, int stage, const void* from) {
  const int bytes = shared.g.stage_bytes;
  ptx::mbarrier_arrive_expect(shared.stage_full(stage), bytes);
  ptx::bulk_copy(shared.stage(stage), from, bytes, shared.stage_full(stage));
}

// All weights, each in the stage of its own that the consumers expect: one filter group's taps after
// another's.
__device__ __forceinline__ void load_all_weights(const ConvParameters& p, const SharedMemory& shared) {
  const HaloGeometry& g = p.geometry;
  for (int stage = 0; stage < g.num_stages; ++stage) {
    load_stage(shared, stage,
               static_cast<const std::uint8_t*>(p.weights) + stage * std::int64_t{g.stage_bytes});
  }
  // A block whose tiles need not all of them must not end before they have come.
  for (int stage = 0; stage < g.num_stages; ++stage) {
    ptx::mbarrier_wait(shared.stage_full(stage), 0, "last weights", stage);
  }
}

template <bool kGeneral>
__device__ __forceinline__ void produce_weights(const ConvParameters& p, const SharedMemory& shared) {
  const HaloGeometry& g = p.geometry;
  if (g.weights_stay) {
    load_all_weights(p, shared);
    return;
  }
  RingPlace place(g.num_stages);
  // Loads taps that lie one behind the other; returns where they end.
  const auto load = [&](const std::uint8_t* from, int taps) {
    for (int t = 0; t < taps; ++t, from += g.stage_bytes, place.next()) {
      ptx::mbarrier_wait(shared.stage_empty(place.index()), place.empty_parity(), "empty stage",
                         place.index());
      load_stage(shared, place.index(), from);
    }
    return from;
  };
  const BlockTiles tiles = block_tiles(p);
  for (TileWalk<kGeneral> walk(tiles); !walk.ended(); walk.advance(tiles)) {
    // Of the consumers, in the order of their turns.
    const auto share_of_consumer = [&](int consumer) {
      return Share::of(g, walk.tile.filter_tile * g.sharers + share_of(g, consumer, walk.index));
    };
    const Share first = share_of_consumer(0), last = share_of_consumer(1);
    const auto begin = [&](const Share& share) {
      return static_cast<const std::uint8_t*>(p.weights) + share.taps_before(g) * std::int64_t{g.stage_bytes};
    };
    if (g.turn_is_tile) {
      load(begin(first), first.taps(g));
      if (g.sharers == 2) load(begin(last), last.taps(g));
      continue;
    }
    const std::uint8_t *of_first = begin(first), *of_last = begin(last);
    Unit unit = Unit::first();
    for (int u = 0; u < g.units; ++u, unit.advance(g)) {
      of_first = load(of_first, unit.taps(g, first.row_phase));
      of_last = load(of_last, unit.taps(g, last.row_phase));
    }
  }
}

}  // namespace epiconv::sm90
