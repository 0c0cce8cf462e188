// Where everything of a convolution lies while the portable kernel computes it: index arithmetic only, shared
// by the planner, the kernel and the tests.
//
// Every convolution has three spatial dimensions here; those that it lacks have one pixel. A dimension of the
// output is a number of phases, between which nothing is shared but the input: of a transposed convolution of
// stride s, output pixel s * j + phase meets every s-th tap or so (TapSeries), from input pixel j on; of an
// ordinary one there is one phase, and pixel j reads from input pixel s * j on. So a phase is a convolution
// over a grid of numbers j, the same for all phases; the last number of some phases may lie outside the
// output, and is dropped. No zero is multiplied but those that fill up pieces and steps.
//
// gemm_m are the grid's numbers: positions. A tile has a patch of them, whose extents over images, planes,
// rows and columns are powers of two. What it reads of the input is brought into shared memory in boxes: some
// channels (a block of them) of some pixels. In a joined dimension the box has every pixel that any tap of a
// position meets, so that a tap is a place in it; in one that is not, only those of a single tap.
//
// gemm_k are units, one for each box: taps of the dimensions that are not joined, and for each of these
// blocks of channels. In a unit it runs through the joined taps, and for each through pieces of 16 bytes of
// channels; it is cut into steps of eight pieces, the last of which is filled up with zeros.
//
// Packed weights are, for each phase, a PackedPhase; then, from a multiple of 128 bytes on, for each
// [phase][group][tile of filters][step] what lies in a stage of the pipeline: the filters' rows, and a
// PackedStep that says where the step's pieces lie in the box.
#pragma once

#include <cstdint>

#include "device/divisor.h"
#include "epiconv/export.h"

namespace epiconv::sm80 {

inline constexpr int kDims = 3;
inline constexpr int kPatchDims = 1 + kDims;  // images first
inline constexpr int kMostInterleave = 2;
inline constexpr int kPieceBytes = 16;  // of one row of ldmatrix
inline constexpr int kStepPieces = 8;
inline constexpr int kStepBytes = kStepPieces * kPieceBytes;
inline constexpr int kThreads = 256;
inline constexpr int kBarrierBytes = 8;
inline constexpr int kProductRows = 64;      // of a warpgroup
inline constexpr int kSliceRows = 16;        // of a slice of the output (im2col_slices.h)
inline constexpr int kStages = 3;            // of weights, in shared memory
inline constexpr int kMostBlockPhases = 64;  // that a block goes through

// Of a phase: how many steps of gemm_k, joined taps, and other taps it has; and what taps add to a position's
// input pixel, in each dimension offset, offset + step, …, so many times.
struct alignas(16) PackedPhase {
  std::int32_t steps, joined_taps, other_taps;
  std::int32_t offset[kDims], offset_step[kDims], count[kDims];
};

// Bytes from a position's place in the box to a step's pieces, or kNoPiece: first to the even ones, which
// half of a warp's lanes reads, then to the others.
struct alignas(16) PackedStep {
  std::int32_t at[kStepPieces];

  EPICONV_HOST_DEVICE static int place(int piece) { return piece % 2 * (kStepPieces / 2) + piece / 2; }
};
inline constexpr std::int32_t kNoPiece = -1;

// The taps that a phase of one dimension meets: first, first + step, …; and what is added to the position's
// input pixel, offset, offset + offset_step, …
struct TapSeries {
  std::int32_t first, step, count;
  std::int32_t offset, offset_step;
};

// Bytes from the begin of a row of kStepBytes to a piece of it. Eight rows that follow each other have the
// same piece in different banks.
EPICONV_HOST_DEVICE std::int32_t swizzled(std::int32_t row, std::int32_t piece) {
  return (piece ^ (row & (kStepPieces - 1))) * kPieceBytes;
}

struct Geometry {
  std::int64_t batch;
  std::int32_t groups, channels, filters;  // the latter of a group
  std::int32_t input[kDims], output[kDims], taps[kDims];
  std::int32_t stride[kDims], dilation[kDims], padding[kDims];
  bool transposed;

  std::int32_t phases[kDims];  // 1 unless transposed
  std::int32_t grid[kDims];    // positions of an image

