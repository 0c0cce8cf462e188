// Where everything of a convolution lies while the portable kernel computes it: index arithmetic only, shared
// by the planner, the kernel and the tests.
//
// Every convolution has three spatial dimensions here; those that it lacks have one pixel. A dimension of the
// output is a number of phases, between which nothing is shared but the input: of a transposed convolution of
// stride s, output pixel s * j + phase meets every s-th tap or so (TapSeries), from input pixel j on; of an
// ordinary one there is one phase, and pixel j reads from input pixel s * j on. So a phase is a convolution
// over a grid of numbers j, the same for all phases; the last number of some phases may lie outside the
// output, and is dropped. No zero is multiplied but those that fill up the last step.
//
// gemm_m are the grid's numbers, image by image: positions. gemm_k are channels and taps of a phase: blocks
// of block_channels channels; in a block taps, in a tap channels. It is cut into steps of kStepBytes, which
// are rows of a pipeline stage in shared memory, of positions and of filters alike.
//
// Packed weights are, for each phase, a PackedPhase, and for each number of its gemm_k a PackedEntry that
// says what it is; then, from a multiple of 128 bytes on, the filters' rows, [phase][group][step][filter], as
// they lie in a stage.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "device/divisor.h"
#include "epiconv/export.h"

namespace epiconv::sm80 {

inline constexpr int kDims = 3;
inline constexpr int kTilePositions = 128;
inline constexpr int kMostTileFilters = 128;
inline constexpr int kMostInterleave = 2;
inline constexpr int kStepBytes = 64;
inline constexpr int kPieceBytes = 16;  // of one row of ldmatrix
inline constexpr int kStepPieces = kStepBytes / kPieceBytes;
inline constexpr int kMostStepElements = kStepBytes / 2;
inline constexpr int kFilterRows = 8;  // packed filters of a group are a multiple of this
inline constexpr int kThreads = 256;
inline constexpr int kMostStages = 3;

inline constexpr int kPackedPhaseBytes = 64;
inline constexpr int kPackedEntryBytes = 32;
inline constexpr int kMaskTaps = 32;  // of which a position's mask tells which meet the input

// Of a phase: how many numbers and steps of gemm_k it has; and what taps add to a position's input pixel, in
// each dimension offset, offset + step, …, so many times.
struct alignas(16) PackedPhase {
  std::int32_t elements, steps, taps;
  std::int32_t offset[kDims], offset_step[kDims], count[kDims];
};

// What a number of gemm_k adds to a position's input pixel; its channel, -1 behind the last number; and which
// of the phase's taps it is, the last dimension's first.
struct alignas(16) PackedEntry {
  std::int32_t pixel[kDims];
  std::int32_t channel;
  std::int32_t tap;
};

// The taps that a phase of one dimension meets: first, first + step, …; and what is added to the position's
// input pixel, offset, offset + offset_step, …
struct TapSeries {
  std::int32_t first, step, count;
  std::int32_t offset, offset_step;
};

// Bytes from the begin of a row of kStepBytes to a piece of it. Eight rows that follow each other have the
// same piece in different banks.
EPICONV_HOST_DEVICE std::int32_t swizzled(std::int32_t row, std::int32_t piece) {
  return (piece ^ (row >> 1 & 3)) * kPieceBytes;
}

struct Geometry {
  std::int64_t batch;
  std::int32_t groups, channels, filters;  // the latter of a group
  std::int32_t input[kDims], output[kDims], taps[kDims];
  std::int32_t stride[kDims], dilation[kDims], padding[kDims];
  bool transposed;

  std::int32_t phases[kDims];  // 1 unless transposed
  Divisor plane, row;          // positions of the grid's planes and rows
  std::int32_t image_positions;
  bool by_image;                                           // no tile has positions of several images
  Divisor image_tiles;                                     // of positions, where by_image
  std::int32_t position_tiles;                             // in all
  std::int32_t tile_filters;                               // 32, 64 or 128
  std::int32_t interleave;                                 // column phases of a tile: all, or one
  Divisor splits, filter_tiles, tile_phases, group_count;  // of which a position tile has so many blocks
  Divisor phases_hw, phases_w;                             // of tile_phases: those of a depth, of a row

  std::int32_t element_bytes;                  // of what is multiplied
  std::int32_t step_elements, piece_elements;  // of a row of a stage, of a piece of it
  std::int32_t block_channels;
  std::int32_t most_steps;   // of the phase with the most taps
  std::int32_t filter_rows;  // packed rows of a group

