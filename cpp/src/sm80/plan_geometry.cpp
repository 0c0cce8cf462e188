#include "sm80/plan_geometry.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

#include "sm80/box_clocks.h"
#include "sm80/im2col_clocks.h"

namespace epiconv::sm80 {
namespace {

// Blocks that keep a large card busy: two on each of its multiprocessors.
constexpr std::int64_t kBusyBlocks = 2 * 132;
constexpr std::int64_t kMostInt = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostExtent = kMostInt / 4;  // sums of three of them fit

std::int64_t up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }
std::int32_t aligned(std::int64_t bytes, std::int64_t by) {
  return static_cast<std::int32_t>(up(bytes, by) * by);
}

// The sizes of tiles that there are.
struct TileSize {
  std::int32_t filters, positions;
};
constexpr TileSize kTileSizes[] = {{128, 64}, {64, 128}, {32, 256}, {16, 256}};
constexpr TileSize kWarpgroupTileSizes[] = {{128, 128}, {64, 256}, {64, 128}, {32, 256}, {32, 128}};
constexpr std::int32_t kWarpgroupRows = 128;  // of all warpgroups' products, or twice as many

std::span<const TileSize> tile_sizes(bool has_warpgroups) {
  if (has_warpgroups) return kWarpgroupTileSizes;
  return kTileSizes;
}

// About so many, all of which have steps.
std::int32_t whole_splits(const Geometry& g, std::int64_t count) {
  return static_cast<std::int32_t>(up(g.most_steps, up(g.most_steps, count)));
}

std::int32_t splits(const Geometry& g, std::int64_t blocks) {
  const std::int64_t wanted = kBusyBlocks / std::max<std::int64_t>(blocks, 1);
  const std::int64_t most = std::min<std::int64_t>(g.most_steps / kLeastSplitSteps, kMostSplits);
  const auto count = std::max<std::int64_t>(1, std::min(wanted, most));
  return whole_splits(g, count);
}

// What taps of all phases add to a position's input pixel, at least and at most, and how many a phase has.
struct Reach {
  std::int64_t low, high, most_taps;
};
Reach reach_of(const Geometry& g, int d) {
  Reach reach{kMostInt, -kMostInt, 0};
  for (std::int32_t phase = 0; phase < g.phases[d]; ++phase) {
    const TapSeries series = g.series(d, phase);
    if (series.count == 0) continue;
    const std::int64_t last = series.offset + std::int64_t{series.count - 1} * series.offset_step;
    reach.low = std::min({reach.low, std::int64_t{series.offset}, last});
    reach.high = std::max({reach.high, std::int64_t{series.offset}, last});
    reach.most_taps = std::max<std::int64_t>(reach.most_taps, series.count);
  }
  return reach;
}

// Chooses patch and boxes: tries all there are, and takes what costs least by a model of one multiprocessor.
class BoxPlanner {
 public:
  BoxPlanner(const GeometryProblem& problem, Geometry& geometry) : p_(problem), g_(geometry) {
    for (int d = 0; d < kDims; ++d) reach_[d] = reach_of(g_, d);
    total_pieces_ = up(p_.channels, g_.piece_elements);
  }

  // Sets everything of tiles, boxes and gemm_k. `interleaves`: two column phases are stored together.
  void plan(bool interleaves) {
    double least = 0;
    Geometry best = g_;
    for (const TileSize& size : tile_sizes(p_.has_warpgroups)) {
      if (size.filters == 16 && (interleaves || p_.words_are_filters)) continue;  // in no kernel
      if (p_.has_warpgroups && interleaves && size.positions / kMostInterleave < kWarpgroupRows) continue;
      set_tile(size, interleaves);
      plan_tile(least, best);
    }
    g_ = best;
    for (Divisor* divisor : {&g_.box_row, &g_.box_plane, &g_.box_all, &g_.block_pieces, &g_.patches[0],
                             &g_.patches[1], &g_.patches[2], &g_.patches[3], &g_.filter_tiles}) {
      *divisor = Divisor(divisor->divisor);
    }
  }

 private:
  void set_tile(const TileSize& size, bool interleaves) {
    g_.interleave = interleaves ? kMostInterleave : 1;
    g_.tile_filters = size.filters;
    g_.tile_positions = size.positions / g_.interleave;
    // Of the products' rows a warp has 32; 16 where there are no more.
    const std::int32_t rows = g_.filters_are_rows ? g_.tile_filters : g_.tile_positions;
    g_.row_warp_bits = 0;
    while (64 << g_.row_warp_bits <= rows) ++g_.row_warp_bits;
    g_.filter_tiles.divisor = static_cast<std::uint32_t>(up(p_.filters, size.filters));
    patch_bits_ = 0;
    while (1 << patch_bits_ < g_.tile_positions) ++patch_bits_;
  }