  // ---- Tiles
  std::int32_t tile_filters;            // 16, 32, 64 or 128
  std::int32_t tile_positions;          // 32 to 256
  bool has_warpgroups;                  // whose products they are (warpgroup_mainloop.h)
  bool filters_are_rows;                // of words, and of warps' products; else positions
  std::int32_t row_warp_bits;           // logarithm of how many warps share the rows; others the columns
  bool is_linear;                       // a tile's positions follow each other, instead of a patch
  std::int32_t patch_bits[kPatchDims];  // logarithms of a patch's extents
  Divisor patches[kPatchDims];          // in a dimension
  std::int32_t position_tiles;          // in all
  std::int32_t interleave;              // column phases that are stored together: all, or 1
  std::int32_t block_phases;            // that a block goes through
  Divisor splits, filter_tiles, tile_phases, group_count;  // of which a position tile has so many blocks
  Divisor phases_hw, phases_w;                             // phases of a depth, of a row

  // ---- Instead of boxes (im2col_conv.h)
  bool is_im2col;                   // the copy engine brings what a tap meets of a tile's positions
  bool im2col_lines;                // it brings lines of a channel's pixels, as they lie (im2col_lines.h)
  bool warpgroups_share_rows;       // of the products' matrix: each has half of the columns, else of the rows
  std::int32_t im2col_teams;        // of two warpgroups, each with tiles of its own
  std::int32_t im2col_stages;       // of a team: of a step's positions and weights, in shared memory
  std::int32_t im2col_cluster;      // blocks whose tiles have the same filters, which both bring; 1 or 2
  std::int32_t im2col_workers;      // teams of all blocks, or of all clusters
  std::int32_t im2col_whole_tiles;  // that one team multiplies each; of the others
  std::int32_t im2col_share;        // each has so many steps, which follow each other through tiles
  std::int32_t im2col_slots;        // of a warp, for slices of the output on their way; 0: stored directly
  std::int32_t im2col_slice_bytes;  // of a row of a slice
  bool im2col_copies_slices;        // by their warps: the copy engine cannot

  // ---- Boxes
  bool joined[kDims];
  bool is_resident;                     // all phases of a block read one and the same box
  std::int32_t box[kDims];              // extents
  std::int32_t box_low[kDims];          // what the first pixel's tap adds to a position's input pixel
  std::int32_t box_step[kDims];         // input pixels from a pixel of the box to the next
  std::int32_t box_advance[kDims];      // of the box's pixels, from a position to the next
  std::int32_t box_pixels;              // of all images
  Divisor box_row, box_plane, box_all;  // pixels of a row, of a plane, of an image's part
  std::int32_t pixel_bytes;             // from a pixel to the next
  std::int32_t boxes, pixel_tables;     // in shared memory

  std::int32_t filter_operands;  // of the epilogue, that have one element for each filter
  std::int32_t chunk_sums;       // of a thread, that the epilogue computes at once

  // ---- gemm_k
  std::int32_t element_bytes, piece_elements;  // of what is multiplied
  Divisor block_pieces;                        // of a block of channels
  std::int32_t channel_blocks, last_pieces;    // the latter of the last block
  std::int32_t most_steps;                     // of the phase with the most

