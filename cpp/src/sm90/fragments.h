// Where the values of a warp's accumulators go: the program runs on them where they are, then they pass
// through the warp's own staging memory, kPiecePixels pixels at a time, to lanes that store them side by
// side. Index arithmetic only, shared with the host model.
#pragma once

#include <cstdint>

#include "epiconv/export.h"
#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

// How an output can be stored: boxes of filters by the copy engine, filters 16 bytes at a time, two pixels at
// a time, cut where sectors begin or anywhere, or one.
enum class StoreKind : std::uint8_t { kBoxes, kFilters, kSectors, kPairsOfPixels, kPixels };

inline constexpr int kAccumulators = kTilePixels / 2;  // of a thread: 64 filters x 256 pixels / 128 threads
inline constexpr int kWarpFilters = 16;
inline constexpr int kPiecePixels = 32;
inline constexpr int kPieces = kTilePixels / kPiecePixels;
inline constexpr int kPieceAccumulators = kAccumulators / kPieces;

// The filter (of the warp's) and the position that a lane's accumulator i holds. (PTX ISA, "Register
// Fragments and Shared Memory Matrix Layouts", matrix D of wgmma.mma_async)
EPICONV_HOST_DEVICE std::int32_t accumulator_filter(std::int32_t lane, std::int32_t i) {
  return lane / 4 + 8 * (i / 2 % 2);
}
EPICONV_HOST_DEVICE std::int32_t accumulator_position(std::int32_t lane, std::int32_t i) {
  return 8 * (i / 4) + 2 * (lane % 4) + i % 2;
}

// Where the output element of a filter and a pixel of a piece lies in a warp's staging memory, in bytes;
// elements have `size` bytes, 4 or 2. Filters lie side by side, and no two lanes write the same bank.
EPICONV_HOST_DEVICE constexpr std::int32_t filters_pitch(std::int32_t size) {
  return kWarpFilters * size + 16;
}
EPICONV_HOST_DEVICE constexpr std::int32_t filters_offset(std::int32_t size, std::int32_t filter,
                                                          std::int32_t pixel) {
  return pixel * filters_pitch(size) + filter * size;
}
static_assert(kPiecePixels * filters_pitch(4) <= filters_staging_bytes());

// The same where pixels lie side by side, of kRunPieces pieces: one store of a warp then writes a run of
// kRunPixels pixels. Where rows of an image begin within a sector of 32 bytes, both ends of a run are parts
// of sectors, which cost the memory as much as whole ones. Parts of a row are exchanged, so that no two lanes
// write the same bank.
inline constexpr int kRunPieces = 2;
inline constexpr int kRunPixels = kRunPieces * kPiecePixels;
EPICONV_HOST_DEVICE constexpr std::int32_t pixels_offset(std::int32_t size, std::int32_t filter,
                                                         std::int32_t pixel) {
  const std::int32_t exchange = size == 2 ? filter % 8 * 16 : filter % 4 * 32;
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

// Whether the boxes of all tiles lie each in one row of the raster. A box must not begin left of a row, as it
// would that goes to two (the copy engine calls that an illegal instruction), nor reach into the next strip.
EPICONV_HOST_DEVICE bool boxes_lie_in_rows(const HaloGeometry& g, std::int32_t size) {
  return g.strips.divisor == 1 && static_cast<std::int32_t>(g.pitch.divisor) % box_pixels(size) == 0;
}

// Where a box goes: the output pixel of its first position. The copy engine leaves out what lies outside of
// the output: columns behind a row's last, rows between images, images behind the last.
struct BoxTarget {
  std::int32_t n, p, q;

  // Of the tile's positions from `position` on; `image` is that of the tile's first.
  EPICONV_HOST_DEVICE static BoxTarget of(const HaloGeometry& g, const Tile& tile, std::int32_t image,
                                          std::int32_t position) {
    const std::int32_t first = tile.offset + position;
    const std::int32_t row = g.pitch.quotient(first);
    const std::int32_t images_before = image - tile.raster * g.images_per_raster;
    BoxTarget to{image,
                 tile.first_row + row - images_before * static_cast<std::int32_t>(g.image_rows.divisor),
                 first - row * static_cast<std::int32_t>(g.pitch.divisor)};
    while (to.p >= static_cast<std::int32_t>(g.image_rows.divisor)) {
      to.p -= static_cast<std::int32_t>(g.image_rows.divisor);
      ++to.n;
    }
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
