// Where the values of a warp's accumulators go: the program runs on them where they are, then they pass
// through the warp's own staging memory, kPiecePixels pixels at a time, to lanes that store them side by
// side. Index arithmetic only, shared with the host model.
#pragma once

#include <cstdint>

#include "epiconv/export.h"
#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

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

// Where the output element of a filter and a pixel of a piece lies in staging memory, in bytes; elements have
// `size` bytes, 4 or 2. Pixels lie side by side, or, for channels_last, filters. The distance between rows
// keeps 16-byte pieces aligned and lets no two lanes write the same bank.
EPICONV_HOST_DEVICE std::int32_t staging_pitch(bool channels_last, std::int32_t size) {
  return channels_last ? kWarpFilters * size + 16 : kPiecePixels * size + 8 * size;
}
EPICONV_HOST_DEVICE std::int32_t staging_offset(bool channels_last, std::int32_t size, std::int32_t filter,
                                                std::int32_t pixel) {
  const std::int32_t pitch = staging_pitch(channels_last, size);
  return channels_last ? pixel * pitch + filter * size : filter * pitch + pixel * size;
}
static_assert(kPiecePixels * (kWarpFilters * 4 + 16) <= kPieceStagingBytes);
static_assert(kWarpFilters * (kPiecePixels + 8) * 4 <= kPieceStagingBytes);

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
  // width pixels of a filter
  EPICONV_HOST_DEVICE static StoredElements pixels(std::int32_t width, std::int32_t lane, std::int32_t turn) {
    const std::int32_t lanes = kPiecePixels / width;  // that share a filter
    return {lane / lanes + 32 / lanes * turn, lane % lanes * width};
  }
};
// Turns that it takes to store a piece.
EPICONV_HOST_DEVICE constexpr std::int32_t stored_turns(std::int32_t width) {
  return kWarpFilters * kPiecePixels / (32 * width);
}

}  // namespace epiconv::sm90