  void plan_tile(double& least, Geometry& best) {
    for (int mask = 0; mask < 8; ++mask) {
      bool is_useful = true;
      g_.is_linear = false;
      for (int d = 0; d < kDims; ++d) {
        g_.joined[d] = mask >> d & 1;
        is_useful = is_useful && (!g_.joined[d] || reach_[d].most_taps > 1 || g_.phases[d] > 1);
      }
      if (!is_useful) continue;
      const auto plan_boxes = [&] {
        for (const std::int64_t pieces :
             {total_pieces_, std::int64_t{p_.has_warpgroups ? 16 : 8}, std::int64_t{8}, std::int64_t{4},
              std::int64_t{2}, std::int64_t{1}}) {
          for (const int boxes : {2, 3, 4}) {
            if (boxes > 2 && !p_.has_warpgroups) break;
            if (pieces > total_pieces_ || !set_boxes(pieces, boxes)) break;
            const double all = (p_.has_warpgroups ? warpgroup_clocks(p_, g_) : portable_clocks(p_, g_)).all;
            if (least == 0 || all < least) {
              least = all;
              best = g_;
            }
          }
        }
      };
      visit_patches(plan_boxes);
      if (!may_be_linear()) continue;
      g_.is_linear = true;
      plan_boxes();
    }
  }

  // Whether tiles may have positions that follow each other: kernels compiled for one plan, without a
  // GroupNorm, whose tiles are of one image each; words of positions lie side by side in whole images.
  bool may_be_linear() const {
    if (!p_.has_warpgroups || p_.takes_statistics) return false;
    if (p_.words_are_filters) return true;
    return p_.stores_images && g_.all_phases() == 1;
  }

  // Pixels of the raster that the box of a linear tile is a part of, from a tile's first position's to all
  // that its taps meet; at most. 0 where a raster is too large.
  std::int64_t raster_pixels() const {
    const std::int64_t positions = p_.batch * g_.image_positions();
    const auto pixel_of = [&](std::int64_t position) {
      std::int64_t at[kPatchDims];
      for (int d = kDims; d > 0; --d) {
        at[d] = position % g_.grid[d - 1];
        position /= g_.grid[d - 1];
      }
      std::int64_t pixel = position;
      for (int d = 0; d < kDims; ++d) pixel = pixel * g_.box[d] + at[1 + d] * g_.box_advance[d];
      return pixel;
    };
    std::int64_t reach = 0;
    for (int d = 0; d < kDims; ++d) {
      reach = reach * g_.box[d] + (g_.joined[d] ? reach_[d].high - reach_[d].low : 0);
    }
    if (pixel_of(positions - 1) + reach + g_.tile_positions > kMostInt) return 0;
    std::int64_t most = 0;
    // What follows repeats what was before, but for the last tile, which is no larger.
    const std::int32_t period =
        g_.image_positions() / Geometry::common_divisor(g_.image_positions(), g_.tile_positions);
    const std::int64_t tiles = std::min(up(positions, g_.tile_positions), std::int64_t{period});
    // Of a larger batch the period goes on.
    if (p_.is_batch_invariant && tiles < period) return 0;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t first = tile * g_.tile_positions;
      const std::int64_t last = std::min(first + g_.tile_positions, positions) - 1;
      most = std::max(most, pixel_of(last) - pixel_of(first));
    }
    return most + reach + 1;
  }

  template <typename Visitor>
  void visit_patches(Visitor&& visitor) {
    const std::int64_t extents[kPatchDims] = {p_.batch, g_.grid[0], g_.grid[1], g_.grid[2]};
    int most[kPatchDims];  // bits, beyond which all of a patch is empty
    for (int d = 0; d < kPatchDims; ++d) {
      most[d] = 0;
      while (most[d] < patch_bits_ && std::int64_t{1} << most[d] < extents[d]) ++most[d];
    }
    if (p_.takes_statistics) most[0] = 0;
    // Where not all of a patch can be filled, its rows are longer than the grid's.
    if (most[0] + most[1] + most[2] + most[3] < patch_bits_) {
      most[3] = patch_bits_ - most[0] - most[1] - most[2];
    }
    auto& bits = g_.patch_bits;
    for (bits[0] = 0; bits[0] <= most[0]; ++bits[0]) {
      for (bits[1] = 0; bits[1] <= most[1]; ++bits[1]) {
        for (bits[2] = 0; bits[2] <= most[2]; ++bits[2]) {
          bits[3] = patch_bits_ - bits[0] - bits[1] - bits[2];
          if (bits[3] >= 0 && bits[3] <= most[3]) visitor();
        }
      }
    }
  }

