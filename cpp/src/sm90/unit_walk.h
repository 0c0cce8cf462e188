// The units that a block's loaders fill slots for, one after the other, and what of each is in shared memory
// already.
#pragma once

#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

// The first `count` rows of a box, which were `moved` rows farther in the box of the tile before.
struct KeptRows {
  std::int32_t count = 0, moved = 0;

  // The slot that the same unit of the tile before has, where this one has slot `place`.
  EPICONV_HOST_DEVICE static std::int32_t place_before(const HaloGeometry& g, std::int32_t place) {
    const std::int32_t before = place - g.units;
    return before < 0 ? before + g.num_slots : before;
  }
};

struct UnitWalk {
  const HaloGeometry& g;
  std::int32_t index = 0, count;  // of the tile in the block
  std::int32_t u = 0;
  Tile tile;
  Unit unit = Unit::first();

  // Of tiles `first` to `last`, without that one.
  EPICONV_HOST_DEVICE UnitWalk(const HaloGeometry& geometry, std::int32_t first, std::int32_t last)
      : g(geometry), count(last - first), tile(Tile::of(geometry, first)) {}
  EPICONV_HOST_DEVICE bool ended() const { return index >= count; }
  EPICONV_HOST_DEVICE void advance() {
    unit.advance(g);
    if (++u < g.units) return;
    u = 0;
    unit = Unit::first();
    tile.advance(g);
    ++index;
  }
  EPICONV_HOST_DEVICE std::int32_t box_rows() const { return tile.box_rows(g, unit.rows(g)); }

  // The box's first rows that are the last ones of the same unit of the tile before, in a slot that still
  // holds them. Slots and rows moved keep the swizzle. Where the slot is this one, rows move onto others that
  // have moved already, and so all of them move farther than they are many.
  EPICONV_HOST_DEVICE KeptRows kept_rows() const {
    const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
    const std::int32_t moved = rows_moved();
    if (moved == 0 || g.units > g.num_slots || moved * pitch * g.row_bytes % kSwizzleAtom != 0) return {};
    Tile before = tile;
    before.offset -= g.step_offset;
    if (before.offset < 0) before.offset += pitch;
    const std::int32_t had = before.box_rows(g, unit.rows(g)) - moved;
    const std::int32_t kept = had < box_rows() ? had : box_rows();
    if ((kept > moved && g.units == g.num_slots) || kept < 0) return {};
    return {kept, moved};
  }

 private:
  // Virtual rows from the tile before to this one, where that is the run before of the same strip; else 0.
  EPICONV_HOST_DEVICE std::int32_t rows_moved() const {
    const bool follows = index > 0 && tile.filter_tile == 0 && (tile.first_row > 0 || tile.offset > 0);
    return follows ? g.step_rows + (tile.offset < g.step_offset ? 1 : 0) : 0;
  }
};

}  // namespace epiconv::sm90
