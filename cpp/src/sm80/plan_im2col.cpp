// Tiles of im2col_conv.h, by what they cost a multiprocessor.
#include <algorithm>
#include <bit>
#include <limits>
#include <span>
#include <utility>

#include "sm80/im2col_clocks.h"
#include "sm80/im2col_geometry.h"
#include "sm80/plan_geometry.h"

namespace epiconv::sm80 {
namespace {

constexpr double kSectorBytes = 32;       // of memory, that come together
constexpr std::int32_t kWarpPixels = 32;  // of lines
constexpr std::int64_t kMostInt = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kMostStages = 8, kLeastStages = 3;
constexpr std::int32_t kLeastSlots = 2, kMostSlots = 4, kBusyStages = 4;
constexpr std::int32_t kLeastSteps = 4;  // of a team's share: fewer cost more in parts than they save
constexpr std::int32_t kMostSharedSteps = 1 << 20;  // of a tile, for 32-bit numbers of all

std::int64_t up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// Sums of a tile are rows x columns of the products' matrix, of which filters or positions are rows.
struct Im2colTile {
  std::int32_t rows, columns;
  bool share_rows;  // warpgroups, each of which has half of the columns
};
constexpr Im2colTile kTiles[] = {
    {256, 128, false}, {128, 256, false}, {128, 192, false}, {128, 160, false},
    {128, 128, false}, {128, 96, false},  {256, 64, false},  {128, 64, false},
    {256, 32, false},  {128, 32, false},  {64, 256, true},   {64, 128, true},
};

// Of lines a warpgroup has 128 positions, which are rows.
constexpr Im2colTile kLineTilesOf[] = {
    {256, 160, false}, {256, 128, false}, {256, 96, false}, {256, 64, false}, {256, 32, false},
    {128, 256, true},  {128, 192, true},  {128, 128, true}, {128, 64, true},
};

// What lies side by side in a thread's words, and how it is stored.
enum class Words { kFilters, kPixels, kLines };

// What the copy engine can say of a dimension, for tensors of so many spatial ones.
struct Im2colLimits {
  std::int32_t least_corner, most_corner, most_offset;
};
constexpr Im2colLimits kLimits[] = {{-32768, 32767, 65535}, {-128, 127, 255}, {-16, 15, 31}};
constexpr std::int32_t kMostAdvance = 8;  // input pixels from a position to the next

std::string why_not(const GeometryProblem& p, const Geometry& g) {
  const int rank = im2col_rank(g);
  const Im2colLimits& limits = kLimits[rank - 3];
  for (std::int32_t phase = 0; phase < g.all_phases(); ++phase) {
    const Phase of = Phase::at(g, phase);
    for (int d = kDims - (rank - 2); d < kDims; ++d) {
      const Im2colRange range = Im2colRange::of(g, d, of.of[d]);
      if (std::min(range.low, range.high) < limits.least_corner ||
          std::max(range.low, range.high) > limits.most_corner)
        return "the copy engine moves boxes no farther beside the input than its padding and taps ask for";
      if (range.most_offset > limits.most_offset)
        return "taps lie farther apart than the copy engine's offsets reach";
    }
  }
  if (g.all_phases() > kMostMaps) return "there are more phases than maps for the copy engine";
  for (int d = 0; d < kDims; ++d) {
    if (g.advance(d) > kMostAdvance) return "strides of more than 8 are too large for the copy engine";
  }
  if (p.groups > 1 && p.channels * p.element_bytes % kStepBytes != 0)
    return "a group's channels do not fill rows of 128 bytes";
  if (p.takes_statistics) return "a GroupNorm's statistics are of tiles of one image";
  return "";
}

void set_whole_tiles(Geometry& g, std::int64_t tiles) {
  g.im2col_workers =
      static_cast<std::int32_t>(std::min<std::int64_t>(tiles * g.im2col_teams, im2col_workers(g)));
  g.im2col_whole_tiles = static_cast<std::int32_t>(tiles);
  g.im2col_share = 0;
}

void set_position_tiles(Geometry& g) {
  std::int64_t tiles = 1;
  for (const Divisor& patches : g.patches) tiles = std::min(tiles * patches.divisor, kMostInt);
  g.position_tiles = static_cast<std::int32_t>(tiles);
}

// As im2col_tiles counts them, also where there are too many.
std::int64_t all_tiles(const Geometry& g) {
  return up(g.position_tiles, g.im2col_cluster) * g.position_blocks();
}

// Sets the tile, and returns clocks of the slowest multiprocessor.
class Im2colPlanner {
 public:
  Im2colPlanner(const GeometryProblem& problem, Geometry& geometry, bool has_equal_phases)
      : p_(problem), g_(geometry), has_equal_phases_(has_equal_phases) {}