  // False where shared memory is too small. Of divisors only the number is set.
  bool set_boxes(std::int64_t pieces, int boxes) {
    bool same_pixels = true;  // in all boxes of a tile
    std::int64_t volume = 1;
    for (int d = 0; d < kDims; ++d) {
      const std::int64_t patch = g_.is_linear ? g_.grid[d] : g_.patch(1 + d), advance = g_.advance(d);
      const std::int64_t extent =
          g_.joined[d] ? (patch - 1) * advance + reach_[d].high - reach_[d].low + 1 : patch;
      volume *= extent;
      if (g_.is_linear ? volume > kMostInt : volume * kPieceBytes > most_shared_bytes(g_)) return false;
      g_.box[d] = static_cast<std::int32_t>(extent);
      g_.box_low[d] = g_.joined[d] ? static_cast<std::int32_t>(reach_[d].low) : 0;
      g_.box_step[d] = g_.joined[d] ? 1 : static_cast<std::int32_t>(advance);
      g_.box_advance[d] = g_.joined[d] ? static_cast<std::int32_t>(advance) : 1;
      same_pixels = same_pixels && (g_.joined[d] || (reach_[d].most_taps == 1 && g_.phases[d] == 1));
    }
    if (g_.is_linear && (boxes_[0] != g_.box[0] || boxes_[1] != g_.box[1] || boxes_[2] != g_.box[2] ||
                         raster_positions_ != g_.tile_positions)) {
      raster_pixels_ = raster_pixels();
      std::copy(std::begin(g_.box), std::end(g_.box), boxes_);
      raster_positions_ = g_.tile_positions;
    }
    if (g_.is_linear && raster_pixels_ == 0) return false;
    const std::int64_t pixels = g_.is_linear ? raster_pixels_ : volume << g_.patch_bits[0];
    // Pixels that follow each other have the same piece in different banks.
    const std::int64_t pixel_bytes = (pieces | 1) * kPieceBytes;
    if (pixels * pixel_bytes > most_shared_bytes(g_)) return false;
    g_.box_pixels = static_cast<std::int32_t>(pixels);
    g_.pixel_bytes = static_cast<std::int32_t>(pixel_bytes);
    const auto set = [](Divisor& divisor, std::int64_t value) {
      divisor.divisor = static_cast<std::uint32_t>(value);
    };
    set(g_.box_row, g_.box[2]);
    set(g_.box_plane, std::int64_t{g_.box[1]} * g_.box[2]);
    set(g_.box_all, volume);
    set(g_.block_pieces, pieces);
    g_.channel_blocks = static_cast<std::int32_t>(up(total_pieces_, pieces));
    g_.last_pieces = static_cast<std::int32_t>(total_pieces_ - (g_.channel_blocks - 1) * pieces);
    g_.is_resident = same_pixels && g_.channel_blocks == 1;
    g_.pixel_tables = same_pixels ? 1 : 2;
    if (boxes > 2 && (!same_pixels || boxes > g_.channel_blocks)) return false;
    g_.boxes = g_.is_resident ? 1 : boxes;
    std::int64_t joined = 1, others = 1;
    for (int d = 0; d < kDims; ++d) (g_.joined[d] ? joined : others) *= reach_[d].most_taps;
    if (joined * pieces > kMostInt / 2) return false;
    const std::int64_t steps = others * g_.units_steps(static_cast<std::int32_t>(joined));
    if (steps > kMostInt / 64) return false;
    g_.most_steps = static_cast<std::int32_t>(steps);
    for (int d = 0; d < kPatchDims; ++d) {
      const std::int64_t extent = d == 0 ? p_.batch : g_.grid[d - 1];
      set(g_.patches[d], g_.is_linear ? 1 : up(extent, g_.patch(d)));
    }
    if (g_.is_linear) set(g_.patches[0], up(p_.batch * g_.image_positions(), g_.tile_positions));
    const double tiles = tiles_of_positions(g_);
    const std::int64_t passes = g_.all_phases() / g_.interleave;
    const bool many = tiles * g_.filter_tiles.divisor * g_.groups >= kBusyBlocks;
    const bool goes_through =
        g_.is_resident && !p_.takes_statistics && many && g_.all_phases() <= kMostBlockPhases;
    g_.block_phases = g_.interleave * static_cast<std::int32_t>(goes_through ? passes : 1);
    set(g_.tile_phases, g_.all_phases() / g_.block_phases);
    return SharedLayout::of(g_, p_.takes_statistics).bytes <= most_shared_bytes(g_);
  }

