// Where the values of a warp's accumulators go: the program runs on them where they are, then they pass
// through the warp's own staging memory, kPiecePixels pixels at a time, to lanes that store them side by
// side. Index arithmetic only, shared with the host model.
#pragma once

#include <cstdint>

#include "epiconv/export.h"
#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

// How an output can be stored: boxes of filters by the copy engine, filters 16 bytes at a time; four pixels
// of two column phases as a lane has them, two pixels at a time, cut where sectors begin or anywhere, or one.
enum class StoreKind : std::uint8_t { kBoxes, kFilters, kQuadsOfPixels, kSectors, kPairsOfPixels, kPixels };

inline constexpr int kAccumulators = kTilePixels / 2;  // of a thread: 64 filters x 256 pixels / 128 threads
inline constexpr int kPiecePixels = 32;
inline constexpr int kPieces = kTilePixels / kPiecePixels;
inline constexpr int kPieceAccumulators = kAccumulators / kPieces;

// Accumulators of a thread in each of kPhases column phases, which lie one behind the other.
template <int kPhases>
inline constexpr int kPhaseAccumulators = kAccumulators / kPhases;

// The filter (of the warp's) and the position that a lane's accumulator i holds. (PTX ISA, "Register
// Fragments and Shared Memory Matrix Layouts", matrix D of wgmma.mma_async)
EPICONV_HOST_DEVICE constexpr std::int32_t accumulator_filter(std::int32_t lane, std::int32_t i) {
  return lane / 4 + 8 * (i / 2 % 2);
}
template <int kPhases>
EPICONV_HOST_DEVICE constexpr std::int32_t accumulator_position(std::int32_t lane, std::int32_t i) {
  const std::int32_t phase = i / kPhaseAccumulators<kPhases>, of_phase = i % kPhaseAccumulators<kPhases>;
  return (8 * (of_phase / 4) + 2 * (lane % 4) + of_phase % 2) * kPhases + phase;
}

// What a lane has of each of two filters in a piece, in the order of positions: kPieceWord values, of which
// 2 * kPhases at a time lie side by side. `quad` is lane % 4.
inline constexpr int kPieceWord = kPieceAccumulators / 2;
template <int kPhases>
EPICONV_HOST_DEVICE constexpr std::int32_t piece_position(std::int32_t quad, std::int32_t i) {
  constexpr std::int32_t kTogether = 2 * kPhases;
  return i / kTogether * 4 * kTogether + quad * kTogether + i % kTogether;
}
// The accumulator that is value i of filter `half` (lane / 4 + 8 * half).
template <int kPhases>
EPICONV_HOST_DEVICE constexpr std::int32_t piece_accumulator(std::int32_t piece, std::int32_t half,
                                                             std::int32_t i) {
  const std::int32_t number = i / kPhases;  // of the raster, of those that the lane has in the piece
  return i % kPhases * kPhaseAccumulators<kPhases> + piece * (kPieceAccumulators / kPhases) + number / 2 * 4 +
         2 * half + number % 2;
}
// Of the four matrices of 8 positions and 8 filters that a piece's values of 16 bits are for stmatrix, pair j
// of a lane being its part of matrix j: the position whose row of filters lane 8 * j + r gives the address
// of.
template <int kPhases>
EPICONV_HOST_DEVICE constexpr std::int32_t matrix_position(std::int32_t lane) {
  return piece_position<kPhases>(lane % 8 / 2, lane / 8 * 2 + lane % 2);
}

// Where the 16-bit output element of a filter and a pixel of a piece lies in a warp's staging memory, in
// bytes. Filters lie side by side, and no two lanes write the same bank.
inline constexpr std::int32_t kFiltersPitch = 2 * kWarpFilters + 16;
EPICONV_HOST_DEVICE constexpr std::int32_t filters_offset(std::int32_t filter, std::int32_t pixel) {
  return pixel * kFiltersPitch + filter * 2;
}
// Pieces lie in two places in turns.
EPICONV_HOST_DEVICE constexpr std::int32_t filters_place(std::int32_t piece) {
  return piece % 2 * kPiecePixels * kFiltersPitch;
}
static_assert(2 * kPiecePixels * kFiltersPitch <= filters_staging_bytes());

// The same where pixels lie side by side, of kRunPieces pieces: one store of a warp then writes a run of
// kRunPixels pixels. Where rows of an image begin within a sector of 32 bytes, both ends of a run are parts
// of sectors, which cost the memory as much as whole ones. Parts of a row are exchanged, so that no two lanes
// write the same bank: four lanes write `quad` bytes of one filter together, each its own 4 to 16 of them at
// a time.
inline constexpr int kRunPieces = 2;
inline constexpr int kRunPixels = kRunPieces * kPiecePixels;
template <int kPhases>
EPICONV_HOST_DEVICE constexpr std::int32_t pixels_offset(std::int32_t size, std::int32_t filter,
                                                         std::int32_t pixel) {
  const std::int32_t quad = 8 * kPhases * size;
  const std::int32_t exchange = quad == 16   ? filter % 8 * 16
                                : quad == 32 ? filter % 4 * 32
                                : quad == 64 ? filter % 2 * 64
                                             : filter % 2 * 16;
  return filter * kRunPixels * size + ((pixel * size) ^ exchange);
}
static_assert(kWarpFilters * kRunPixels == pixels_staging_bytes(1));