  void plan() {
    double least = 0;
    Geometry best = g_;
    // Filters are rows where pixels lie side by side, and may be columns everywhere.
    // Numbers of a row that lie outside the output are not known of pixels that follow each other.
    const bool has_images =
        !p_.words_are_filters && p_.stores_images && g_.output[2] == g_.grid[2] * g_.phases[2];
    // The copy engine stores from no place before a row's begin, and loads from none beside 16 bytes.
    bool reads_lines =
        has_images && p_.reads_lines && g_.all_phases() == 1 && g_.taps[2] == 1 && g_.padding[2] == 0;
    for (int d = 0; d < kDims; ++d) reads_lines = reads_lines && g_.advance(d) == 1;
    for (const Words words : {Words::kFilters, Words::kPixels, Words::kLines}) {
      if (words != Words::kFilters && !(words == Words::kLines ? reads_lines : has_images)) continue;
      g_.filters_are_rows = words != Words::kFilters;
      g_.im2col_lines = words == Words::kLines;
      g_.is_linear = !g_.im2col_lines;
      const auto tiles = g_.im2col_lines ? std::span<const Im2colTile>(kLineTilesOf) : kTiles;
      for (const Im2colTile& tile : tiles) {
        for (const auto& [teams, cluster] : {std::pair(1, 1), std::pair(2, 1), std::pair(1, 2)}) {
          if (!set_tile(tile, teams, cluster)) continue;
          set_position_tiles(g_);
          const double all = cost();
          if (least > 0 && all >= least) continue;
          least = all;
          best = g_;
        }
      }
    }
    g_ = best;
    g_.filter_tiles = Divisor(g_.filter_tiles.divisor);
    for (Divisor& patches : g_.patches) patches = Divisor(patches.divisor);
  }

 private:
  bool set_tile(const Im2colTile& tile, std::int32_t teams, std::int32_t cluster) {
    g_.tile_filters = g_.positions_are_rows() ? tile.columns : tile.rows;
    g_.tile_positions = g_.positions_are_rows() ? tile.rows : tile.columns;
    g_.warpgroups_share_rows = tile.share_rows;
    g_.im2col_teams = teams;
    g_.im2col_cluster = cluster;
    // Half of the sums leave registers for a second team.
    if (teams > 1 && tile.rows * tile.columns > 128 * 128) return false;
    const auto set = [](Divisor& divisor, std::int64_t value) {
      divisor.divisor = static_cast<std::uint32_t>(value);
    };
    set(g_.filter_tiles, up(p_.filters, g_.tile_filters));
    for (Divisor& patches : g_.patches) patches.divisor = 1;
    if (g_.im2col_lines) {
      set_patch();
    } else {
      set(g_.patches[0], up(p_.batch * g_.image_positions(), g_.tile_positions));
    }
    // A row of a slice of a warp has 128 bytes of filters or pixels, or as many as divide its columns.
    const std::int32_t of_group = tile.share_rows ? tile.columns / 2 : tile.columns;
    const bool fills_tiles = p_.groups == 1 || p_.filters % g_.tile_filters == 0;
    const bool may_have_slices = g_.filters_are_rows || (p_.words_are_filters && p_.stores_slices);
    const bool has_one_phase = g_.all_phases() == 1;
    const bool has_slices = may_have_slices && (g_.filters_are_rows || has_one_phase) && fills_tiles;
    g_.im2col_slice_bytes = g_.im2col_lines                                ? kWarpPixels * p_.output_bytes
                            : of_group * p_.output_bytes % kStepBytes == 0 ? kStepBytes
                                                                           : kStepBytes / 2;
    const bool stores_slices = has_one_phase && (g_.im2col_lines ? p_.stores_lines : p_.stores_slices);
    g_.im2col_copies_slices = has_slices && !stores_slices;
    g_.im2col_slots = has_slices ? kMostSlots : 0;
    set_stages();
    // More slots help short tiles, and stages long ones; an operand needs slots to be on its way.
    if (has_slices && !p_.stages_operand && g_.im2col_stages < kBusyStages) {
      g_.im2col_slots = kLeastSlots;
      set_stages();
    }
    return g_.im2col_stages >= kLeastStages;
  }

