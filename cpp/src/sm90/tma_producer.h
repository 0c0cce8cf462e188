// Loads the boxes of an NHWC input with the copy engine, a row of the box at a time: it swizzles, fills what
// lies outside the tensor with zeros, and rounds float32 to TF32. One thread.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "sm90/conv_parameters.h"
#include "sm90/pipeline.h"

namespace epiconv::sm90 {

template <bool kGeneral>
__device__ __forceinline__ void produce_by_tma(const ConvParameters& p, const SharedMemory& shared) {
  const HaloGeometry& g = p.geometry;
  const int block_channels = g.row_bytes / g.element_bytes;
  const int line_bytes = static_cast<int>(g.pitch.divisor) * g.row_bytes;
  RingPlace place(g.num_slots);
  const BlockTiles tiles = block_tiles(p);
  for (TileWalk<kGeneral> walk(tiles); !walk.ended(); walk.advance(tiles)) {
    const Tile& tile = walk.tile;
    Unit unit = Unit::first();
    for (int u = 0; u < g.units; ++u) {
      const int rows = tile.box_rows(g, unit.rows(g));
      const std::uint32_t full = shared.slot_full(place.index());
      ptx::mbarrier_wait(shared.slot_empty(place.index()), place.empty_parity(), "empty slot", place.index());
      ptx::mbarrier_arrive_expect(full, rows * line_bytes);
      for (int y = 0; y < rows; ++y) {
        const BoxRow row = BoxRow::of(g, tile, unit, y);
        ptx::tensor_copy(shared.slot(place.index()) + (kGeneral ? g.slot_line(y) : y) * line_bytes,
                         &p.input_map, unit.channel_block * block_channels, box_column(g, tile, unit), row.h,
                         row.n, full);
      }
      place.next();
      unit.advance(g);
    }
  }
}

}  // namespace epiconv::sm90