  EPICONV_HOST_DEVICE std::int32_t all_phases() const { return phases[0] * phases[1] * phases[2]; }
  EPICONV_HOST_DEVICE std::int32_t tile_columns() const { return kTilePositions * interleave; }
  // Input pixels from a position to the next.
  EPICONV_HOST_DEVICE std::int32_t advance(int d) const { return transposed ? 1 : stride[d]; }
  // Blocks of a position tile.
  EPICONV_HOST_DEVICE std::int64_t position_blocks() const {
    return std::int64_t{splits.divisor} * filter_tiles.divisor * tile_phases.divisor * group_count.divisor;
  }
  // Of a phase in packed weights, of a number of its gemm_k, and of the rows of a step, in bytes.
  EPICONV_HOST_DEVICE std::int64_t packed_phase(std::int32_t phase) const {
    return std::int64_t{phase} * kPackedPhaseBytes;
  }
  EPICONV_HOST_DEVICE std::int64_t packed_entry(std::int32_t phase, std::int32_t k) const {
    return packed_phase(all_phases()) +
           (std::int64_t{phase} * most_steps * step_elements + k) * kPackedEntryBytes;
  }
  EPICONV_HOST_DEVICE std::int64_t packed_step(std::int32_t phase, std::int32_t group,
                                               std::int32_t step) const {
    const std::int64_t entries = (packed_entry(all_phases(), 0) + 127) / 128 * 128;
    const std::int64_t before = (std::int64_t{phase} * groups + group) * most_steps + step;
    return entries + before * filter_rows * kStepBytes;
  }

  EPICONV_HOST_DEVICE TapSeries series(int d, std::int32_t phase) const {
    if (!transposed) return {0, 1, taps[d], -padding[d], dilation[d]};
    // Tap t puts input pixel i at output pixel i * stride + t * dilation - padding, so that i is
    // (output pixel + padding - t * dilation) / stride, where that leaves nothing.
    const std::int32_t common = common_divisor(stride[d], dilation[d]);
    const std::int32_t step = stride[d] / common, from = phase + padding[d];
    for (std::int32_t t = 0; t < step && t < taps[d]; ++t) {
      const std::int32_t rest = from - t * dilation[d];
      if (rest % stride[d] != 0) continue;
      return {t, step, (taps[d] - t + step - 1) / step, rest / stride[d], -(dilation[d] / common)};
    }
    return {0, 1, 0, 0, 0};
  }