// Boxes in a warpgroup's staging memory: lines of 128 bytes, of 64 or 32 of the group's filters, for each
// pixel; those of the other 32 filters behind those of all pixels. Swizzled as the copy engine reads them.
// `size` is an element's, 4 or 2.
inline constexpr int kLineBytes = 128;
inline constexpr int kBoxBytes = 8192;
inline constexpr int kBoxes = 2;  // one is filled while the other is stored
static_assert(kBoxes * kBoxBytes == kConsumerWarps / 2 * filters_staging_bytes());
EPICONV_HOST_DEVICE constexpr std::int32_t line_filters(std::int32_t size) { return kLineBytes / size; }
EPICONV_HOST_DEVICE constexpr std::int32_t box_pixels(std::int32_t size) {
  return kBoxBytes / (kGroupFilters * size);
}
EPICONV_HOST_DEVICE constexpr std::int32_t box_pieces(std::int32_t size) {
  return box_pixels(size) / kPiecePixels;
}
static_assert(kPieces / box_pieces(2) % kBoxes == 0);  // every tile begins with the first
EPICONV_HOST_DEVICE std::uint32_t box_offset(std::int32_t size, std::int32_t pixel, std::int32_t filter) {
  const std::int32_t line = filter / line_filters(size);
  return line * box_pixels(size) * kLineBytes +
         swizzled(
             static_cast<std::uint32_t>(pixel * kLineBytes + (filter - line * line_filters(size)) * size),
             kLineBytes);
}

// Whether the boxes of all tiles lie each in one row of the output. A box must not begin left of a row, as it
// would that goes to two (the copy engine calls that an illegal instruction), nor reach into the next strip;
// and every position of it is to be one of the tile's, or to lie behind its row.
EPICONV_HOST_DEVICE bool boxes_lie_in_rows(const HaloGeometry& g, std::int32_t size) {
  const std::int32_t numbers = box_pixels(size) >> g.interleave;  // of the raster
  const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
  return g.joint_rows == 1 && 1 << g.interleave == g.phases_w && g.strips.divisor == 1 &&
         (g.step == pitch ? g.run <= pitch : g.step == g.run && pitch % numbers == 0);
}

// Where a box goes: the output pixel of its first position. The copy engine leaves out what lies outside of
// the output: columns behind a row's last, rows between images, images behind the last.
struct BoxTarget {
  std::int32_t n, p, q;

  // Of the tile's positions from `position` on; `image` is that of the tile's first. Without a division,
  // which the warp that stores a box would keep the others waiting for.
  EPICONV_HOST_DEVICE static BoxTarget of(const HaloGeometry& g, const Tile& tile, std::int32_t row_phase,
                                          std::int32_t image, std::int32_t position) {
    const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
    const auto image_rows = static_cast<std::int32_t>(g.image_rows.divisor);
    const std::int32_t images_before = image - tile.raster * g.images_per_raster;
    BoxTarget to{image, tile.first_row - images_before * image_rows,
                 tile.offset + (position >> g.interleave)};
    for (; to.q >= pitch; to.q -= pitch) ++to.p;
    for (; to.p >= image_rows; to.p -= image_rows) ++to.n;
    to.p = to.p * g.phases_h + row_phase;
    to.q *= g.phases_w;
    return to;
  }
};

// What a lane stores at its turn number `turn`: `width` elements that lie side by side in the output, the
// first of which is this one.
struct StoredElements {
  std::int32_t filter, pixel;

  // width filters of a pixel, for channels_last
  EPICONV_HOST_DEVICE static StoredElements filters(std::int32_t width, std::int32_t lane,
                                                    std::int32_t turn) {
    const std::int32_t lanes = kWarpFilters / width;  // that share a pixel
    return {lane % lanes * width, lane / lanes + 32 / lanes * turn};
  }
  // width pixels of a filter, of a run: two for each lane, or one, half of the run at a time
  EPICONV_HOST_DEVICE static StoredElements pixels(std::int32_t width, std::int32_t lane, std::int32_t turn) {
    const std::int32_t turns = kRunPixels / (32 * width);  // of a filter
    return {turn / turns, turn % turns * 32 + lane * width};
  }
};
// Turns that it takes to store a piece; a run takes kRunPieces times as many.
EPICONV_HOST_DEVICE constexpr std::int32_t stored_turns(std::int32_t width) {
  return kWarpFilters * kPiecePixels / (32 * width);
}

}  // namespace epiconv::sm90