  EPICONV_HOST_DEVICE std::int32_t all_phases() const { return phases[0] * phases[1] * phases[2]; }
  EPICONV_HOST_DEVICE std::int32_t patch(int d) const { return 1 << patch_bits[d]; }
  // Only kernels compiled for one plan have tiles that are linear.
  EPICONV_HOST_DEVICE bool has_linear_tiles() const {
#if defined(__CUDA_ARCH__) && !defined(EPICONV_COMPILED_MATH)
    return false;
#else
    return is_linear;
#endif
  }
  EPICONV_HOST_DEVICE std::int32_t image_positions() const { return grid[0] * grid[1] * grid[2]; }
  // Whether no position of a tile lies outside the output.
  EPICONV_HOST_DEVICE bool has_whole_tiles() const {
    if (has_linear_tiles() && batch * image_positions() % tile_positions != 0) return false;
    bool are_whole = has_linear_tiles() || batch % patch(0) == 0;
    for (int d = 0; d < kDims; ++d) {
      are_whole = are_whole && output[d] == grid[d] * phases[d];
      are_whole = are_whole && (has_linear_tiles() || grid[d] % patch(1 + d) == 0);
    }
    return are_whole;
  }
  EPICONV_HOST_DEVICE std::int32_t tile_columns() const { return tile_positions * interleave; }
  // Input pixels from a position to the next.
  EPICONV_HOST_DEVICE std::int32_t advance(int d) const { return transposed ? 1 : stride[d]; }
  // Blocks of a position tile.
  EPICONV_HOST_DEVICE std::int64_t position_blocks() const {
    return std::int64_t{splits.divisor} * filter_tiles.divisor * tile_phases.divisor * group_count.divisor;
  }
  EPICONV_HOST_DEVICE std::int32_t pieces(std::int32_t block) const {
    return block == channel_blocks - 1 ? last_pieces : static_cast<std::int32_t>(block_pieces.divisor);
  }
  EPICONV_HOST_DEVICE std::int32_t unit_steps(std::int32_t joined_taps, std::int32_t block) const {
    return (joined_taps * pieces(block) + kStepPieces - 1) / kStepPieces;
  }
  // Of the units of a tap that is not joined.
  EPICONV_HOST_DEVICE std::int32_t units_steps(std::int32_t joined_taps) const {
    return (channel_blocks - 1) * unit_steps(joined_taps, 0) + unit_steps(joined_taps, channel_blocks - 1);
  }
  EPICONV_HOST_DEVICE std::int32_t box_bytes() const { return box_pixels * pixel_bytes; }

  // Of a phase in packed weights, and of a step, in bytes.
  EPICONV_HOST_DEVICE std::int64_t packed_phase(std::int32_t phase) const {
    return std::int64_t{phase} * static_cast<std::int64_t>(sizeof(PackedPhase));
  }
  // Bytes of a step of a tile of filters; its PackedStep are the last ones, where there are boxes.
  EPICONV_HOST_DEVICE std::int32_t step_bytes() const {
    return tile_filters * kStepBytes + (is_im2col ? 0 : static_cast<std::int32_t>(sizeof(PackedStep)));
  }
  // From a stage of the pipeline to the next: those of warpgroups are swizzled by their addresses.
  EPICONV_HOST_DEVICE std::int32_t stage_bytes() const {
    constexpr std::int32_t kSwizzledBytes = 1024;
    return has_warpgroups ? (step_bytes() + kSwizzledBytes - 1) / kSwizzledBytes * kSwizzledBytes
                          : step_bytes();
  }
  EPICONV_HOST_DEVICE std::int64_t packed_step(std::int32_t phase, std::int32_t group,
                                               std::int32_t filter_tile, std::int32_t step) const {
    const std::int64_t phases = (packed_phase(all_phases()) + 127) / 128 * 128;
    const std::int64_t tile =
        (std::int64_t{phase} * groups + group) * static_cast<std::int32_t>(filter_tiles.divisor) +
        filter_tile;
    return phases + (tile * most_steps + step) * step_bytes();
  }

  // Of the products' matrix.
  EPICONV_HOST_DEVICE bool positions_are_rows() const { return !filters_are_rows || im2col_lines; }
  // An element's channel, of a piece of packed weights whose first one is `channel`: where lines are read, a
  // thread has channels that follow each other in different pieces (im2col_lines.h).
  EPICONV_HOST_DEVICE std::int32_t channel_of(std::int32_t channel, std::int32_t element) const {
    if (!im2col_lines || element_bytes != 4) return channel + element;
    return (channel & ~7) + 2 * element + (channel >> 2 & 1);
  }

  // The filter of a tile that a row of packed weights is. Sums of two columns of a product lie side by side
  // in a thread: where filters are columns, of 16 a thread has four that lie side by side in the output.
  EPICONV_HOST_DEVICE std::int32_t filter_of_row(std::int32_t row) const {
    if (!is_im2col || filters_are_rows) return row;
    return (row & ~15) | (row >> 1 & 3) << 2 | (row >> 3 & 1) << 1 | (row & 1);
  }
  // Bytes of what a step has of positions, and of both; of im2col_conv.h.
  EPICONV_HOST_DEVICE std::int32_t im2col_position_bytes() const { return tile_positions * kStepBytes; }
  EPICONV_HOST_DEVICE std::int32_t im2col_bytes() const {
    return (tile_positions + tile_filters) * kStepBytes;
  }
  EPICONV_HOST_DEVICE std::int32_t im2col_slots_of_all() const { return im2col_teams * 8 * im2col_slots; }

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

// A phase, as a number in each dimension.
struct Phase {
  std::int32_t of[kDims];

