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

__device__ __forceinline__ void produce_weights(const ConvParameters& p, const SharedMemory& shared) {
  const HaloGeometry& g = p.geometry;
  if (g.weights_stay) {
    load_all_weights(p, shared);
    return;
  }
  const TileRange range = TileRange::of(g);
  const std::int64_t group_bytes = packed_group_bytes(g);
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
  Tile tile = Tile::of(g, range.first);
  for (int index = range.first; index < range.last; ++index, tile.advance(g)) {
    const auto* from =
        static_cast<const std::uint8_t*>(p.weights) + tile.filter_tile * g.sharers * group_bytes;
    if (g.turn_is_tile) {
      for (int sharer = 0; sharer < g.sharers; ++sharer) from = load(from, g.taps);
      continue;
    }
    Unit unit = Unit::first();
    for (int u = 0; u < g.units; ++u, unit.advance(g)) {
      const int taps = unit.taps(g);
      const auto* const next = load(from, taps);
      load(from + group_bytes, taps);
      from = next;
    }
  }
}

}  // namespace epiconv::sm90
