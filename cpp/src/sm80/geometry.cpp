#include "sm80/geometry.h"

#include <algorithm>
#include <limits>

namespace epiconv::sm80 {
namespace {

// Blocks that keep a large card busy: two on each of its multiprocessors.
constexpr std::int64_t kBusyBlocks = 2 * 132;
constexpr std::int32_t kMostSplits = 32;
constexpr std::int32_t kLeastSplitSteps = 4;  // fewer cost more in partial sums than they save
// From so many positions of an image on, tiles that begin anew in each image waste little.
constexpr std::int64_t kManyPositions = 16 * kTilePositions;
constexpr std::int64_t kMostInt = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostExtent = kMostInt / 4;  // sums of three of them fit

std::int64_t up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// Fewer filters in a tile read the input more often, but wide tiles may compute filters that do not exist.
std::int32_t tile_filters(std::int64_t filters, bool narrow) {
  std::int32_t best = 32;
  double least = 0;
  for (const auto& [width, cost] : {std::pair{32, 1.5}, std::pair{64, 1.15}, std::pair{128, 1.0}}) {
    if (narrow && width > 64) continue;
    const double all = cost * static_cast<double>(up(filters, width) * width);
    if (least == 0 || all < least) {
      least = all;
      best = width;
    }
  }
  return best;
}

std::int32_t splits(const Geometry& g, std::int64_t blocks) {
  const std::int64_t wanted = kBusyBlocks / std::max<std::int64_t>(blocks, 1);
  const std::int64_t most = std::min<std::int64_t>(g.most_steps / kLeastSplitSteps, kMostSplits);
  const auto count = std::max<std::int64_t>(1, std::min(wanted, most));
  // All of them have steps.
  return static_cast<std::int32_t>(up(g.most_steps, up(g.most_steps, count)));
}

}  // namespace

std::string plan_geometry(const GeometryProblem& p, Geometry& g) {
  constexpr const char* kTooLarge = "an extent is too large for the kernel's 32-bit index arithmetic";
  g = {};
  g.batch = p.batch;
  g.transposed = p.transposed;
  if (std::max({p.batch, p.groups, p.channels, p.filters}) > kMostExtent) return kTooLarge;
  g.groups = static_cast<std::int32_t>(p.groups);
  g.channels = static_cast<std::int32_t>(p.channels);
  g.filters = static_cast<std::int32_t>(p.filters);
  std::int64_t grid[kDims];
  for (int d = 0; d < kDims; ++d) {
    const std::int64_t reach = (p.taps[d] - 1) * p.dilation[d];
    if (std::max({p.input[d], p.output[d], p.stride[d], p.padding[d], reach, p.dilation[d]}) > kMostExtent)
      return kTooLarge;
    const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    g.input[d] = narrow(p.input[d]);
    g.output[d] = narrow(p.output[d]);
    g.taps[d] = narrow(p.taps[d]);
    g.stride[d] = narrow(p.stride[d]);
    g.dilation[d] = narrow(p.dilation[d]);
    g.padding[d] = narrow(p.padding[d]);
    g.phases[d] = p.transposed ? g.stride[d] : 1;
    grid[d] = up(p.output[d], g.phases[d]);
  }
  if (grid[0] * grid[1] > kMostInt || grid[0] * grid[1] * grid[2] > kMostInt - kTilePositions)
    return kTooLarge;
  g.plane = Divisor(static_cast<std::uint32_t>(grid[1] * grid[2]));
  g.row = Divisor(static_cast<std::uint32_t>(grid[2]));
  g.image_positions = static_cast<std::int32_t>(grid[0] * grid[1] * grid[2]);
  g.by_image = p.by_image || g.image_positions >= kManyPositions;
  const std::int64_t image_tiles = up(g.image_positions, kTilePositions);
  const std::int64_t tiles =
      g.by_image ? p.batch * image_tiles : up(p.batch * g.image_positions, kTilePositions);
  if (tiles * kTilePositions > (g.by_image ? kMostInt * kTilePositions : kMostInt)) return kTooLarge;
  g.image_tiles = Divisor(static_cast<std::uint32_t>(image_tiles));
  g.position_tiles = static_cast<std::int32_t>(tiles);

  g.element_bytes = p.element_bytes;
  g.step_elements = kStepBytes / p.element_bytes;
  g.piece_elements = kPieceBytes / p.element_bytes;
  g.block_channels = std::min(g.channels, g.step_elements);
  // Each tap is of one phase of each dimension: a phase has the most where it has the most in each.
  std::int64_t most_taps = 1;
  for (int d = 0; d < kDims; ++d) {
    std::int32_t most = 0;
    for (std::int32_t phase = 0; phase < g.phases[d]; ++phase)
      most = std::max(most, g.series(d, phase).count);
    most_taps *= most;
  }
  if (most_taps * g.channels > kMostInt / 2) return kTooLarge;
  g.most_steps = static_cast<std::int32_t>(up(most_taps * g.channels, g.step_elements));
  g.filter_rows = static_cast<std::int32_t>(up(g.filters, kFilterRows) * kFilterRows);

  const bool may_interleave = p.transposed && g.phases[2] == kMostInterleave && p.stores_columns;
  g.tile_filters = tile_filters(p.filters, may_interleave);
  g.filter_tiles = Divisor(static_cast<std::uint32_t>(up(p.filters, g.tile_filters)));
  g.group_count = Divisor(static_cast<std::uint32_t>(g.groups));
  const std::int64_t blocks = tiles * g.filter_tiles.divisor * g.groups * g.all_phases();
  const std::int32_t count = splits(g, blocks);
  g.splits = Divisor(static_cast<std::uint32_t>(count));
  g.interleave = may_interleave && count == 1 ? kMostInterleave : 1;
  g.phases_w = Divisor(static_cast<std::uint32_t>(g.phases[2] / g.interleave));
  g.phases_hw = Divisor(g.phases_w.divisor * static_cast<std::uint32_t>(g.phases[1]));
  g.tile_phases = Divisor(g.phases_hw.divisor * static_cast<std::uint32_t>(g.phases[0]));
  if (g.position_blocks() > kMostInt) return kTooLarge;
  return "";
}

}  // namespace epiconv::sm80