  EPICONV_HOST_DEVICE static Phase at(const Geometry& g, std::int32_t number) {
    const std::int32_t depth = g.phases_hw.quotient(number);
    const std::int32_t rest = number - depth * static_cast<std::int32_t>(g.phases_hw.divisor);
    const std::int32_t row = g.phases_w.quotient(rest);
    return {{depth, row, rest - row * static_cast<std::int32_t>(g.phases_w.divisor)}};
  }
};

// What a phase meets.
struct PhaseTaps {
  TapSeries series[kDims];

  EPICONV_HOST_DEVICE static PhaseTaps of(const Geometry& g, const Phase& phase) {
    PhaseTaps result;
    for (int d = 0; d < kDims; ++d) result.series[d] = g.series(d, phase.of[d]);
    return result;
  }
  // Of the joined dimensions, or of the others.
  EPICONV_HOST_DEVICE std::int32_t count(const Geometry& g, bool joined) const {
    std::int32_t product = 1;
    for (int d = 0; d < kDims; ++d) product *= g.joined[d] == joined ? series[d].count : 1;
    return product;
  }
  EPICONV_HOST_DEVICE std::int32_t steps(const Geometry& g) const {
    const std::int32_t joined = count(g, true);
    return joined > 0 ? count(g, false) * g.units_steps(joined) : 0;
  }
  EPICONV_HOST_DEVICE PackedPhase packed(const Geometry& g) const {
    PackedPhase result{steps(g), count(g, true), count(g, false), {}, {}, {}};
    for (int d = 0; d < kDims; ++d) {
      result.offset[d] = series[d].offset;
      result.offset_step[d] = series[d].offset_step;
      result.count[d] = series[d].count;
    }
    return result;
  }
};

// Numbers of a dimension's taps: `number` counts those of the dimensions that are joined, or of the others,
// the last dimension's first; the rest are 0.
EPICONV_HOST_DEVICE void spread_taps(const Geometry& g, const std::int32_t (&count)[kDims],
                                     std::int32_t number, bool joined, std::int32_t (&at)[kDims]) {
  for (int d = kDims - 1; d >= 0; --d) {
    if (g.joined[d] != joined) continue;
    const std::int32_t rest = number / count[d];
    at[d] = number - rest * count[d];
    number = rest;
  }
}

// A piece of a step: the group's channels from `channel` on, as many as it has, and a tap of each dimension's
// series; where it lies in the box. `exists` is false of those that fill up a unit.
struct Reduced {
  bool exists;
  std::int32_t channel;
  std::int32_t at[kDims];
  std::int32_t box_offset;

  EPICONV_HOST_DEVICE static Reduced of(const Geometry& g, const PhaseTaps& taps, std::int32_t step,
                                        std::int32_t piece) {
    const std::int32_t joined = taps.count(g, true), per_tap = g.units_steps(joined);
    const std::int32_t other = step / per_tap, in_tap = step - other * per_tap;
    const std::int32_t full = g.unit_steps(joined, 0);
    const std::int32_t last = g.channel_blocks - 1;
    const std::int32_t block = in_tap / full < last ? in_tap / full : last;
    const std::int32_t number = (in_tap - block * full) * kStepPieces + piece;
    const std::int32_t pieces = g.pieces(block), tap = number / pieces, in_block = number - tap * pieces;
    Reduced result{tap < joined, 0, {}, kNoPiece};
    if (!result.exists) return result;
    const auto before = block * static_cast<std::int32_t>(g.block_pieces.divisor);
    result.channel = (before + in_block) * g.piece_elements;
    const std::int32_t count[kDims] = {taps.series[0].count, taps.series[1].count, taps.series[2].count};
    spread_taps(g, count, other, false, result.at);
    spread_taps(g, count, tap, true, result.at);
    std::int32_t pixel = 0;
    for (int d = 0; d < kDims; ++d) {
      const TapSeries& series = taps.series[d];
      const std::int32_t added = series.offset + result.at[d] * series.offset_step - g.box_low[d];
      pixel = pixel * g.box[d] + (g.joined[d] ? added : 0);
    }
    result.box_offset = pixel * g.pixel_bytes + in_block * kPieceBytes;
    return result;
  }
  // The filter's tap.
  EPICONV_HOST_DEVICE std::int32_t tap(const PhaseTaps& taps, int d) const {
    return taps.series[d].first + at[d] * taps.series[d].step;
  }
};

// What a block computes. Blocks that follow each other are splits of a tile, then filters, phases and groups
// of the same positions.
struct Tile {
  std::int32_t split, filter_tile, group, position;
  std::int32_t filter;             // the first of the group's
  std::int32_t phase;              // the first of block_phases
  std::int32_t first[kPatchDims];  // image, and numbers, of its first position

