#include "sm80/im2col_clocks.h"

#include <algorithm>
#include <cmath>

namespace epiconv::sm80 {

// In clocks of a multiprocessor of an H200, and bytes or outputs a clock.
struct Im2colRates {
  double begin, cluster_begin;  // of a launch
  double copy, copy_bytes;      // of an input that is copied first
  // The L2 cache fills a multiprocessor's memory with so many bytes, and that of two teams, whose steps are
  // at different places, with fewer. Each byte takes power, and so clocks, from the products.
  double fill, fill_of_two, power;
  double step;           // of a step, besides
  double cluster_waits;  // of blocks for each other: by how much a step of theirs is longer
  // Of the copy engine's im2col mode for a pixel, of which it brings 128 bytes of channels or less, and for
  // one whose channels end in the midst of them.
  double pixel, short_pixel;
  double store, slices, words, copied, apart;  // of a tile; outputs, by how they are stored
  double sectors;                              // of memory, that are written in part
  double epilogue;                             // how much of GeometryProblem::output_clocks is not hidden
  double merge;                                // parts' ways to memory and back
};
const Im2colRates kRatesOfTiles{3000, 5500, 6500, 2000, 62, 44,  0.0032, 20, 1.08, 0,
                                0,    800,  12,   12,   6,  1.2, 9,      0,  3000};
const Im2colRates kRatesOfLayers{1300, 5400, 2900, 2300, 62,  20,   0.0016, 19, 1.04, 3.2,
                                 6.9,  1800, 13,   9,    3.9, 1.05, 0.4,    1,  7400};

namespace {

constexpr std::int32_t kShortBytes = 64, kSectorBytes = 32;
constexpr double kCachedWeights = 24 << 20;          // bytes that stay in the L2 cache beside the rest
constexpr double kMemoryBytes = 2500;                // a clock, from memory
constexpr double kPartWrites = 12, kPartReads = 40;  // bytes a clock

// Clocks of a product of 64 rows and 32 bytes of gemm_k.
double product_clocks(std::int32_t columns) { return columns >= 96 ? columns / 2 : columns == 64 ? 40 : 26; }

double tiles_of(const Geometry& g) {
  return std::ceil(static_cast<double>(g.position_tiles) / g.im2col_cluster) *
         static_cast<double>(g.position_blocks());
}

}  // namespace

Im2colTileClocks::Im2colTileClocks(const Im2colRates& rates, const GeometryProblem& p, const Geometry& g)
    : rates_(rates) {
  const double input_bytes = 2.0 * g.element_bytes * p.batch * g.groups * g.channels * g.input[0] *
                             g.input[1] * g.input[2];  // read and written
  begin_ = g.im2col_cluster > 1 ? rates_.cluster_begin : rates_.begin;
  copy_ = p.turns_input && !g.im2col_lines ? rates_.copy + input_bytes / rates_.copy_bytes : 0;
  const std::int32_t rows = g.positions_are_rows() ? g.tile_positions : g.tile_filters;
  const std::int32_t all_columns = g.positions_are_rows() ? g.tile_filters : g.tile_positions;
  const std::int32_t columns = g.warpgroups_share_rows ? all_columns / 2 : all_columns;
  const double all_products = 4 * (g.warpgroups_share_rows ? 2 * rows : rows) / double{kProductRows};
  const double bytes =
      g.im2col_position_bytes() + static_cast<double>(g.tile_filters) * kStepBytes / g.im2col_cluster;
  products_ = all_products * product_clocks(columns);
  const double pixel = g.im2col_lines                               ? 0.0
                       : g.channels * g.element_bytes < kShortBytes ? rates_.short_pixel
                                                                    : rates_.pixel;
  fill_ = std::max(bytes / (g.im2col_teams > 1 ? rates_.fill_of_two : rates_.fill), g.tile_positions * pixel);
  power_ = rates_.power * bytes;
  // Of 128 bytes a clock: rows and columns of each product, and what is brought.
  port_ = (all_products * (kProductRows + columns) * (kStepBytes / 4) + g.im2col_bytes()) / 128.0;
  step_ = (g.im2col_cluster > 1 ? rates_.cluster_waits : 1.0) *
          (std::max(products_ + power_, fill_) + rates_.step);
  steps_ = g.most_steps * step_;
  outputs_ = static_cast<double>(rows) * all_columns;
  // What does not exist costs only slices.
  const double exist = outputs_ * static_cast<double>(p.filters) / g.filter_tiles.divisor / g.tile_filters;
  // Of phases, whose pixels lie apart, sectors are written in part.
  const double of_sectors = rates_.sectors * kSectorBytes / (p.output_bytes * g.phases[2]);
  const bool has_slices = g.im2col_slots > 0 && !g.im2col_copies_slices;
  store_ = rates_.store + exist * p.output_clocks * rates_.epilogue +
           (has_slices                                  ? outputs_ / rates_.slices
            : g.im2col_copies_slices                    ? exist / std::min(rates_.copied, of_sectors)
            : g.filters_are_rows || p.words_are_filters ? exist / rates_.words
                                                        : exist / rates_.apart);
  const double packed = static_cast<double>(g.packed_step(g.all_phases(), 0, 0, 0));
  unkept_weight_bytes_ = packed > kCachedWeights ? packed : 0;
}

// Teams of a multiprocessor share its tensor cores, and one stores while the other multiplies.
double Im2colTileClocks::all(const Geometry& g) const {
  const std::int32_t teams = g.im2col_teams, places = kMultiprocessors / g.im2col_cluster;
  const double tiles = tiles_of(g);
  const double rounds = std::ceil(static_cast<double>(g.im2col_whole_tiles) / im2col_workers(g));
  const bool is_alone = teams == 1 || (g.im2col_share == 0 && tiles <= places);
  const double whole =
      is_alone ? rounds * (steps_ + store_) : rounds * std::max(teams * steps_, steps_ + store_) + store_;
  if (g.im2col_share == 0) return begin_ + copy_ + whole;
  const double shared = tiles - g.im2col_whole_tiles, share = g.im2col_share;
  const double of_workers = shared / im2col_workers(g), bytes = 4 * outputs_;
  const double teams_of_tile = 1 + g.most_steps / share, merges = std::max(1.0, of_workers);
  const double parts = std::min(2.0, 1 + of_workers);  // of a team
  // Teams that share tiles are at different steps: what does not stay in the L2 cache of weights is read
  // from memory for each tile of positions.
  const double reads = unkept_weight_bytes_ * (g.position_tiles - 1.0) / kMemoryBytes;
  return begin_ + copy_ + whole + share * step_ * teams + rates_.merge + parts * bytes / kPartWrites +
         merges * (teams_of_tile * bytes / kPartReads + store_) + reads;
}

PlannedClocks Im2colTileClocks::planned(const Geometry& g) const {
  const double tiles = tiles_of(g) * g.im2col_cluster / kMultiprocessors, steps = tiles * g.most_steps;
  return {all(g) - copy_, steps * products_, steps * power_, steps * port_, steps * fill_, tiles * store_};
}

}  // namespace epiconv::sm80
