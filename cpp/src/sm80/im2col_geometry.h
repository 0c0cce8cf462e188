// What the copy engine is told of an input whose pixels it brings tap by tap (im2col_conv.h): index
// arithmetic only, shared by the planner, the kernel and what makes the maps.
//
// Its "im2col" mode knows a box around the input, from `low` beside the first pixel to `high` beside the last
// one, through which it walks by the positions' advance; so the box has as many places as the grid has
// positions, and what it brings from one place on follows through rows and images. A tap is an offset, which
// is not negative.
#pragma once

#include "sm80/geometry.h"

namespace epiconv::sm80 {

inline constexpr int kMostMaps = 8;  // phases, each of which has a box of its own

// Dimensions of the tensor that the copy engine knows: channels, images, and spatial ones up to the first
// that is not trivial.
EPICONV_HOST_DEVICE constexpr int im2col_rank(const Geometry& g) {
  for (int d = 0; d < kDims - 1; ++d) {
    if (g.input[d] != 1 || g.output[d] != 1 || g.taps[d] != 1 || g.padding[d] != 0) return 2 + kDims - d;
  }
  return 3;
}

// Of a dimension and a phase in it.
struct Im2colRange {
  std::int32_t low, high, most_offset;

  EPICONV_HOST_DEVICE static std::int32_t low_of(const TapSeries& series) {
    const std::int32_t last = series.offset + (series.count - 1) * series.offset_step;
    return series.count == 0 ? 0 : series.offset < last ? series.offset : last;
  }
  EPICONV_HOST_DEVICE static Im2colRange of(const Geometry& g, int d, std::int32_t phase) {
    const TapSeries series = g.series(d, phase);
    const std::int32_t low = low_of(series), reach = (series.count - 1) * series.offset_step;
    return {low, low + (g.grid[d] - 1) * g.advance(d) - (g.input[d] - 1),
            series.count == 0 ? 0
            : reach < 0       ? -reach
                              : reach};
  }
};

// Tiles that teams go through: of a cluster's two blocks, that have the positions of one and the next tile,
// two at once, of which the last may lie behind the last image.
EPICONV_HOST_DEVICE std::int32_t im2col_tiles(const Geometry& g) {
  const std::int32_t positions = (g.position_tiles + g.im2col_cluster - 1) / g.im2col_cluster;
  return positions * static_cast<std::int32_t>(g.position_blocks());
}
// The tile that block number `rank` of a cluster has of such a one.
EPICONV_HOST_DEVICE Tile im2col_tile(const Geometry& g, std::int32_t number, std::int32_t rank) {
  if (g.im2col_cluster == 1) return Tile::of(g, number, 0);
  const auto of_position = static_cast<std::int32_t>(g.position_blocks());
  return Tile::of(g, number + of_position * (number / of_position * (g.im2col_cluster - 1) + rank), 0);
}

// The way of a team through the tiles, which who brings steps and who multiplies them go alike. First tiles
// that it multiplies alone; then its share of the steps of the last tiles, where these would leave other
// teams idle. Each tile of these has as many steps.
class Im2colWalk {
 public:
  std::int32_t tile;        // its number
  std::int32_t first, end;  // steps of it

  EPICONV_HOST_DEVICE Im2colWalk(const Geometry& g, std::int32_t worker)
      : g_(g), whole_(worker), at_(worker * g.im2col_share), left_(g.im2col_share) {}

  EPICONV_HOST_DEVICE bool next() {
    if (whole_ < g_.im2col_whole_tiles) {
      tile = whole_;
      first = 0;
      end = kAllSteps;
      whole_ += g_.im2col_workers;
      return true;
    }
    if (left_ == 0) return false;
    const std::int32_t all = im2col_tiles(g_);
    const std::int32_t number = at_ / g_.most_steps;
    tile = g_.im2col_whole_tiles + number;
    if (tile >= all) return false;
    first = at_ - number * g_.most_steps;
    end = first + left_ < g_.most_steps ? first + left_ : g_.most_steps;
    at_ += end - first;
    left_ -= end - first;
    return true;
  }

  static constexpr std::int32_t kAllSteps = -1;  // of the tile's phase

 private:
  const Geometry& g_;
  std::int32_t whole_, at_, left_;
};

// A map of each phase, as the driver makes them.
struct alignas(64) Im2colMap {
  std::uint64_t words[16];
};
struct Im2colMaps {
  Im2colMap of_phase[kMostMaps];
  Im2colMap output, operand;  // of slices (im2col_slices.h)
  Im2colMap weights;          // packed, as rows of steps; of clusters
};

// Bytes from the begin of a slice to a byte of one of its rows: the copy engine's swizzle, which puts rows
// that follow each other into different banks.
EPICONV_HOST_DEVICE std::int32_t slice_offset(std::int32_t slice_bytes, std::int32_t row, std::int32_t byte) {
  const std::int32_t offset = row * slice_bytes + byte;
  return offset ^ (offset >> 7 & (slice_bytes / kPieceBytes - 1)) * kPieceBytes;
}

}  // namespace epiconv::sm80
