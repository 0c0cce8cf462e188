// The units that a block's loaders fill slots for, one after the other, and what of each is in shared memory
// already.
#pragma once

#include "sm90/tile_walk.h"

namespace epiconv::sm90 {

// The first `count` rows of a box, which were `moved` rows farther in the box of the tile before, a multiple
// of its planes: each of which keeps rows of its own, `count_of` them.
struct KeptRows {
  std::int32_t count = 0, moved = 0;

  EPICONV_HOST_DEVICE std::int32_t count_of(const HaloGeometry& g, std::int32_t plane) const {
    return (count - plane + g.joint_rows - 1) >> g.joint_shift;
  }

  // The slot that the same unit of the tile before has, where this one has slot `place`.
  EPICONV_HOST_DEVICE static std::int32_t place_before(const HaloGeometry& g, std::int32_t place) {
    const std::int32_t before = place - g.units;
    return before < 0 ? before + g.num_slots : before;
  }
};

template <bool kGeneral>
struct UnitWalk {
  const BlockTiles of;
  const HaloGeometry& g;
  TileWalk<kGeneral> tiles;
  std::int32_t u = 0;
  Unit unit = Unit::first();

  EPICONV_HOST_DEVICE explicit UnitWalk(const BlockTiles& block) : of(block), g(of.g), tiles(of) {}
  EPICONV_HOST_DEVICE bool ended() const { return tiles.ended(); }
  EPICONV_HOST_DEVICE const Tile& tile() const { return tiles.tile; }
  EPICONV_HOST_DEVICE void advance() {
    unit.advance(g);
    if (++u < g.units) return;
    u = 0;
    unit = Unit::first();
    tiles.advance(of);
  }
  EPICONV_HOST_DEVICE std::int32_t box_rows() const { return tile().box_rows(g, unit.rows(g)); }

  // The box's first rows that are the last ones of the same unit of the tile before, in a slot that still
  // holds them. Slots and rows moved keep the swizzle. Where the slot is this one, rows move onto others that
  // have moved already, and so all of them move farther than they are many.
  EPICONV_HOST_DEVICE KeptRows kept_rows() const {
    const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
    const std::int32_t moved_in_plane = rows_moved(), moved = moved_in_plane << g.joint_shift;
    if (moved == 0 || g.units > g.num_slots || moved_in_plane * pitch * g.row_bytes % kSwizzleAtom != 0) {
      return {};
    }
    Tile before = tile();
    before.offset -= g.step_offset;
    if (before.offset < 0) before.offset += pitch;
    const std::int32_t had = before.box_rows(g, unit.rows(g)) - moved;
    const std::int32_t kept = had < box_rows() ? had : box_rows();
    if ((kept > moved && g.units == g.num_slots) || kept < 0) return {};
    return {kept, moved};
  }

 private:
  // Rows of the raster from the tile before to this one, where that is the run before of the same strip; else
  // 0.
  EPICONV_HOST_DEVICE std::int32_t rows_moved() const {
    const Tile& at = tile();
    const bool follows = tiles.follows && at.filter_tile == 0 && (at.first_row > 0 || at.offset > 0);
    return follows ? g.step_rows + (at.offset < g.step_offset ? 1 : 0) : 0;
  }
};

}  // namespace epiconv::sm90