  const GeometryProblem& p_;
  Geometry& g_;
  Reach reach_[kDims];
  std::int64_t total_pieces_;
  int patch_bits_;
  std::int32_t boxes_[kDims] = {}, raster_positions_ = 0;  // for which
  std::int64_t raster_pixels_ = 0;                         // is known
};

}  // namespace

SharedLayout SharedLayout::of(const Geometry& g, bool takes_statistics) {
  SharedLayout layout{};
  if (g.is_im2col) {
    // Tables of each warpgroup, as TileMemory has them; then barriers and stages of each team.
    layout.tile = g.tile_positions * kColumnBytes;
    layout.phases = layout.tile + aligned(sizeof(Tile), kPieceBytes);
    layout.flag = layout.phases + kBlockPhaseBytes;
    layout.filter_operands = layout.flag + kPieceBytes;
    layout.tables = aligned(layout.filter_operands + g.filter_operands * g.tile_filters * 4, kPieceBytes);
    layout.barriers = 2 * g.im2col_teams * layout.tables;
    const std::int32_t stages = g.im2col_teams * g.im2col_stages;
    layout.slot_barriers = layout.barriers + 2 * stages * kBarrierBytes;
    layout.slots = aligned(layout.slot_barriers + g.im2col_slots_of_all() * kBarrierBytes, 1024);
    layout.stages = layout.slots + g.im2col_slots_of_all() * kSliceRows * g.im2col_slice_bytes;
    layout.bytes = layout.stages + stages * g.im2col_bytes();
    return layout;
  }
  layout.places = g.tile_positions * kColumnBytes;
  layout.pixels = layout.places + g.tile_positions * 4;
  layout.flag = aligned(layout.pixels + std::int64_t{g.pixel_tables} * g.box_pixels * 8, kPieceBytes);
  layout.barriers = layout.flag + kPieceBytes;
  layout.zeros = layout.barriers + (g.has_warpgroups ? 2 * kStages * kBarrierBytes : 0);
  layout.tile = layout.zeros + kPieceBytes;
  layout.phases = layout.tile + aligned(sizeof(Tile), kPieceBytes);
  layout.filter_operands = layout.phases + g.block_phases * kBlockPhaseBytes;
  layout.boxes = layout.filter_operands + g.filter_operands * g.tile_filters * 4;
  layout.stages = layout.boxes + g.boxes * g.box_bytes();
  if (g.has_warpgroups) layout.stages = aligned(layout.stages, 1024);
  layout.bytes = layout.stages + kStages * g.stage_bytes();
  const std::int32_t rows = g.filters_are_rows ? g.tile_filters : g.tile_positions;
  const std::int32_t staging_bytes = rows * staging_pitch(g) * 4;
  if (g.has_warpgroups) {
    // All sums lie in the staging, where boxes and weights were, unless these are needed again.
    layout.words = 0;
    layout.staging = g.block_phases == g.interleave ? layout.boxes : layout.bytes;
    layout.scratch = layout.staging + staging_bytes;
    layout.bytes = std::max(layout.bytes, layout.scratch + (takes_statistics ? kThreads * 4 : 0));
    return layout;
  }
  // Words lie where boxes and weights were, unless these are needed again, for another phase.
  const bool is_last = g.block_phases == 1;
  const std::int32_t words_bytes = kThreads * (kThreadSums - g.chunk_sums) * 4;
  layout.words = is_last ? layout.boxes : layout.bytes;
  layout.bytes = std::max(layout.bytes, layout.words + words_bytes);
  layout.staging = layout.words + words_bytes;
  layout.scratch = layout.staging + staging_bytes;
  if (takes_statistics) layout.bytes = std::max(layout.bytes, layout.scratch + kThreads * 4);
  return layout;
}