  EPICONV_HOST_DEVICE static Tile of(const Geometry& g, std::int32_t block, std::int32_t first_position) {
    const auto take = [&](const Divisor& divisor) {
      const std::int32_t quotient = divisor.quotient(block);
      const std::int32_t rest = block - quotient * static_cast<std::int32_t>(divisor.divisor);
      block = quotient;
      return rest;
    };
    Tile tile;
    tile.split = take(g.splits);
    tile.filter_tile = take(g.filter_tiles);
    tile.filter = tile.filter_tile * g.tile_filters;
    tile.phase = take(g.tile_phases) * g.block_phases;
    tile.group = take(g.group_count);
    tile.position = block += first_position;
    if (g.has_linear_tiles()) {
      const std::int64_t first = std::int64_t{block} * g.tile_positions;
      const std::int32_t in_image = static_cast<std::int32_t>(first % g.image_positions());
      tile.first[0] = static_cast<std::int32_t>(first / g.image_positions());
      tile.first[1] = in_image / (g.grid[1] * g.grid[2]);
      tile.first[2] = in_image / g.grid[2] % g.grid[1];
      tile.first[3] = in_image % g.grid[2];
      return tile;
    }
    for (int d = kPatchDims - 1; d > 0; --d) tile.first[d] = take(g.patches[d]) << g.patch_bits[d];
    tile.first[0] = block << g.patch_bits[0];
    return tile;
  }
};

// One of a tile's positions. It may lie outside of the grid, and behind the last image.
struct Position {
  std::int32_t at[kPatchDims];  // in the patch

  EPICONV_HOST_DEVICE static Position of(const Geometry& g, std::int32_t index) {
    Position result;
    for (int d = kPatchDims - 1; d >= 0; --d) {
      result.at[d] = index & ((1 << g.patch_bits[d]) - 1);
      index >>= g.patch_bits[d];
    }
    return result;
  }
  // Of a tile's, in the grid. That of a linear tile may lie behind the last image.
  EPICONV_HOST_DEVICE static Position in_grid(const Geometry& g, const Tile& tile, std::int32_t index) {
    if (!g.has_linear_tiles()) {
      Position result = of(g, index);
      for (int d = 0; d < kPatchDims; ++d) result.at[d] += tile.first[d];
      return result;
    }
    Position result{{tile.first[0], tile.first[1], tile.first[2], tile.first[3]}};
    std::int32_t carried = index;
    for (int d = kDims; d > 0; --d) {
      carried += result.at[d];
      result.at[d] = carried % g.grid[d - 1];
      carried /= g.grid[d - 1];
    }
    result.at[0] += carried;
    return result;
  }
  // The pixel of the box.
  EPICONV_HOST_DEVICE std::int32_t box_pixel(const Geometry& g) const {
    std::int32_t pixel = at[0];
    for (int d = 0; d < kDims; ++d) pixel = pixel * g.box[d] + at[1 + d] * g.box_advance[d];
    return pixel;
  }
  // Bytes from the begin of the tile's box.
  EPICONV_HOST_DEVICE static std::int32_t place(const Geometry& g, const Tile& tile, std::int32_t index) {
    if (!g.has_linear_tiles()) return of(g, index).box_pixel(g) * g.pixel_bytes;
    return (in_grid(g, tile, index).box_pixel(g) - in_grid(g, tile, 0).box_pixel(g)) * g.pixel_bytes;
  }
};

// A pixel of a box: its image, and where it lies in the input, or outside.
struct BoxPixel {
  std::int32_t n;
  std::int32_t at[kDims];

