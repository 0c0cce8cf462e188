// The pairs of pixels of a tile that are stored, of 32-bit elements whose rows lie one behind the other in
// memory: numbered along memory, from the first one on.
//
// Rows of an image begin anywhere within a sector of 32 bytes, and a sector that is stored in parts costs the
// memory as much as several. So a warp's staging memory holds a ring of kRingPairs for each filter, which a
// piece fills further, dropped columns left out, and from which whole sectors are stored; what is not yet
// complete waits there for the next piece. Pairs are stored by their number from where a sector begins: it is
// greater by the `shift` of the filter, whose pair 0 lies so many pairs behind that.
#pragma once

#include <cstdint>

#include "sm90/fragments.h"

namespace epiconv::sm90 {

inline constexpr int kPairBytes = 8;
inline constexpr int kSectorBytes = 32;
inline constexpr int kSectorPairs = kSectorBytes / kPairBytes;
inline constexpr int kPiecePairs = kPiecePixels / 2;
inline constexpr int kRingPairs = 2 * kPiecePairs;
inline constexpr int kRingBytes = kRingPairs * kPairBytes;  // of a filter
static_assert(kWarpFilters * kRingBytes == pixels_staging_bytes(4));
// With narrower rows, or more columns dropped between them, a tile's first piece could be less than a sector.
inline constexpr int kLeastRow = 16, kMostDropped = 16;

// Whether dense rows of 32-bit elements are stored so: where they can be, and where the memory has little
// more time for a tile than it takes. A piece goes to more lines of memory than a run of pixels in one of
// them does, which takes longer where the tensor cores leave the memory enough time: of 3 x 3 taps, 8
// channels in TF32 took 14 % less so, 64 in bf16 1 to 3 % less, and 64 in TF32 3 % more.
EPICONV_HOST_DEVICE bool stores_in_sectors(const HaloGeometry& g) {
  constexpr std::int64_t kStoreClocks = kTilePixels * kGroupFilters * 4 / kStoreBytesPerClock;
  // Of joint rows only those of one tile's row of the raster lie one behind the other.
  const bool is_dense = g.joint_rows == 1 || g.run == static_cast<int>(g.pitch.divisor);
  const bool fits = g.phases_h == 1 && g.phases_w == 1 && is_dense && g.step == g.run && !g.stacked &&
                    g.strips.divisor == 1 && g.out_width >= kLeastRow &&
                    static_cast<std::int32_t>(g.pitch.divisor) - g.out_width <= kMostDropped;
  return fits && share_clocks(g) < 2 * kStoreClocks;
}

// Pairs that are stored by the time that so many have been staged: as many of each filter.
EPICONV_HOST_DEVICE constexpr std::int32_t whole_sectors(std::int32_t pairs) { return pairs & -kSectorPairs; }

// How many of the tile's pairs lie before a position.
EPICONV_HOST_DEVICE std::int32_t pairs_before(const HaloGeometry& g, const Tile& tile,
                                              std::int32_t position) {
  const auto least = [](std::int32_t a, std::int32_t b) { return a < b ? a : b; };
  const std::int32_t linear = tile.offset + position;
  const std::int32_t row = g.pitch.quotient(linear), rows = g.out_height - (tile.first_row << g.joint_shift);
  const std::int32_t column = linear - row * static_cast<std::int32_t>(g.pitch.divisor);
  const std::int32_t columns =
      row < rows ? row * g.out_width + least(column, g.out_width) : rows * g.out_width;
  return (columns - least(tile.offset, g.out_width)) / 2;
}

// The number by which a pair of positions lies in the ring. Those of dropped columns have the numbers behind
// the others of their piece, and are overwritten by the next.
EPICONV_HOST_DEVICE std::int32_t ring_number(const HaloGeometry& g, const Tile& tile, std::int32_t pair) {
  const std::int32_t first = pair / kPiecePairs * kPiecePairs;  // of the piece
  const std::int32_t before = pairs_before(g, tile, 2 * pair);
  if (pairs_before(g, tile, 2 * pair + 2) > before) return before;
  return pairs_before(g, tile, 2 * (first + kPiecePairs)) + pair - first -
         (before - pairs_before(g, tile, 2 * first));
}

// A tile's, in shared memory.
struct PairTable {
  // Of each piece, for lanes of which each holds every fourth pair: the bytes of four ring numbers.
  std::uint32_t places[kPieces][4];
  std::uint8_t before[kPieces + 1];  // pairs before the piece

  // Byte of a pair of positions in `places`.
  EPICONV_HOST_DEVICE static std::int32_t place(std::int32_t pair) {
    return pair / kPiecePairs * kPiecePairs + pair % 4 * 4 + pair % kPiecePairs / 4;
  }
};
static_assert(sizeof(PairTable) <= kPairTableBytes);

// How far a filter's ring is turned, in pairs. Lanes that hold the same four pairs of different filters then
// write different banks, as far as shifts are all even or all odd, and two pairs that are stored as 16 bytes
// lie as such.
EPICONV_HOST_DEVICE constexpr std::uint32_t ring_turn(std::int32_t filter, std::uint32_t shift) {
  return 4 * static_cast<std::uint32_t>(filter) + shift % 2;
}
// Four bytes of `places` in a ring that is turned. No byte carries into what is left of the next.
EPICONV_HOST_DEVICE std::uint32_t turned_places(std::uint32_t places, std::uint32_t turn) {
  constexpr std::uint32_t kBytes = 0x01010101;
  return (places + turn % kRingPairs * kPairBytes * kBytes) & ((kRingBytes - kPairBytes) * kBytes);
}

}  // namespace epiconv::sm90