  EPICONV_HOST_DEVICE static std::int32_t common_divisor(std::int32_t a, std::int32_t b) {
    while (b != 0) {
      const std::int32_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
};

// What a phase meets.
struct PhaseTaps {
  TapSeries series[kDims];
  std::int32_t count;
  std::int32_t elements;  // of gemm_k

  EPICONV_HOST_DEVICE static PhaseTaps of(const Geometry& g, const std::int32_t (&phase)[kDims]) {
    PhaseTaps result;
    result.count = 1;
    for (int d = 0; d < kDims; ++d) {
      result.series[d] = g.series(d, phase[d]);
      result.count *= result.series[d].count;
    }
    result.elements = result.count * g.channels;
    return result;
  }
  EPICONV_HOST_DEVICE PackedPhase packed(const Geometry& g) const {
    PackedPhase result{elements, (elements + g.step_elements - 1) / g.step_elements, count, {}, {}, {}};
    for (int d = 0; d < kDims; ++d) {
      result.offset[d] = series[d].offset;
      result.offset_step[d] = series[d].offset_step;
      result.count[d] = series[d].count;
    }
    return result;
  }
};

// One number of gemm_k: a channel of the group, and a tap of each dimension's series.
struct Reduced {
  std::int32_t channel;
  std::int32_t at[kDims];

  // `k` is one of the taps.count * g.channels that there are.
  EPICONV_HOST_DEVICE static Reduced of(const Geometry& g, const PhaseTaps& taps, std::uint32_t k) {
    const std::uint32_t span = static_cast<std::uint32_t>(taps.count) * g.block_channels;
    const std::uint32_t block = k / span, in_block = k - block * span, before = block * g.block_channels;
    const std::uint32_t left = g.channels - before, most = g.block_channels;
    const std::uint32_t channels = left < most ? left : most;
    const std::uint32_t tap = in_block / channels;
    const std::uint32_t row = tap / taps.series[2].count;
    const std::uint32_t plane = row / taps.series[1].count;
    return {static_cast<std::int32_t>(before + in_block - tap * channels),
            {static_cast<std::int32_t>(plane), static_cast<std::int32_t>(row - plane * taps.series[1].count),
             static_cast<std::int32_t>(tap - row * taps.series[2].count)}};
  }
  EPICONV_HOST_DEVICE PackedEntry packed(const PhaseTaps& taps) const {
    PackedEntry entry{{}, channel, (at[0] * taps.series[1].count + at[1]) * taps.series[2].count + at[2]};
    for (int d = 0; d < kDims; ++d) {
      entry.pixel[d] = taps.series[d].offset + at[d] * taps.series[d].offset_step;
    }
    return entry;
  }
  // The filter's tap.
  EPICONV_HOST_DEVICE std::int32_t tap(const PhaseTaps& taps, int d) const {
    return taps.series[d].first + at[d] * taps.series[d].step;
  }
};

// What a block computes. Blocks that follow each other are splits of a tile, then filters, phases and groups
// of the same positions.
struct Tile {
  std::int32_t split, filter, group, position;  // filter: the first of the group's
  std::int32_t phase[kDims];                    // of columns the first

  EPICONV_HOST_DEVICE static Tile of(const Geometry& g, std::int32_t block, std::int32_t first_position) {
    const auto take = [&](const Divisor& divisor) {
      const std::int32_t quotient = divisor.quotient(block);
      const std::int32_t rest = block - quotient * static_cast<std::int32_t>(divisor.divisor);
      block = quotient;
      return rest;
    };
    Tile tile;
    tile.split = take(g.splits);
    tile.filter = take(g.filter_tiles) * g.tile_filters;
    const std::int32_t phase = take(g.tile_phases);
    tile.group = take(g.group_count);
    tile.position = first_position + block;
    tile.phase[0] = g.phases_hw.quotient(phase);
    const std::int32_t in_depth = phase - tile.phase[0] * static_cast<std::int32_t>(g.phases_hw.divisor);
    tile.phase[1] = g.phases_w.quotient(in_depth);
    tile.phase[2] = in_depth - tile.phase[1] * static_cast<std::int32_t>(g.phases_w.divisor);
    return tile;
  }
  EPICONV_HOST_DEVICE std::int32_t phase_number(const Geometry& g, std::int32_t column_phase) const {
    return (phase[0] * g.phases[1] + phase[1]) * g.phases[2] + column_phase;
  }
};

// One of a tile's positions; behind the last one of its image, or of all, that one again.
struct Position {
  std::int32_t n;
  std::int32_t j[kDims];
  bool exists;

  EPICONV_HOST_DEVICE static Position of(const Geometry& g, std::int32_t tile, std::int32_t index) {
    Position result;
    std::int32_t number;
    if (g.by_image) {
      result.n = g.image_tiles.quotient(tile);
      number = (tile - result.n * static_cast<std::int32_t>(g.image_tiles.divisor)) * kTilePositions + index;
      result.exists = number < g.image_positions;
      if (!result.exists) number = g.image_positions - 1;
    } else {  // all of them fit 32 bits
      number = tile * kTilePositions + index;
      const auto all = static_cast<std::int32_t>(g.batch * g.image_positions);
      result.exists = number < all;
      if (!result.exists) number = all - 1;
      result.n = number / g.image_positions;
      number -= result.n * g.image_positions;
    }
    result.j[0] = g.plane.quotient(number);
    number -= result.j[0] * static_cast<std::int32_t>(g.plane.divisor);
    result.j[1] = g.row.quotient(number);
    result.j[2] = number - result.j[1] * static_cast<std::int32_t>(g.row.divisor);
    return result;
  }
};

// A pixel of the output; n = -1 where there is none.
struct Pixel {
  std::int32_t n, d, h, w;

  EPICONV_HOST_DEVICE static Pixel of(const Geometry& g, const Tile& tile, const Position& position,
                                      std::int32_t column_phase) {
    const Pixel pixel{position.n, position.j[0] * g.phases[0] + tile.phase[0],
                      position.j[1] * g.phases[1] + tile.phase[1],
                      position.j[2] * g.phases[2] + column_phase};
    const bool exists =
        position.exists && pixel.d < g.output[0] && pixel.h < g.output[1] && pixel.w < g.output[2];
    return exists ? pixel : Pixel{-1, 0, 0, 0};
  }
};

// Host side.
struct GeometryProblem {
  std::int64_t batch;
  std::int64_t groups, channels, filters;  // the latter of a group
  std::int64_t input[kDims], output[kDims], taps[kDims];
  std::int64_t stride[kDims], dilation[kDims], padding[kDims];
  bool transposed;
  int element_bytes;
  bool by_image;        // asked for
  bool stores_columns;  // pixels of a row of the output lie side by side
};

// "" and the geometry, or why 32-bit index arithmetic does not reach.
std::string plan_geometry(const GeometryProblem& problem, Geometry& geometry);
inline std::size_t packed_bytes(const Geometry& g) {
  return static_cast<std::size_t>(g.packed_step(g.all_phases(), 0, 0));
}

}  // namespace epiconv::sm80