  // `other`: which of the taps that are not joined.
  EPICONV_HOST_DEVICE static BoxPixel of(const Geometry& g, const Tile& tile, const PackedPhase& phase,
                                         std::int32_t other, std::int32_t index) {
    std::int32_t tap[kDims] = {};
    spread_taps(g, phase.count, other, false, tap);
    if (g.has_linear_tiles()) return of_raster(g, tile, phase, tap, index);
    const auto take = [&](const Divisor& divisor) {
      const std::int32_t quotient = divisor.quotient(index);
      index -= quotient * static_cast<std::int32_t>(divisor.divisor);
      return quotient;
    };
    BoxPixel pixel;
    pixel.n = tile.first[0] + take(g.box_all);
    pixel.at[0] = take(g.box_plane);
    pixel.at[1] = take(g.box_row);
    pixel.at[2] = index;
    for (int d = 0; d < kDims; ++d) {
      const std::int32_t low = g.joined[d] ? g.box_low[d] : phase.offset[d] + tap[d] * phase.offset_step[d];
      pixel.at[d] = pixel.at[d] * g.box_step[d] + tile.first[1 + d] * g.advance(d) + low;
    }
    return pixel;
  }

 private:
  // The box of a linear tile is a part of a raster of all images, each with what its taps meet around it.
  EPICONV_HOST_DEVICE static BoxPixel of_raster(const Geometry& g, const Tile& tile, const PackedPhase& phase,
                                                const std::int32_t (&tap)[kDims], std::int32_t index) {
    std::int32_t number = Position::in_grid(g, tile, 0).box_pixel(g) + index;
    BoxPixel pixel;
    for (int d = kDims - 1; d >= 0; --d) {
      const std::int32_t low = g.joined[d] ? g.box_low[d] : phase.offset[d] + tap[d] * phase.offset_step[d];
      pixel.at[d] = number % g.box[d] * g.box_step[d] + low;
      number /= g.box[d];
    }
    pixel.n = number;
    return pixel;
  }
};

// Of a phase: how many of the grid's numbers lie in the output, in each dimension.
EPICONV_HOST_DEVICE std::int32_t numbers_in(const Geometry& g, int d, std::int32_t phase) {
  return g.grid[d] - ((g.grid[d] - 1) * g.phases[d] + phase < g.output[d] ? 0 : 1);
}

// Bytes of shared memory that a block may have: on every card from sm_80 on, and so that two of them share a
// multiprocessor of sm_90.
inline constexpr int kMostSharedBytes = 101376;
inline constexpr int kMostWarpgroupBytes = 115712;
inline constexpr int kMostBlockBytes = 232448;  // of a block alone on one of sm_90
EPICONV_HOST_DEVICE int most_shared_bytes(const Geometry& g) {
  if (g.is_im2col) return kMostBlockBytes;
  return g.has_warpgroups ? kMostWarpgroupBytes : kMostSharedBytes;
}

// Where the parts of shared memory begin.
struct SharedLayout {
  std::int32_t places, pixels, flag, barriers, zeros, tile, phases, filter_operands, boxes, stages, words,
      staging, scratch, bytes;
  std::int32_t tables, slots, slot_barriers;  // of im2col_conv.h; tables of each warpgroup

  static SharedLayout of(const Geometry& g, bool takes_statistics);
};
inline constexpr int kColumnBytes = 16;  // of a position in the table of columns, which comes first
inline constexpr int kBlockPhaseBytes = 96;
inline constexpr int kThreadSums = 32;  // at most

// Floats from a row of the staging to the next.
EPICONV_HOST_DEVICE std::int32_t staging_pitch(const Geometry& g) {
  const std::int32_t columns = g.filters_are_rows ? g.tile_columns() : g.tile_filters;
  return columns + (g.has_warpgroups && !g.filters_are_rows ? 8 : 4);
}

}  // namespace epiconv::sm80
