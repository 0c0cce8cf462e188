// What the portable kernel is launched with.
#pragma once

#include <cstdint>

#include "device/chunk.h"
#include "epiconv/conv_types.h"
#include "sm80/geometry.h"
#include "step.h"

namespace epiconv::sm80 {

inline constexpr int kTensorDims = 2 + kDims;  // (N, K, D, H, W)

// A tensor that is laid over the output; strides in elements, 0 where it has one element.
struct OutputTensor {
  std::int64_t strides[kTensorDims];
  DType dtype;
  Pattern pattern;             // of words: kOne, kWords or kScattered
  bool is_like_output;         // has its strides
  bool is_of_filters;          // has one element for each filter, or one
  std::int8_t filter_operand;  // that is read: its row in shared memory, or -1
  std::uint8_t place;          // of an operand, in ConvLaunch
};

struct EpilogueParameters {
  using T = float;
  OutputTensor output;
  OutputTensor operands[kNumOperandPlaces];
  std::uint8_t filter_operands[kNumOperandPlaces];  // places of those in shared memory, row by row
  std::int8_t staged_operand;  // the place of that of GeometryProblem::stages_operand, or -1
  bool in_rows;  // words, of filters of a pixel or of pixels of a filter, lie side by side in the output
  std::int32_t num_steps;
  std::int32_t num_before_norm;
  std::int32_t save_input;
  std::uint8_t fetches[kMaxSteps];
  Step<float> steps[kMaxSteps];
  std::int32_t num_slots;
};

struct InputTensor {
  std::int64_t strides[kTensorDims];  // (N, C, D, H, W), in elements
  bool is_float32;                    // else what is multiplied
  bool in_pieces;        // channels lie side by side, as many as a piece has at multiples of its size
  bool is_copied;        // in pieces, as they are
  bool is_rounded_late;  // these are rounded when they are multiplied
  Divisor box_pixels;
  PaddingMode padding_mode;

  EPICONV_HOST_DEVICE std::int32_t element_bytes() const { return is_float32 ? 4 : 2; }
};

// A GroupNorm's statistics of a tile: [row][filter], and how many values each is of. A row is of an image,
// and in it of a tile of positions and of a phase.
struct TileStatistics {
  float* means;
  float* squares;
  float* counts;
};

// Whether the kernel is compiled for one plan (compiled_conv.h), whose parameters are constants.
#ifdef EPICONV_COMPILED_MATH
inline constexpr bool kIsCompiled = true;
#else
inline constexpr bool kIsCompiled = false;
#endif

// What a plan knows.
struct ConvParameters {
  Geometry geometry;
  SharedLayout shared;
  ConvMath math;
  bool takes_statistics;
  InputTensor input;
  Divisor channel_blocks;
  EpilogueParameters epilogue;
};

// What a launch adds.
struct ConvLaunch {
  const void* input;
  const void* weights;  // packed
  void* output;
  const void* operands[kNumOperandPlaces];
  TileStatistics statistics;
  float* partial_sums;      // of splits: [block][accumulator][thread]; and of im2col_conv.h
  std::uint32_t* arrivals;  // of the splits of a tile, zero before the launch
  std::int32_t first_position_tile;
  bool stages_operand;  // its address allows it
};

// Whether rows of words are a whole image's pixels, which lie side by side.
EPICONV_HOST_DEVICE bool has_linear_rows(const Geometry& g) {
  return g.has_linear_tiles() && g.filters_are_rows;
}

inline constexpr std::int32_t kNowhere = 8;  // in no phase

// A position of a tile, in the output: in the table of columns, which comes first in shared memory.
struct alignas(16) Column {
  std::int64_t offset;   // of filter 0 in the output, in the phase 0 of each dimension
  std::int32_t outside;  // bits of dimensions: where it lies outside the output in late phases; kNowhere
  std::int32_t number;   // of the last dimension; of has_linear_rows in the image

  __device__ __forceinline__ static Column of(const ConvParameters& p, const Position& position) {
    const Geometry& g = p.geometry;
    const std::int32_t image = position.at[0];
    const auto& strides = p.epilogue.output.strides;
    Column column{image * strides[0], image < g.batch ? 0 : kNowhere, position.at[kDims]};
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      const std::int32_t number = position.at[1 + d];
      column.offset += std::int64_t{number} * g.phases[d] * strides[2 + d];
      if (d == kDims - 1) continue;
      if (number >= g.grid[d]) column.outside = kNowhere;
      if (number == g.grid[d] - 1) column.outside |= 1 << d;
    }
    if (has_linear_rows(g)) {
      column.number = (position.at[1] * g.grid[1] + position.at[2]) * g.grid[2] + position.at[3];
    }
    return column;
  }
};
static_assert(sizeof(Column) == kColumnBytes);

// A phase's place in the output; of several whose columns are stored together the first.
struct alignas(16) PhasePlace {
  std::int64_t offset;   // of the phase, and of the tile's first filter
  std::int32_t outside;  // dimensions in which numbers that are the last lie outside
  std::int32_t columns;  // of a row of the output, that are stored together, of all patches
  Phase phase;

  __device__ __forceinline__ static PhasePlace of(const ConvParameters& p, const Tile& tile,
                                                  std::int32_t number) {
    const Geometry& g = p.geometry;
    const auto& strides = p.epilogue.output.strides;
    PhasePlace place{(tile.group * g.filters + tile.filter) * strides[1], kNowhere, 0, Phase::at(g, number)};
    for (int d = 0; d < kDims; ++d) {
      place.offset += place.phase.of[d] * strides[2 + d];
      if (d < kDims - 1 && numbers_in(g, d, place.phase.of[d]) < g.grid[d]) place.outside |= 1 << d;
    }
    place.columns = g.interleave > 1 ? g.output[2] : numbers_in(g, 2, place.phase.of[2]);
    if (has_linear_rows(g)) place.columns = g.image_positions();
    return place;
  }
};

// A phase of a block, in shared memory.
struct BlockPhase {
  PackedPhase packed;
  PhasePlace place;
  std::int64_t weights;  // of the tile's first step, in bytes
};
static_assert(sizeof(BlockPhase) == kBlockPhaseBytes);

inline constexpr int kWordElements = 4;  // of a word of sums
inline constexpr int kWordBytes = 16;

}  // namespace epiconv::sm80
