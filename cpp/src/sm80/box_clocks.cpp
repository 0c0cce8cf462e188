#include "sm80/box_clocks.h"

#include <algorithm>
#include <cmath>

#include "ceilings.h"

namespace epiconv::sm80 {
namespace {

constexpr double kMultiprocessors = kH200.multiprocessors;

double up(double value, double by) { return std::ceil(value / by); }

double pieces_of(const GeometryProblem& p, const Geometry& g) {
  return up(static_cast<double>(p.channels), g.piece_elements);
}

// Of a tile of positions: its phases' taps, those that are not joined, and units.
struct Gone {
  double phases, taps, other_taps, units;
};
Gone through(const GeometryProblem& p, const Geometry& g) {
  Gone gone{static_cast<double>(g.all_phases()), 1, 1, 0};
  for (int d = 0; d < kDims; ++d) {
    gone.taps *= static_cast<double>(p.taps[d]);
    gone.other_taps *= g.joined[d] ? 1.0 : static_cast<double>(p.taps[d]) / g.phases[d];
  }
  gone.units = gone.phases * gone.other_taps * g.channel_blocks;
  return gone;
}

// Pieces of the input that boxes bring, for a tile of positions.
double box_pieces(const GeometryProblem& p, const Geometry& g, const Gone& gone) {
  const bool loads_once = g.is_resident && g.block_phases == g.all_phases();
  const double loads = loads_once ? 1.0 : gone.units / g.channel_blocks;
  return loads * g.box_pixels * pieces_of(p, g);
}

// Of a block's tables, for a tile of positions.
double table_pixels(const Geometry& g, const Gone& gone) {
  return (g.pixel_tables == 1 ? gone.phases / g.block_phases : gone.units) * g.box_pixels;
}

// Of what a tile of positions takes, for all of them, spread over the multiprocessors.
double share_of(const Geometry& g) {
  return tiles_of_positions(g) * g.filter_tiles.divisor * g.groups / kMultiprocessors;
}

}  // namespace

int resident_blocks(const Geometry& g, bool takes_statistics) {
  constexpr int kThirdOfMemory = 74 * 1024;
  return SharedLayout::of(g, takes_statistics).bytes > kThirdOfMemory ? 2 : 3;
}

double tiles_of_positions(const Geometry& g) {
  double tiles = 1;
  for (const Divisor& patches : g.patches) tiles *= patches.divisor;
  return tiles;
}

// By the port of shared memory half a step of 128 x 128 takes 500 clocks; a piece of input about a clock
// where it is gathered.
PlannedClocks portable_clocks(const GeometryProblem& p, const Geometry& g) {
  const Gone gone = through(p, g);
  // Half a step that is empty is not multiplied.
  constexpr int kHalf = kStepPieces / 2;
  double halves = gone.taps * pieces_of(p, g) / kHalf + 0.4 * gone.units;
  if (!g.transposed) {
    double joined = 1;
    for (int d = 0; d < kDims; ++d) joined *= g.joined[d] ? static_cast<double>(p.taps[d]) : 1.0;
    halves = gone.other_taps *
             ((g.channel_blocks - 1) * up(joined * g.pieces(0), kHalf) + up(joined * g.last_pieces, kHalf));
  }
  const std::int32_t width = g.patch(3);
  const double sums = static_cast<double>(g.tile_positions) * g.tile_filters;
  // Positions of fewer than eight pixels side by side lie in the same banks.
  const double conflicts = width * g.box_advance[2] % 8 == 0 && g.box_advance[2] % 2 == 1 ? 1.0 : 1.3;
  const double products = halves * (g.tile_filters == 16 ? 800 : 500) * (sums / (128 * 128)) * conflicts;
  const double pieces = box_pieces(p, g, gone);
  // The L2 cache gives a multiprocessor 24 bytes in a clock: weights, and boxes.
  const double fill = (halves * g.tile_filters * kStepBytes / 2.0 + pieces * kPieceBytes) / 24;
  double clocks = products + gone.units * 150 + pieces * (p.in_pieces ? 0.3 : 1.0);
  clocks = std::max(clocks, fill) + 3000;  // those of a tile's begin and end
  double store = table_pixels(g, gone);
  if (!p.words_are_filters) {
    const double row = width * (p.stores_columns ? g.interleave : 1);
    store += gone.phases * sums / 32 * (row < 4 ? 30 : row < 16 ? 32 / row : 0);
  }
  clocks += store;
  if (resident_blocks(g, p.takes_statistics) == 2) clocks *= 1.15;
  // Products of warps go at two thirds of the rate of those of warpgroups.
  const double tensor = halves * 384 * (sums / (128 * 128));
  const double share = share_of(g);
  return {share * clocks, share * tensor, 0, share * products, share * fill, share * store};
}

// Two blocks share a multiprocessor and hide each other's waiting; where there are fewer, gemm_k is split.
PlannedClocks warpgroup_clocks(const GeometryProblem& p, Geometry& g) {
  const Gone gone = through(p, g);
  const double steps = gone.taps * pieces_of(p, g) / kStepPieces + 0.4 * gone.units;
  // A product of 64 positions and 32 bytes of gemm_k takes so long.
  const double product = g.tile_filters == 128 ? 64 : g.tile_filters == 64 ? 38 : 26;
  const double products = 4.0 * g.tile_positions / 64 * product;
  const double of_step = products + 200;
  // A box comes as many units ahead as there are others, each of them beside one of another block.
  const double ahead = 2 * of_step * steps / gone.units * (g.boxes - 1);
  double clocks = steps * of_step + gone.units * (120 + (g.is_resident ? 0 : std::max(0.0, 1200 - ahead)));
  const double pieces = box_pieces(p, g, gone);
  const double fill = (steps * g.step_bytes() + pieces * kPieceBytes) / 28;
  clocks = std::max({clocks, fill, pieces * (p.in_pieces ? 0.2 : 0.7)});
  const double outputs = static_cast<double>(g.tile_positions) * g.tile_filters * g.block_phases;
  double store = gone.phases / g.block_phases * outputs / 12 + table_pixels(g, gone) / 4.0;
  if (!p.words_are_filters) {
    const double of_image = g.image_positions() % 4 == 0 ? 16.0 : 8.0;  // else words are not aligned
    const double row = g.is_linear ? of_image : g.patch(3) * (p.stores_columns ? g.interleave : 1);
    store += gone.phases / g.block_phases * outputs / 32 * (row < 4 ? 30 : row < 16 ? 32 / row : 0);
  }
  clocks += store;
  // A multiprocessor goes through its blocks two at a time; gemm_k is split where that balances them. The
  // begin and end of a block count, and the sums of its part.
  constexpr double kEnds = 5000, kAlone = 1.3;
  const double blocks = tiles_of_positions(g) * g.filter_tiles.divisor * g.groups * g.tile_phases.divisor;
  const bool may_split = g.block_phases == 1;
  const double most = may_split ? std::min(steps / gone.phases / kLeastSplitSteps, double{kMostSplits}) : 1.0;
  double least = 0;
  for (int parts = 1; parts == 1 || parts <= most; ++parts) {
    const double part =
        clocks / gone.phases * g.block_phases / parts + kEnds + (parts > 1 ? outputs / 6 : 0.0);
    const double rounds = std::ceil(blocks * parts / kMultiprocessors);
    // Of equals that with less to do.
    const double all = rounds * part * (rounds == 1 ? kAlone : 1.0) + 1e-3 * blocks * parts * part;
    if (parts > 1 && all >= least) continue;
    least = all;
    g.splits.divisor = static_cast<std::uint32_t>(parts);
  }
  // Rows come from registers, into which they are read; each of the columns' 32 bytes by every warpgroup.
  const double share = share_of(g);
  const double tensor = steps * g.tile_positions * g.tile_filters / 32.0;
  const double port = steps * (g.tile_positions * kStepBytes + 2.0 * g.tile_filters * kStepBytes) / 128 +
                      (steps * g.step_bytes() + pieces * kPieceBytes + outputs * 8) / 128;
  return {least, share * tensor, 0, share * port, share * fill, share * store};
}

double part_clocks(const Geometry& g) {
  constexpr double kPartReads = 40;  // bytes in a clock
  if (g.splits.divisor == 1) return 0;
  return 4.0 * g.splits.divisor * g.tile_filters * g.tile_positions * g.block_phases / kPartReads;
}

}  // namespace epiconv::sm80