  // Extents of tiles of lines, which have 128 bytes: those of which fewest are needed.
  void set_patch() {
    const std::int32_t line = kStepBytes / g_.element_bytes, lines = g_.tile_positions / line;
    const std::int64_t extents[kPatchDims] = {p_.batch, g_.grid[0], g_.grid[1], g_.grid[2]};
    std::int64_t fewest = 0;
    for (std::int32_t rows = lines; rows > 0; rows /= 2) {
      for (std::int32_t planes = lines / rows; planes > 0; planes /= 2) {
        const std::int32_t patch[kPatchDims] = {lines / (rows * planes), planes, rows, line};
        std::int64_t tiles = 1;
        for (int d = 0; d < kPatchDims; ++d) tiles *= up(extents[d], patch[d]);
        if (fewest > 0 && tiles >= fewest) continue;
        fewest = tiles;
        for (int d = 0; d < kPatchDims; ++d) {
          g_.patch_bits[d] = std::bit_width(static_cast<std::uint32_t>(patch[d])) - 1;
          g_.patches[d].divisor = static_cast<std::uint32_t>(up(extents[d], patch[d]));
        }
      }
    }
  }

  // As many as there is memory for.
  void set_stages() {
    const std::int32_t teams = g_.im2col_teams;
    g_.im2col_stages = 0;
    const std::int32_t rest = SharedLayout::of(g_, false).bytes + teams * kMostStages * 2 * kBarrierBytes;
    g_.im2col_stages = std::min(kMostStages, (most_shared_bytes(g_) - rest) / (teams * g_.im2col_bytes()));
  }

  // Clocks; sets who multiplies which steps.
  double cost() {
    const Im2colTileClocks of(kRatesOfTiles, p_, g_);
    const std::int64_t tiles = all_tiles(g_);
    const std::int32_t workers = im2col_workers(g_);
    set_whole_tiles(g_, tiles);
    double least = of.all(g_);
    if (p_.is_batch_invariant || !has_equal_phases_ || g_.most_steps > kMostSharedSteps) return least;
    // With the last whole round among what is shared, or without; by all teams, or by fewer, which leave
    // fewer parts of tiles.
    Geometry best = g_;
    for (std::int64_t whole_rounds = tiles / workers;
         whole_rounds >= 0 && whole_rounds + 1 >= tiles / workers; --whole_rounds) {
      const std::int64_t shared = tiles - whole_rounds * workers;
      if (shared == 0) continue;
      g_.im2col_workers = workers;
      g_.im2col_whole_tiles = static_cast<std::int32_t>(whole_rounds * workers);
      g_.im2col_share =
          static_cast<std::int32_t>(std::max<std::int64_t>(up(shared * g_.most_steps, workers), kLeastSteps));
      const double all = of.all(g_);
      if (all >= least) continue;
      least = all;
      best = g_;
    }
    g_ = best;
    return least;
  }

  const GeometryProblem& p_;
  Geometry& g_;
  const bool has_equal_phases_;  // in their numbers of steps
};

}  // namespace

void share_no_tiles(Geometry& g) { set_whole_tiles(g, im2col_tiles(g)); }

std::string plan_im2col(const GeometryProblem& p, Geometry& g) {
  g.is_im2col = true;
  g.is_linear = true;
  for (int d = 0; d < kDims; ++d) {
    g.box[d] = g.grid[d];
    g.box_step[d] = g.advance(d);
    g.box_advance[d] = 1;
  }
  if (std::string why = why_not(p, g); !why.empty()) return why;
  g.box_pixels = 1;                                                      // of a divisor
  const std::int64_t pieces = 2 * up(p.channels, 2 * g.piece_elements);  // of channel_of, all of eight
  g.block_pieces = Divisor(kStepPieces);
  g.channel_blocks = static_cast<std::int32_t>(up(pieces, kStepPieces));
  g.last_pieces = static_cast<std::int32_t>(pieces - std::int64_t{g.channel_blocks - 1} * kStepPieces);
  g.interleave = 1;
  g.block_phases = 1;
  g.tile_phases = Divisor(static_cast<std::uint32_t>(g.all_phases()));
  for (Divisor& patches : g.patches) patches = Divisor(1);
  g.splits = Divisor(1);
  std::int32_t least_steps = std::numeric_limits<std::int32_t>::max();
  for (std::int32_t phase = 0; phase < g.all_phases(); ++phase) {
    const std::int32_t steps = PhaseTaps::of(g, Phase::at(g, phase)).steps(g);
    g.most_steps = std::max(g.most_steps, steps);
    least_steps = std::min(least_steps, steps);
  }
  if (least_steps == 0) return "a phase meets no tap";
  Im2colPlanner(p, g, least_steps == g.most_steps).plan();
  set_position_tiles(g);
  if (p.batch * g.image_positions() > kMostInt - g.tile_positions ||
      (g.position_tiles + 1) * g.position_blocks() > kMostInt)
    return "there are too many positions for the kernel's 32-bit index arithmetic";
  return "";
}

}  // namespace epiconv::sm80
