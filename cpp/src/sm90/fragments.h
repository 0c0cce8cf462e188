// Where the values of a warp's accumulators go: through the warp's own staging memory, kPiecePixels pixels at
// a time, to lanes that store them side by side. Index arithmetic only, shared with the host model.
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
inline constexpr int kChunkFilters = 8;  // that a lane computes the epilogue of at a time, of one pixel
inline constexpr int kChunks = kWarpFilters * kPiecePixels / (32 * kChunkFilters);  // of a lane in a piece

// The filter (of the warp's) and the position that a lane's accumulator i holds. (PTX ISA, "Register
// Fragments and Shared Memory Matrix Layouts", matrix D of wgmma.mma_async)
EPICONV_HOST_DEVICE std::int32_t accumulator_filter(std::int32_t lane, std::int32_t i) {
  return lane / 4 + 8 * (i / 2 % 2);
}
EPICONV_HOST_DEVICE std::int32_t accumulator_position(std::int32_t lane, std::int32_t i) {
  return 8 * (i / 4) + 2 * (lane % 4) + i % 2;
}

// How a piece lies in staging memory, in floats: pixels side by side for an output whose pixels are, filters
// side by side for channels_last. Neither writing nor reading meets a bank twice, but for channels_last
// reads.
inline constexpr int kPixelPitch = kPiecePixels + 8;   // from filter to filter
inline constexpr int kFilterPitch = kWarpFilters + 4;  // from pixel to pixel
static_assert(kWarpFilters * kPixelPitch * 4 <= kWarpStagingBytes);
static_assert(kPiecePixels * kFilterPitch * 4 <= kWarpStagingBytes);

EPICONV_HOST_DEVICE std::int32_t staging_index(bool channels_last, std::int32_t filter, std::int32_t pixel) {
  return channels_last ? pixel * kFilterPitch + filter : filter * kPixelPitch + pixel;
}

// Chunk number `chunk` of a lane: its pixel in the piece and its first filter of the warp's.
EPICONV_HOST_DEVICE std::int32_t chunk_pixel(bool channels_last, std::int32_t lane, std::int32_t chunk) {
  return channels_last ? lane / 2 + 16 * chunk : lane;
}
EPICONV_HOST_DEVICE std::int32_t chunk_filter(bool channels_last, std::int32_t lane, std::int32_t chunk) {
  return kChunkFilters * (channels_last ? lane % 2 : chunk);
}

}  // namespace epiconv::sm90