std::string plan_for_batch(const GeometryProblem& p, Geometry& g) {
  constexpr const char* kTooLarge = "an extent is too large for the kernel's 32-bit index arithmetic";
  g = {};
  g.batch = p.batch;
  g.transposed = p.transposed;
  if (std::max({p.batch, p.groups, p.channels, p.filters}) > kMostExtent) return kTooLarge;
  g.groups = static_cast<std::int32_t>(p.groups);
  g.channels = static_cast<std::int32_t>(p.channels);
  g.filters = static_cast<std::int32_t>(p.filters);
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
    g.grid[d] = narrow(up(p.output[d], g.phases[d]));
  }
  if (std::int64_t{g.grid[0]} * g.grid[1] > kMostInt / g.grid[2]) return kTooLarge;
  if (std::int64_t{g.phases[0]} * g.phases[1] > kMostInt / g.phases[2]) return kTooLarge;
  g.element_bytes = p.element_bytes;
  g.piece_elements = kPieceBytes / p.element_bytes;
  // The farthest that a box of a single piece reaches is not too far, and gemm_k not too long.
  std::int64_t most_taps = 1;
  for (int d = 0; d < kDims; ++d) most_taps = std::min(most_taps * g.taps[d], kMostInt);
  if (most_taps > kMostInt / 64 || most_taps * up(g.channels, g.piece_elements) > kMostInt / 64)
    return kTooLarge;
  g.phases_w = Divisor(static_cast<std::uint32_t>(g.phases[2]));
  g.phases_hw = Divisor(static_cast<std::uint32_t>(g.phases[1]) * g.phases[2]);
  g.group_count = Divisor(static_cast<std::uint32_t>(g.groups));
  g.has_warpgroups = p.has_warpgroups;
  g.filters_are_rows = !p.words_are_filters;
  g.filter_operands = p.filter_operands;
  g.chunk_sums = p.chunk_sums;
  if (p.is_im2col) return plan_im2col(p, g);

  std::int64_t planned_splits = 1;
  const auto set_tiles = [&](bool interleaves) {
    BoxPlanner(p, g).plan(interleaves);
    planned_splits = g.splits.divisor;
    std::int64_t tiles = 1;
    for (const Divisor& patches : g.patches) tiles = std::min(tiles * patches.divisor, kMostInt + 1);
    g.position_tiles = static_cast<std::int32_t>(std::min(tiles, kMostInt));
    g.tile_phases = Divisor(static_cast<std::uint32_t>(g.all_phases() / g.block_phases));
    g.splits = Divisor(1);
    if (tiles > kMostInt || g.position_blocks() > kMostInt) return std::int64_t{0};
    return tiles * g.position_blocks();
  };
  const bool may_interleave =
      p.transposed && g.phases[2] == kMostInterleave && p.stores_columns && !p.words_are_filters;
  std::int64_t blocks = set_tiles(may_interleave);
  if (blocks == 0) return kTooLarge;
  if (g.block_phases == g.interleave) {
    if (splits(g, blocks) > 1 && may_interleave) blocks = set_tiles(false);
    const std::int64_t count = p.has_warpgroups ? whole_splits(g, planned_splits) : splits(g, blocks);
    if (g.block_phases == 1 && !p.is_batch_invariant) {
      g.splits = Divisor(static_cast<std::uint32_t>(count));
    }
  }
  if (g.position_blocks() > kMostInt) return kTooLarge;
  return "";
}

PlannedClocks planned_clocks(const GeometryProblem& p, const Geometry& g) {
  if (g.is_im2col) return Im2colTileClocks(kRatesOfLayers, p, g).planned(g);
  PlannedClocks clocks;
  if (g.has_warpgroups) {
    Geometry of_tile = g;  // whose parts of gemm_k are what the model would choose
    clocks = warpgroup_clocks(p, of_tile);
  } else {
    clocks = portable_clocks(p, g);
    // As many blocks as share a multiprocessor go through it side by side, for as long as all of them take.
    const double blocks = tiles_of_positions(g) * g.filter_tiles.divisor * g.groups * g.tile_phases.divisor *
                          g.splits.divisor / kH200.multiprocessors;
    constexpr double kResident = 3;
    clocks.all = std::max(clocks.all, std::ceil(blocks / resident_blocks(g, p.takes_statistics)) * kResident *
                                          clocks.all / blocks);
  }
  // Column phases lie apart in rows of pixels: sectors of memory are written in part, of which a
  // multiprocessor writes so many in a clock.
  if (p.stores_columns && g.phases[2] > g.interleave) {
    constexpr double kSectors = 0.4, kSectorBytes = 32;
    double outputs = static_cast<double>(p.batch * p.groups * p.filters) / kH200.multiprocessors;
    for (const std::int64_t extent : p.output) outputs *= static_cast<double>(extent);
    const double of_sector = kSectorBytes * g.interleave / (p.output_bytes * g.phases[2]);
    clocks.all = std::max(clocks.all, outputs / (kSectors * of_sector));
  }
  clocks.all += part_clocks(g);
  return clocks;
}

}  // namespace epiconv::sm80
