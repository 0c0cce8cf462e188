// What sizes of tiles, boxes and stages of the portable convolution may be, and that the parts of shared
// memory lie behind each other.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "expectations.h"
#include "sm80/plan_geometry.h"

namespace implicit_layout {

using namespace epiconv::sm80;
using expectations::expect;

inline void expect_sizes(const GeometryProblem& p, const Geometry& g) {
  const std::int32_t rows = g.filters_are_rows ? g.tile_filters : g.tile_positions;
  const std::int32_t columns = g.filters_are_rows ? g.tile_positions : g.tile_filters;
  using Sizes = std::vector<std::array<std::int32_t, 2>>;
  const Sizes of_warps = {{128, 64}, {64, 128}, {32, 256}, {16, 256}};
  const Sizes of_warpgroups = {{128, 128}, {64, 256}, {64, 128}, {32, 256}, {32, 128}};
  const Sizes& sizes = p.has_warpgroups ? of_warpgroups : of_warps;
  expect(std::ranges::count(sizes, std::array{g.tile_filters, g.tile_columns()}) == 1, "a tile of ",
         g.tile_filters, " x ", g.tile_positions);
  if (p.has_warpgroups) {
    expect(g.tile_positions % (2 * kProductRows) == 0, g.tile_positions, " positions of two warpgroups");
  } else {
    const bool is_small = g.tile_filters == 16;
    expect(!is_small || (g.filters_are_rows && g.interleave == 1 && g.row_warp_bits == 0), "16 filters");
    expect(rows == 32 << g.row_warp_bits || is_small, rows, " rows of ", 1 << g.row_warp_bits, " warps");
    expect(columns == (kThreads >> g.row_warp_bits) / g.interleave, columns, " columns");
  }
  expect(g.interleave == 1 || (g.interleave == kMostInterleave && g.filters_are_rows), "interleave");
  const int bits = g.patch_bits[0] + g.patch_bits[1] + g.patch_bits[2] + g.patch_bits[3];
  expect(1 << bits == g.tile_positions || g.is_linear, "a patch of ", 1 << bits, " positions");
  expect(!g.is_linear || (p.has_warpgroups && !p.takes_statistics), "a linear tile");
  const std::int64_t phases = std::int64_t{g.tile_phases.divisor} * g.block_phases;
  expect(phases == g.all_phases() && g.block_phases % g.interleave == 0, "phases of blocks");
  const auto splits = static_cast<std::int32_t>(g.splits.divisor);
  expect(splits == 1 || g.block_phases == 1, splits, " splits of several phases");
  expect((splits - 1) * ((g.most_steps + splits - 1) / splits) < g.most_steps, "a split without steps");
  expect(!p.takes_statistics || (g.patch_bits[0] == 0 && g.block_phases == g.interleave),
         "a tile of several images or rows");
  expect(g.is_resident ? g.pixel_tables == 1 && g.boxes == 1 && g.channel_blocks == 1
                       : g.boxes >= 2 && g.block_phases == g.interleave,
         "boxes of a block");
  const bool has_many = p.has_warpgroups && g.pixel_tables == 1 && g.boxes <= g.channel_blocks;
  expect(g.boxes <= 2 || (has_many && g.boxes <= 4), g.boxes, " boxes");
  // Pixels that follow each other have the same piece in different banks.
  expect(g.pixel_bytes >= g.pieces(0) * kPieceBytes && g.pixel_bytes % 32 == 16, g.pixel_bytes, " bytes");
}

inline void expect_layout(const GeometryProblem& p, const Geometry& g) {
  const SharedLayout at = SharedLayout::of(g, p.takes_statistics);
  expect(at.bytes <= (p.has_warpgroups ? kMostWarpgroupBytes : kMostSharedBytes), at.bytes,
         " bytes of shared memory");
  std::int32_t end = 0;  // of the parts so far
  const auto expect_part = [&](const char* part, std::int32_t begin, std::int64_t bytes, int alignment) {
    expect(begin >= end && begin % alignment == 0, part, " at byte ", begin, ", behind ", end);
    end = static_cast<std::int32_t>(begin + bytes);
    expect(end <= at.bytes, part, " up to byte ", end, " of ", at.bytes);
  };
  expect_part("columns", 0, g.tile_positions * kColumnBytes, 16);
  expect_part("places", at.places, g.tile_positions * 4, 4);
  expect_part("pixels", at.pixels, std::int64_t{g.pixel_tables} * g.box_pixels * 8, 8);
  expect_part("flag", at.flag, 4, 4);
  if (p.has_warpgroups) expect_part("barriers", at.barriers, 2 * kStages * kBarrierBytes, 8);
  expect_part("zeros", at.zeros, kPieceBytes, 16);
  expect_part("tile", at.tile, sizeof(Tile), alignof(Tile));
  expect_part("phases", at.phases, std::int64_t{g.block_phases} * kBlockPhaseBytes, 16);
  expect_part("filter operands", at.filter_operands, std::int64_t{p.filter_operands} * g.tile_filters * 4,
              16);
  expect_part("boxes", at.boxes, std::int64_t{g.boxes} * g.box_bytes(), 16);
  const int alignment = p.has_warpgroups ? 1024 : 16;
  expect_part("stages", at.stages, std::int64_t{kStages} * g.stage_bytes(), alignment);
  expect(g.step_bytes() % 16 == 0 && g.stage_bytes() >= g.step_bytes(), "steps of ", g.step_bytes(),
         " bytes");
  expect(g.stage_bytes() % alignment == 0, "stages of ", g.stage_bytes(), " bytes");
  // Words may take the place of what is not needed behind the last product.
  if (p.has_warpgroups) {
    if (at.staging == at.boxes && g.block_phases == g.interleave) end = at.boxes;
  } else {
    if (at.words == at.boxes && g.block_phases == 1) end = at.boxes;
    expect(g.tile_filters * g.tile_columns() <= kThreads * kThreadSums, "words of a thread");
    expect_part("words", at.words, std::int64_t{kThreads} * (kThreadSums - p.chunk_sums) * 4, 16);
    if (!p.takes_statistics) return;
  }
  const std::int32_t rows = g.filters_are_rows ? g.tile_filters : g.tile_positions;
  const std::int32_t columns = g.filters_are_rows ? g.tile_columns() : g.tile_filters;
  expect(staging_pitch(g) >= columns && staging_pitch(g) % 4 == 0, "a pitch of ", staging_pitch(g));
  expect_part("staging", at.staging, std::int64_t{rows} * staging_pitch(g) * 4, 16);
  if (p.takes_statistics) expect_part("scratch", at.scratch, kThreads * 4, 4);
}

}  // namespace implicit_layout
