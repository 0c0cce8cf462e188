// What the portable kernel is launched with.
#pragma once

#include <cstdint>

#include "device/chunk.h"
#include "epiconv/conv_plan.h"
#include "lowering.h"
#include "sm80/geometry.h"

namespace epiconv::sm80 {

inline constexpr int kTensorDims = 2 + kDims;  // (N, K, D, H, W)

// A tensor that is laid over the output; strides in elements, 0 where it has one element.
struct OutputTensor {
  const void* data;
  std::int64_t strides[kTensorDims];
  DType dtype;
  Pattern pattern;      // of words: kOne, kWords or kScattered
  bool is_like_output;  // has its strides
  bool is_of_filters;   // has one element for each filter, or one
};

struct EpilogueParameters {
  using T = float;
  OutputTensor output;
  OutputTensor operands[kNumOperandPlaces];
  bool words_are_filters;  // a word is of filters of one pixel; else of pixels of one filter
  std::int32_t num_steps;
  std::int32_t num_before_norm;
  std::int32_t save_input;
  std::uint8_t fetches[kMaxSteps];
  Step<float> steps[kMaxSteps];
};

struct InputTensor {
  const void* data;
  std::int64_t strides[kTensorDims];  // (N, C, D, H, W), in elements
  bool is_float32;                    // else what is multiplied
  bool in_pieces;  // channels lie side by side, as many as a piece has at multiples of its size
  PaddingMode padding_mode;

  EPICONV_HOST_DEVICE std::int32_t element_bytes() const { return is_float32 ? 4 : 2; }
};

// A GroupNorm's statistics of a tile: [row][filter], and how many values each is of. A row is of an image,
// and in it of a tile of positions and of a phase.
struct TileStatistics {
  float* means;  // nullptr: none are wanted
  float* squares;
  float* counts;
};

struct ConvParameters {
  Geometry geometry;
  ConvMath math;
  InputTensor input;
  const void* weights;  // packed
  EpilogueParameters epilogue;
  TileStatistics statistics;
  float* partial_sums;      // of splits: [block][accumulator][thread]
  std::uint32_t* arrivals;  // of the splits of a tile, zero before the launch
  std::int32_t first_position_tile;
  std::int32_t pipeline_offset;  // in shared memory
  std::int32_t stages;           // of the pipeline
};

// ---- Shared memory: tables (TileMemory), then the pipeline and the staging. Those lie one on the other
// where all sums of a tile leave the registers behind the last step.

// What the numbers of gemm_k of a step are in the input.
struct alignas(16) TapTable {
  // In bytes, from the position's input pixel and the group's first channel.
  std::int64_t offset[kMostStepElements];
  std::uint32_t bit[kMostStepElements];  // of its tap in a position's mask, 0 behind the last number
  // Added to the position's input pixel; the last is kNoPixel behind the last number.
  std::int32_t pixel[kMostStepElements][4];
};
inline constexpr std::int32_t kNoPixel = -2147483647 - 1;
inline constexpr int kTapTables = 4;  // more than steps that are under way, and a power of two

inline constexpr int kRowTableBytes = 32 * kTilePositions;  // of InputRow, or Pixel of all columns
inline constexpr int kFlagBytes = 16;
inline constexpr int kMostSharedBytes = 101376;  // that every card from sm_80 on has for a block
inline constexpr int kTableBytes = kTapTables * sizeof(TapTable) + kRowTableBytes + kFlagBytes;
static_assert(sizeof(Pixel) * kTilePositions * kMostInterleave <= kRowTableBytes);
// Behind the products: where columns lie in the output; then what take_statistics adds up.
static_assert(sizeof(std::int64_t) * kTilePositions * kMostInterleave <= kTapTables * sizeof(TapTable));
static_assert(kThreads * sizeof(float) <= kTapTables * sizeof(TapTable));

// Floats from a line of the staging to the next: of pixels of a filter, or of filters of a pixel. A warp's
// accumulators are written to different banks.
EPICONV_HOST_DEVICE std::int32_t staging_pitch(const Geometry& g, bool words_are_filters) {
  return words_are_filters ? g.tile_filters + 8 : g.tile_columns() + 4;
}
EPICONV_HOST_DEVICE std::int32_t staging_bytes(const Geometry& g, bool words_are_filters) {
  return staging_pitch(g, words_are_filters) * 4 * (words_are_filters ? kTilePositions : g.tile_filters);
}
inline constexpr int kInputBytes = kTilePositions * kStepBytes;  // of a stage; filters follow
EPICONV_HOST_DEVICE std::int32_t stage_bytes(std::int32_t tile_filters) {
  return kInputBytes + tile_filters * kStepBytes;
}

}  // namespace epiconv::sm80
