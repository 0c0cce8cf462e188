#include "sm90/halo_geometry.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "epiconv/error.h"

namespace epiconv::sm90 {
namespace {

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
constexpr int kMinStages = 4;  // of weights, so that their loads run ahead of the wgmma
constexpr int kGoodStages = 6;
constexpr int kGoodStagesOfPhases = 12;  // whose taps are multiplied in half of the time or less
constexpr int kMaxBoxRows = 512;
constexpr int kMinRawStages = 2;  // of a warp, one of which is loaded while the other is turned
// Of a raw stage, about: enough to keep a few tens of KB on their way, whatever the hand-overs take.
constexpr int kGoodRawBytes = 4608;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// What the planner chooses.
struct Choice {
  int group_r, group_s, strips;
  bool stacked;     // images in one raster
  bool wide_pitch;  // such that rows of one tile can be kept for the next
  bool whole_rows;  // tiles begin where rows of the raster do
};

void set_channels(const HaloProblem& problem, HaloGeometry& g) {
  const std::int64_t bytes = std::int64_t{problem.channels} * problem.element_bytes;
  g.element_bytes = problem.element_bytes;
  g.input_bytes = problem.input_bytes;
  g.row_bytes = bytes <= 32 ? 32 : bytes <= 64 ? 64 : 128;
  g.channel_blocks = static_cast<int>(ceil_div(bytes, g.row_bytes));
  g.full_steps = g.row_bytes / kStepBytes;
  g.last_steps =
      static_cast<int>(ceil_div(bytes - std::int64_t{g.channel_blocks - 1} * g.row_bytes, kStepBytes));
}

// The taps of one dimension. Output stride * a + phase is where input i meets the filter's tap
//   r = stride * a + phase + pad - stride * i,
// so that r % stride is (phase + pad) % stride, and input a + (phase + pad) / stride - t meets tap number t
// of those. Places are counted from the first input that any phase meets.
struct TapsOfDimension {
  PhaseTaps phases[kMaxPhases] = {};
  int places = 0;
  int pad = 0;  // the input of place 0 is a - pad
};
TapsOfDimension taps_of_dimension(bool transposed, int stride, int pad, int taps) {
  TapsOfDimension result;
  if (!transposed) {
    result.phases[0] = {0, taps, 0, 1};
    result.places = taps;
    result.pad = pad;
    return result;
  }
  int least = std::numeric_limits<int>::max();
  for (int phase = 0; phase < stride; ++phase) {
    const int residue = (phase + pad) % stride, newest = (phase + pad) / stride;
    const int count = residue < taps ? (taps - 1 - residue) / stride + 1 : 0;
    result.phases[phase] = {newest - (count - 1), count, residue + (count - 1) * stride, -stride};
    if (count > 0) least = std::min(least, result.phases[phase].first);
  }
  for (int phase = 0; phase < stride; ++phase) {
    PhaseTaps& of = result.phases[phase];
    of.first = of.count > 0 ? of.first - least : 0;
    result.places = std::max(result.places, of.first + of.count);
  }
  result.pad = -least;
  return result;
}

void set_taps(const HaloProblem& problem, HaloGeometry& g) {
  const TapsOfDimension rows =
      taps_of_dimension(problem.transposed, problem.stride_h, problem.pad_top, problem.taps_r);
  const TapsOfDimension columns =
      taps_of_dimension(problem.transposed, problem.stride_w, problem.pad_left, problem.taps_s);
  std::copy(std::begin(rows.phases), std::end(rows.phases), g.row_taps);
  std::copy(std::begin(columns.phases), std::end(columns.phases), g.column_taps);
  g.taps_r = rows.places;
  g.taps_s = columns.places;
  g.pad_top = rows.pad;
  g.pad_left = columns.pad;
  g.columns = problem.taps_s;
  g.phases_h = problem.stride_h;
  g.phases_w = problem.stride_w;
  g.row_phases = Divisor(static_cast<std::uint32_t>(problem.stride_h));
  // Row phases take the kernel of two column phases, where there may be one.
  const bool has_phases = problem.stride_h > 1 || problem.stride_w > 1;
  g.interleave = !has_phases ? 0 : problem.stride_w <= 2 ? 1 : 2;
  g.run = kTilePixels >> g.interleave;
  g.raster_height = static_cast<int>(ceil_div(problem.out_height, problem.stride_h));
  g.raster_width = static_cast<int>(ceil_div(problem.out_width, problem.stride_w));
}

// Joint rows are places of taps beside those of the filter.
void set_joint_rows(const HaloProblem& problem, int shift, HaloGeometry& g) {
  g.joint_shift = shift;
  g.joint_rows = 1 << shift;
  g.taps_r += g.joint_rows - 1;
  g.row_taps[0].count += g.joint_rows - 1;
  g.raster_height = static_cast<int>(ceil_div(problem.out_height, g.output_rows()));
}

// Whether rows of M that filters leave empty can hold others' rows. With dilation no two would share a place.
bool can_be_joint(const HaloProblem& problem, int shift) {
  if (shift == 0) return true;
  return !problem.transposed && problem.dilation_h == 1 && problem.out_height >= 1 << shift &&
         std::int64_t{problem.filters} << shift <= kGroupFilters;
}

void set_filters(const HaloProblem& problem, HaloGeometry& g) {
  const int shares = static_cast<int>(ceil_div(problem.filters, g.share_filters())) * g.phases_h;
  g.sharers = shares % 2 == 0 ? 2 : 1;
  g.filter_tiles = Divisor(static_cast<std::uint32_t>(shares / g.sharers));
}

// Numbers of the raster that a row of a box spans.
std::int64_t row_pitch(const Choice& choice, std::int64_t width, const HaloGeometry& g) {
  // Rows of a slot begin at multiples of 128 bytes, where TMA may write; those that are kept move by
  // multiples of the swizzle.
  return round_up(width, (choice.wide_pitch ? kSwizzleAtom : 128) / g.row_bytes);
}

// Rows of the raster that a tile has whole, its dropped columns aside; 0 where it has none.
int whole_rows(std::int64_t pitch, const HaloGeometry& g) {
  return g.run < g.strip_width ? 0 : static_cast<int>((g.run - g.strip_width) / pitch + 1);
}

// False where no such raster can be.
bool set_raster(const HaloProblem& problem, const Choice& choice, HaloGeometry& g) {
  g.group_r = choice.group_r;
  g.group_s = choice.group_s;
  g.groups_r = static_cast<int>(ceil_div(g.taps_r, choice.group_r));
  g.groups_s = static_cast<int>(ceil_div(g.taps_s, choice.group_s));
  if (g.joint_rows > 1 && g.groups_r > 1) return false;  // a group's rows would begin in any plane
  const std::int64_t taps =
      std::int64_t{g.channel_blocks} * (problem.taps_r + g.joint_rows - 1) * problem.taps_s;
  if (taps > kMaxInt) return false;
  g.taps = static_cast<int>(taps);
  for (int phase = 0, before = 0; phase < g.phases_h; ++phase) {
    g.taps_before[phase] = before;
    g.phase_taps[phase] = g.channel_blocks * g.row_taps[phase].count * g.columns;
    before += g.phase_taps[phase];
  }
  g.units = g.channel_blocks * g.groups_r * g.groups_s;
  g.strips = Divisor(static_cast<std::uint32_t>(choice.strips));
  g.strip_width = static_cast<int>(ceil_div(g.raster_width, choice.strips));
  const std::int64_t halo_w = std::int64_t{choice.group_s - 1} * problem.dilation_w;
  const std::int64_t halo_h = std::int64_t{choice.group_r - 1} * problem.dilation_h;
  const std::int64_t pitch = row_pitch(choice, g.strip_width + halo_w, g);
  if (pitch > kMaxPitch || halo_h >= kMaxBoxRows) return false;
  g.pitch = Divisor(static_cast<std::uint32_t>(pitch));
  g.half_pitch = Divisor(static_cast<std::uint32_t>((pitch + 1) / 2));
  g.pair_pitch = Divisor(static_cast<std::uint32_t>(pitch / 2 + 1));
  const std::int64_t image_rows = g.raster_height + ceil_div(halo_h - (g.joint_rows - 1), g.joint_rows);
  const std::int64_t last_image = choice.stacked ? (problem.batch - 1) * image_rows : 0;
  const std::int64_t all_rows = last_image + g.raster_height;
  const std::int64_t positions = (all_rows - 1) * pitch + g.strip_width;
  if (positions + kTilePixels + kMaxBoxRows * pitch > kMaxInt) return false;
  const std::int64_t rows = positions / pitch + kMaxBoxRows + std::int64_t{g.taps_r - 1} * problem.dilation_h;
  if (rows > kMaxInt >> g.joint_shift) return false;
  g.images_per_raster = choice.stacked ? problem.batch : 1;
  g.rasters = choice.stacked ? 1 : problem.batch;
  g.stacked = choice.stacked;
  const int whole = choice.whole_rows ? whole_rows(pitch, g) : 0;
  if (choice.whole_rows && whole == 0) return false;
  g.step = choice.whole_rows ? static_cast<int>(whole * pitch) : g.run;
  g.step_rows = static_cast<int>(g.step / pitch);
  g.step_offset = static_cast<int>(g.step % pitch);
  g.image_rows = Divisor(static_cast<std::uint32_t>(choice.stacked ? image_rows : kMaxInt >> g.joint_shift));
  const std::int64_t runs = choice.whole_rows ? ceil_div(all_rows, whole) : ceil_div(positions, g.step);
  g.last_row = static_cast<int>((runs - 1) * g.step / pitch);
  g.last_offset = static_cast<int>((runs - 1) * g.step % pitch);
  g.runs = Divisor(static_cast<std::uint32_t>(runs));
  // Runs begin at multiples of this in a virtual row.
  const std::int64_t grain = std::gcd(pitch, std::int64_t{g.step});
  const std::int64_t most_offset = runs == 1 ? 0 : pitch - grain;
  g.run_rows = choice.whole_rows ? whole : static_cast<int>((most_offset + g.run - 1) / pitch + 1);
  g.box_rows = static_cast<int>(((g.run_rows - 1) << g.joint_shift) + halo_h + 1);
  g.plane_rows = static_cast<int>(ceil_div(g.box_rows, g.joint_rows));
  const double tiles = 1.0 * g.filter_tiles.divisor * runs * choice.strips * g.rasters;
  if (tiles > kMaxInt || g.box_rows > kMaxBoxRows) return false;
  g.tiles = static_cast<int>(tiles);
  return true;
}

// Whether all boxes begin at columns that are multiples of `line`.
bool begins_at_multiples(const HaloProblem& problem, const HaloGeometry& g, int line) {
  return g.pad_left % line == 0 && (g.strips.divisor == 1 || g.strip_width % line == 0) &&
         (g.groups_s == 1 || g.group_s * problem.dilation_w % line == 0);
}

// A raw stage of `channels` channels. False where the copy engine, which begins at multiples of 16 bytes,
// cannot load it: raw rows of 32 bits begin before the box then, those of 16 bits, which are turned as
// matrices, do not.
bool set_raw_stage(const HaloProblem& problem, int channels, HaloGeometry& g) {
  const int block_channels = g.row_bytes / g.element_bytes;
  const int last_channels = g.last_steps * kStepBytes / g.element_bytes;
  const int line = g.raw_line = 16 / g.input_bytes;
  const bool aligned = begins_at_multiples(problem, g, line);
  if (!aligned && g.input_bytes == 2) return false;
  g.raw_width = static_cast<int>(round_up(g.pitch.divisor + (aligned ? 0 : line - 1), line));
  if (g.raw_width > kMaxPitch) return false;
  // An odd number of 16 bytes, so that 16 bytes of each of 8 channels lie in different banks.
  const bool is_odd = g.raw_width / line % 2 == 1;
  if (g.input_bytes == 2 && !is_odd && g.raw_width + line <= kMaxPitch) g.raw_width += line;
  g.raw_channels = channels;
  g.raw_chunks = block_channels / channels;
  g.last_raw_chunks = static_cast<int>(ceil_div(last_channels, channels));
  g.raw_stage_bytes = static_cast<int>(round_up(g.raw_width * channels * g.input_bytes, 128));
  return true;
}

// The last row of a slot that a tap reads, for a dropped number or another one.
std::int32_t last_row_read(const HaloProblem& problem, const HaloGeometry& g) {
  const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
  const std::int32_t most_offset = g.step_offset == 0 ? 0 : pitch - 1;
  const std::int32_t last_line = g.joint_rows == 1
                                     ? (g.group_r - 1) * problem.dilation_h
                                     : (g.joint_rows - 1) * g.plane_rows + (g.group_r - 1) / g.joint_rows;
  return most_offset + g.run - 1 + last_line * pitch + (g.group_s - 1) * problem.dilation_w;
}

// False where slots, weights and at least so many raw stages do not fit.
bool set_stages(const HaloProblem& problem, HaloGeometry& g) {
  g.stage_bytes = kGroupFilters * g.row_bytes;
  const std::int64_t rows = std::int64_t{g.joint_rows} * g.plane_rows * g.pitch.divisor;
  const std::int64_t slot = round_up(rows * g.row_bytes, kSwizzleAtom);
  const int tables = problem.load == InputLoad::kGather ? kBoxTables * g.table_bytes() : 0;
  // Of so many raw stages of each warp. Boxes of the output, behind them, begin where a swizzle does.
  const auto raw_bytes = [&](int stages) {
    return round_up(std::int64_t{stages} * kLoaderWarps * g.raw_stage_bytes, kSwizzleAtom);
  };
  g.warp_staging_bytes =
      problem.stores_filters ? filters_staging_bytes() : pixels_staging_bytes(problem.output_bytes);
  const int staging = kConsumerWarps * g.warp_staging_bytes;
  const std::int64_t room =
      kSharedLimit - kBarrierBytes - staging - 2 * tile_memory_bytes(g.joint_rows) - round_up(tables, 128);
  const std::int64_t all_taps = std::int64_t{g.taps} * g.filter_groups();
  const auto stages_beside = [&](std::int64_t slots, int raw = kMinRawStages) {
    return (room - slots * slot - raw_bytes(raw)) / g.stage_bytes;
  };
  if (2 * slot + raw_bytes(kMinRawStages) > room) return false;
  if (stages_beside(2) < std::min<std::int64_t>(kMinStages, all_taps)) return false;
  g.slot_bytes = static_cast<int>(slot);
  if (g.joint_rows > 1 &&
      (g.units > 1 || all_taps > std::min<std::int64_t>(kMaxWeightStages, stages_beside(2)))) {
    return false;
  }
  g.weights_stay = all_taps <= std::min<std::int64_t>(kMaxWeightStages, stages_beside(2));
  const std::int64_t wanted = g.weights_stay     ? all_taps
                              : g.interleave > 0 ? kGoodStagesOfPhases
                                                 : kGoodStages;
  g.num_slots = 2;
  while (g.num_slots < kMaxSlots && stages_beside(g.num_slots + 1) >= wanted) ++g.num_slots;
  int raw = kMinRawStages;
  while (raw < kMaxRawStages && stages_beside(g.num_slots, raw + 1) >= wanted) ++raw;
  g.num_stages = static_cast<int>(
      g.weights_stay ? all_taps : std::min<std::int64_t>(kMaxWeightStages, stages_beside(g.num_slots, raw)));
  // The longer a turn, the longer the other consumer has for its epilogue. But the slots of all of a tile's
  // units must then be full at a time, and full again soon after, which only the copy engine is fast enough
  // for.
  g.turn_is_tile = g.sharers == 1 || (problem.load == InputLoad::kBoxes && g.units <= g.num_slots);
  g.raw_stages_per_warp = g.raw_stage_bytes > 0 ? raw : 0;
  g.raw_offset = g.weights_offset() + g.num_stages * g.stage_bytes;
  g.staging_offset = g.raw_offset + static_cast<int>(raw_bytes(raw));
  g.tile_memory_offset = g.staging_offset + staging;
  g.table_offset = g.tile_memory_offset + 2 * tile_memory_bytes(g.joint_rows);
  g.barrier_offset = g.table_offset + static_cast<int>(round_up(tables, 128));
  g.shared_bytes = g.barrier_offset + kBarrierBytes;
  // Dropped numbers read behind the last slot; what lies there is read and not used.
  const std::int64_t last_read =
      (g.num_slots - 1) * slot + std::int64_t{last_row_read(problem, g)} * g.row_bytes;
  return last_read + g.row_bytes <= g.shared_bytes;
}

// False where it does not fit.
bool set_shared_memory(const HaloProblem& problem, HaloGeometry& g) {
  if (problem.load != InputLoad::kRows) return set_stages(problem, g);
  const int least = 16 / g.element_bytes;  // of a piece
  for (int channels = g.row_bytes / g.element_bytes; channels >= least; channels /= 2) {
    if (!set_raw_stage(problem, channels, g)) return false;
    const bool is_good = g.raw_stage_bytes <= kGoodRawBytes || channels == least;
    if (is_good && set_stages(problem, g)) return true;
  }
  return false;
}

// Rows of a box that a tile loads, about; the others are kept from the tile before (unit_walk.h).
double loaded_rows(const HaloProblem& problem, const HaloGeometry& g) {
  const int least = g.step_offset == 0 ? g.step : static_cast<int>(g.pitch.divisor);
  const int halo = (g.group_r - 1) * problem.dilation_h - (g.joint_rows - 1);
  const bool fits = g.units < g.num_slots || (g.units == g.num_slots && halo <= g.step_rows << g.joint_shift);
  const bool keeps = problem.load != InputLoad::kBoxes && g.filter_tiles.divisor == 1 && g.runs.divisor > 1 &&
                     fits && least * g.row_bytes % kSwizzleAtom == 0;
  return keeps ? static_cast<double>(g.step) / g.pitch.divisor * g.joint_rows : g.box_rows;
}

// Clocks of a tile, about: the tensor cores', or those of loads and stores where they take longer, and a
// little for the power that moving bytes takes from the tensor cores.
PlannedClocks tile_clocks(const HaloProblem& problem, const HaloGeometry& g, bool is_stored) {
  constexpr double kLoadBytesPerClock = 24;    // TMA, from the L2
  constexpr double kGatherBytesPerClock = 12;  // a warpgroup of threads
  constexpr double kTurnBytesPerClock = 6;     // of raw rows
  constexpr double kEdge = 16;                 // pixels' worth of sectors that a row's two ends touch in vain
  constexpr double kUnitClocks = 500;          // of a unit's loads and hand-overs
  constexpr double kStreamedTapClocks = 200;   // of a tap of phases; a guess, not to cut rows for
  const double stored = is_stored ? 1.0 * kTilePixels * kGroupFilters * g.sharers * g.element_bytes : 0;
  const double store = stored * (1 + kEdge / (g.strip_width * g.phases_w)) / kStoreBytesPerClock;
  const double box = loaded_rows(problem, g) * g.pitch.divisor * g.row_bytes * g.units;
  const double edges = problem.load == InputLoad::kBoxes ? 1 : 1 + kEdge / g.pitch.divisor;
  const double raw = problem.load == InputLoad::kRows ? 1.0 * g.input_bytes / g.element_bytes : 1;
  const double rate = problem.load == InputLoad::kBoxes  ? kLoadBytesPerClock
                      : problem.load == InputLoad::kRows ? kTurnBytesPerClock
                                                         : kGatherBytesPerClock;
  const double load = box * edges * raw / rate;
  const double tensor = 1.0 * share_clocks(g) * g.sharers, power = (box + stored) / 400;
  const double clocks = std::max({tensor, load, store}) + power + kUnitClocks * g.units;
  const bool waits = g.interleave > 0 && !g.weights_stay;
  // Rows and columns of a product come from shared memory, and what is loaded goes there.
  const double port = tensor * (kTilePixels + kGroupFilters) / (2 * kTilePixels) + (box + stored) / 128;
  return {clocks + (waits ? kStreamedTapClocks * g.taps : 0.0), tensor, power, port, load, store};
}

// Of all tiles.
double cost(const HaloProblem& problem, const HaloGeometry& g, bool is_stored = true) {
  return static_cast<double>(g.tiles) * tile_clocks(problem, g, is_stored).all;
}

// Of the multiprocessor with the most tiles, and of each on average.
PlannedClocks planned_clocks(const HaloProblem& problem, const HaloGeometry& g) {
  PlannedClocks clocks = tile_clocks(problem, g, true);
  const double tiles = g.tiles / kH200.multiprocessors;
  clocks.all *= std::ceil(tiles);
  for (double* of : {&clocks.tensor, &clocks.power, &clocks.shared_memory, &clocks.fill, &clocks.store}) {
    *of *= tiles;
  }
  return clocks;
}

}  // namespace

HaloPlan plan_halo(const HaloProblem& problem) {
  HaloGeometry base{};
  base.batch = problem.batch;
  base.channels = problem.channels;
  base.height = problem.height;
  base.width = problem.width;
  base.filters = problem.filters;
  base.out_height = problem.out_height;
  base.out_width = problem.out_width;
  base.dilation_h = problem.dilation_h;
  base.dilation_w = problem.dilation_w;
  set_channels(problem, base);
  set_taps(problem, base);

  HaloPlan best;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](const Choice& choice) {
    HaloGeometry g = base;
    if (!set_raster(problem, choice, g) || !set_shared_memory(problem, g)) return;
    const double clocks = cost(problem, g);
    if (clocks < least) {
      least = clocks;
      best.geometry = g;
      best.statistics_clocks = cost(problem, g, false);
    }
  };
  // Every size of group that cuts the filter into another number of groups, and every number of strips.
  const auto consider_all = [&] {
    const int width = base.raster_width;
    for (int groups_r = 1; groups_r <= base.taps_r; ++groups_r) {
      const int group_r = static_cast<int>(ceil_div(base.taps_r, groups_r));
      if (ceil_div(base.taps_r, group_r) != groups_r) continue;
      for (int groups_s = 1; groups_s <= base.taps_s; ++groups_s) {
        const int group_s = static_cast<int>(ceil_div(base.taps_s, groups_s));
        if (ceil_div(base.taps_s, group_s) != groups_s) continue;
        const int most_strips = std::min<int>(width, 4 + width / 16);
        for (int strip = std::min(width, kMaxPitch); strip >= 1; --strip) {
          const int strips = static_cast<int>(ceil_div(width, strip));
          if (strips > most_strips) break;
          if (ceil_div(width, strips) != strip) continue;
          for (int i = 0; i < 8; ++i) {
            const bool stacked = (i & 1) != 0;
            if (stacked && (problem.batch == 1 || problem.by_image)) continue;
            consider({group_r, group_s, strips, stacked, (i & 2) != 0, (i & 4) != 0});
          }
        }
      }
    }
  };
  const HaloGeometry without_joint_rows = base;
  for (int shift = 0; shift <= kMaxJointShift; ++shift) {
    if (!can_be_joint(problem, shift)) continue;
    base = without_joint_rows;
    set_joint_rows(problem, shift, base);
    set_filters(problem, base);
    consider_all();
  }
  if (least == std::numeric_limits<double>::infinity()) {
    best.why_not = "no tile of this convolution fits the card's shared memory";
  } else {
    best.clocks = planned_clocks(problem, best.geometry);
  }
  return best;
}

}  // namespace epiconv::sm90
