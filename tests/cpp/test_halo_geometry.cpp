// Where the halo-tile convolution puts things: what the planner promises, and the functions that find them
// again.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "epiconv/error.h"
#include "expectations.h"
#include "host_model/units.h"
#include "sm90/fragments.h"
#include "sm90/raw_rows.h"

using namespace epiconv::sm90;
using namespace expectations;
using epiconv::concat;

namespace {

std::string to_text(const HaloProblem& p) {
  return concat("{", p.batch, ", ", p.channels, ", ", p.height, ", ", p.width, ", ", p.filters, ", ",
                p.taps_r, ", ", p.taps_s, ", ", p.dilation_h, ", ", p.dilation_w, ", ", p.pad_top, ", ",
                p.pad_left, ", ", p.out_height, ", ", p.out_width, ", ", p.element_bytes, ", ", p.input_bytes,
                ", load ", static_cast<int>(p.load), ", ", p.stores_filters ? "true" : "false", ", ",
                p.output_bytes, ", ", p.transposed ? "true" : "false", ", ", p.stride_h, ", ", p.stride_w,
                "}");
}

// ---- What the planner promises.

void check_raw_stages(const HaloProblem& problem, const HaloGeometry& g) {
  if (problem.load != InputLoad::kRows) {
    expect(g.raw_stages_per_warp == 0 && g.staging_offset == g.raw_offset, "raw stages that are not needed");
    return;
  }
  expect(g.raw_stages_per_warp >= 2 && g.raw_stages_per_warp <= kMaxRawStages, g.raw_stages_per_warp,
         " raw stages");
  expect(g.raw_offset % 128 == 0 && g.raw_stage_bytes % 128 == 0, "TMA does not write where raw stages lie");
  expect(g.staging_offset >= g.raw_offset + kLoaderWarps * g.raw_stages_per_warp * g.raw_stage_bytes,
         "raw stages run into staging");
  expect(g.raw_width >= static_cast<std::int32_t>(g.pitch.divisor) && g.raw_width <= 256 &&
             g.raw_width * g.input_bytes % 16 == 0,
         "raw rows of ", g.raw_width);
  expect(g.input_bytes != 2 || g.raw_width / 8 % 2 == 1 || g.raw_width == 256, "raw rows of ", g.raw_width,
         " whose banks conflict");
  expect(g.raw_width * g.raw_channels * g.input_bytes <= g.raw_stage_bytes, "raw rows of ", g.raw_channels,
         " channels do not fit their stage");
  const std::int32_t piece = 16 / g.element_bytes, block = g.row_bytes / g.element_bytes;
  expect(g.raw_channels % piece == 0 && g.raw_chunks * g.raw_channels == block, g.raw_chunks, " chunks");
  const std::int32_t last = g.last_steps * kStepBytes / g.element_bytes;
  expect(g.last_raw_chunks <= g.raw_chunks && g.last_raw_chunks * g.raw_channels >= last, g.last_raw_chunks,
         " chunks in the last block");
}

void check_memory(const HaloProblem& problem, const HaloGeometry& g) {
  const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
  const std::int64_t tables = problem.load == InputLoad::kGather ? kBoxTables * g.table_bytes() : 0;
  expect(g.shared_bytes <= kSharedLimit, g.shared_bytes, " bytes of shared memory");
  expect(g.slot_bytes % kSwizzleAtom == 0, "slots of ", g.slot_bytes, " bytes");
  expect(g.stage_bytes % kSwizzleAtom == 0, "stages of ", g.stage_bytes, " bytes");
  expect(g.staging_offset % 128 == 0 && g.tile_memory_offset % 128 == 0, "offsets are no multiples of 128");
  expect(tile_memory_bytes(g.joint_rows) % 4 == 0 && g.table_offset % 8 == 0 && g.barrier_offset % 8 == 0,
         "tables or barriers are not aligned");
  expect(g.weights_offset() == g.num_slots * g.slot_bytes, "slots run into the stages");
  expect(g.raw_offset >= g.weights_offset() + g.num_stages * g.stage_bytes, "stages run into the raw ones");
  check_raw_stages(problem, g);
  expect(!problem.stores_filters || g.staging_offset % kSwizzleAtom == 0, "boxes of the output begin at ",
         g.staging_offset);
  const int staged = problem.stores_filters ? std::max(kBoxes * kBoxBytes / (kConsumerWarps / 2),
                                                       2 * kPiecePixels * kFiltersPitch)
                                            : kWarpFilters * kRunPixels * problem.output_bytes;
  expect(g.warp_staging_bytes >= staged, g.warp_staging_bytes, " bytes of staging memory");
  expect(g.tile_memory_offset >= g.staging_offset + kConsumerWarps * g.warp_staging_bytes,
         "staging runs into the tile memory");
  expect(g.table_offset >= g.tile_memory_offset + 2 * tile_memory_bytes(g.joint_rows),
         "the tile memory runs into the tables");
  expect(g.barrier_offset >= g.table_offset + tables, "the tables run into the barriers");
  expect(g.shared_bytes >= g.barrier_offset + kBarrierBytes, "the barriers run out of shared memory");
  expect(std::int64_t{g.joint_rows} * g.plane_rows * pitch * g.row_bytes <= g.slot_bytes &&
             g.joint_rows * g.plane_rows >= g.box_rows,
         "a box is larger than its slot");
  expect(g.slot_bytes < 1 << 20, "an mbarrier cannot count a slot's bytes");
  expect(g.num_slots >= 2 && g.num_slots <= kMaxSlots, g.num_slots, " slots");
  const std::int64_t taps = std::int64_t{g.channel_blocks} * (problem.taps_r + g.joint_rows - 1) *
                            problem.taps_s * g.filter_groups();
  expect(g.num_stages >= std::min<std::int64_t>(4, taps) && g.num_stages <= kMaxWeightStages, g.num_stages,
         " stages");
  expect(!g.weights_stay || g.num_stages == taps, g.num_stages, " stages for ", taps, " taps that stay");
  // The last row that the last number of the last tap reads, in the last slot.
  const std::int64_t most_offset = g.step % pitch == 0 ? 0 : pitch - 1;
  std::int64_t last_line = 0;
  for (std::int32_t r = 0; r < g.group_r; ++r) {
    last_line = std::max<std::int64_t>(last_line, g.slot_line(r * g.dilation_h));
  }
  const std::int64_t last_row =
      most_offset + g.run - 1 + last_line * pitch + std::int64_t{g.group_s - 1} * g.dilation_w;
  const std::int64_t last = std::int64_t{g.num_slots - 1} * g.slot_bytes + (last_row + 1) * g.row_bytes;
  expect(last <= g.shared_bytes, "dropped positions read up to byte ", last);
}

void check_shape(const HaloProblem& problem, const HaloGeometry& g) {
  const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
  expect(pitch >= 1 && pitch <= kMaxPitch && pitch * g.row_bytes % 128 == 0, "pitch ", pitch);
  expect(pitch >= g.strip_width + (g.group_s - 1) * g.dilation_w, "pitch ", pitch,
         " has no room for the halo");
  const std::int64_t width = std::int64_t{g.strip_width} * g.strips.divisor;
  expect(width >= g.raster_width && width - g.strip_width < g.raster_width, g.strips.divisor, " strips of ",
         g.strip_width);
  expect(g.raster_width == (g.out_width + g.phases_w - 1) / g.phases_w &&
             g.raster_height == (g.out_height + g.output_rows() - 1) / g.output_rows(),
         "a raster of ", g.raster_height, " x ", g.raster_width);
  expect(g.run << g.interleave == kTilePixels && 1 << g.interleave >= g.phases_w, "runs of ", g.run);
  // Each number of the raster belongs to one tile, or is dropped.
  expect(g.step <= g.run || (g.step % pitch == 0 && g.step - pitch + g.strip_width <= g.run), "steps of ",
         g.step);
  expect(g.row_bytes == 32 || g.row_bytes == 64 || g.row_bytes == 128, "rows of ", g.row_bytes, " bytes");
  const std::int64_t bytes = std::int64_t{problem.channels} * problem.element_bytes;
  const std::int64_t room = std::int64_t{g.channel_blocks - 1} * g.row_bytes + g.last_steps * kStepBytes;
  expect(room >= bytes && room - kStepBytes < bytes && g.last_steps * kStepBytes <= g.row_bytes,
         g.channel_blocks, " blocks, ", g.last_steps, " steps in the last");
  expect(g.group_r * g.groups_r >= g.taps_r && g.group_r * (g.groups_r - 1) < g.taps_r, "groups of rows");
  expect(g.group_s * g.groups_s >= g.taps_s && g.group_s * (g.groups_s - 1) < g.taps_s, "groups of columns");
  expect(std::int64_t{g.filter_groups()} * g.share_filters() >= g.filters &&
             std::int64_t{g.filter_groups() - 1} * g.share_filters() < g.filters,
         g.filter_groups(), " filter groups");
  expect(g.joint_rows == 1 << g.joint_shift && (g.joint_rows == 1 || g.output_rows() == g.joint_rows),
         g.joint_rows, " joint rows");
  expect(std::int64_t{g.images_per_raster} * g.rasters == g.batch, g.rasters, " rasters");
  expect(g.tiles == std::int64_t{g.filter_tiles.divisor} * g.runs.divisor * g.strips.divisor * g.rasters,
         g.tiles, " tiles");
}

// A share's taps are numbered in the order in which units use them, and together they are the filter's.
void check_taps(const HaloProblem& problem, const HaloGeometry& g) {
  std::set<std::array<std::int32_t, 3>> found;
  std::int32_t before = 0;
  for (std::int32_t phase = 0; phase < g.phases_h; ++phase) {
    const Share share = Share::of(g, phase);
    expect(share.group == 0 && share.row_phase == phase && share.taps_before(g) == before, "share ", phase);
    before += share.taps(g);
    std::int32_t index = 0;
    for (std::int32_t u = 0; u < g.units; ++u) {
      const Unit unit = unit_number(g, u);
      const PlaceSpan rows = unit.rows_of(g, phase);
      const std::int32_t begin = index;
      for (std::int32_t r = rows.first; r < rows.end; ++r) {
        for (std::int32_t column_phase = 0; column_phase < g.phases_w; ++column_phase) {
          const PlaceSpan columns = unit.columns_of(g, column_phase);
          for (std::int32_t s = columns.first; s < columns.end; ++s, ++index) {
            const PackedTap tap = PackedTap::of(g, phase, index);
            expect(tap.channel_block == unit.channel_block && tap.r >= 0 &&
                       tap.r < problem.taps_r + g.joint_rows - 1 && tap.s >= 0 && tap.s < problem.taps_s,
                   "tap ", index, " is (", tap.channel_block, ", ", tap.r, ", ", tap.s, ")");
            // Output stride * a + phase + pad = stride * input + tap, input = a - pad of the box + place.
            const std::int32_t y = unit.group_r * g.group_r + r - g.pad_top;
            const std::int32_t x = unit.group_s * g.group_s + s - g.pad_left;
            expect(problem.transposed ? problem.stride_h * y + tap.r == phase + problem.pad_top &&
                                            problem.stride_w * x + tap.s == column_phase + problem.pad_left
                                      : tap.r == y + g.pad_top && tap.s == x + g.pad_left,
                   "tap (", tap.r, ", ", tap.s, ") at place (", y, ", ", x, ") of phase ", phase, ", ",
                   column_phase);
            found.insert({tap.channel_block, tap.r, tap.s});
          }
        }
      }
      expect(index - begin == unit.taps(g, phase), "unit ", u, " has ", index - begin, " taps");
    }
    expect(index == share.taps(g), index, " taps of share ", phase);
  }
  expect(before == g.taps && found.size() == static_cast<std::size_t>(g.taps), found.size(), " taps");
}

// Row m of M has each row of its filter's taps at one place: as many places farther as its output row is.
void check_joint_rows(const HaloProblem& problem, const HaloGeometry& g) {
  for (std::int32_t m = 0; m < kGroupFilters; ++m) {
    const WarpRows warp = WarpRows::of(g, m / kWarpFilters);
    for (std::int32_t place = 0; place < problem.taps_r + g.joint_rows - 1; ++place) {
      const PackedRow row = PackedRow::of(g, 1, m, place);
      const std::int32_t tap = place - warp.joint;
      expect(row.filter == g.share_filters() + warp.filter + m % kWarpFilters &&
                 row.r == (tap >= 0 && tap < problem.taps_r ? tap : -1),
             "row ", m, " is filter ", row.filter, " and tap ", row.r, " at place ", place);
    }
  }
}

// ---- Tiles, recomputed in 64 bits.

struct WideTile {
  std::int64_t filter_tile, strip, raster, first;  // raster number of the first position
  WideTile(const HaloGeometry& g, std::int64_t index) {
    filter_tile = index % g.filter_tiles.divisor;
    first = index / g.filter_tiles.divisor % g.runs.divisor * g.step;
    strip = index / g.filter_tiles.divisor / g.runs.divisor % g.strips.divisor;
    raster = index / g.filter_tiles.divisor / g.runs.divisor / g.strips.divisor;
  }
};

// What a tap of a unit reads for a valid pixel is in the box, and is the input that convolution wants there.
void check_tap(const HaloGeometry& g, const Tile& tile, const Unit& unit, const Pixel& pixel,
               std::int32_t position, std::int32_t r, std::int32_t s) {
  const std::int64_t pitch = g.pitch.divisor;
  const std::int64_t row = tap_row(g, tile, r, s) + (position >> g.interleave);
  const std::int64_t line = row / pitch, x = row % pitch;
  const std::int64_t y = line % g.plane_rows * g.joint_rows + line / g.plane_rows;
  expect(row >= 0 && y < tile.box_rows(g, unit.rows(g)), "position ", position, " reads row ", y,
         " of a box");
  const BoxRow from = BoxRow::of(g, tile, unit, static_cast<std::int32_t>(y));
  const std::int64_t h = std::int64_t{pixel.p} / g.output_rows() * g.joint_rows - g.pad_top +
                         (unit.group_r * g.group_r + r) * g.dilation_h;
  const std::int64_t w =
      std::int64_t{pixel.q} / g.phases_w - g.pad_left + (unit.group_s * g.group_s + s) * g.dilation_w;
  expect(from.n == pixel.n && from.h == h && box_column(g, tile, unit) + x == w, "tap (", r, ", ", s,
         ") of position ", position, " reads (", from.n, ", ", from.h, ", ", box_column(g, tile, unit) + x,
         ") for (", pixel.n, ", ", h, ", ", w, ")");
}

void check_tile(const HaloGeometry& g, std::int32_t index) {
  const std::int64_t pitch = g.pitch.divisor, image_rows = g.image_rows.divisor;
  const Tile tile = Tile::of(g, index);
  const WideTile wide(g, index);
  expect(tile.filter_tile == wide.filter_tile && tile.strip == wide.strip && tile.raster == wide.raster &&
             tile.first_row == wide.first / pitch && tile.offset == wide.first % pitch,
         "tile ", index);
  expect(tile.box_rows(g, g.group_r) <= g.box_rows, "the box of tile ", index, " has ",
         tile.box_rows(g, g.group_r), " rows");
  const Unit last_unit = unit_number(g, g.units - 1);
  for (std::int32_t at = 0; at < kTilePixels * g.output_rows(); ++at) {
    const std::int32_t position = at / g.output_rows(), row_phase = at % g.output_rows();
    const std::int32_t number = position >> g.interleave, phase = position & ((1 << g.interleave) - 1);
    const std::int64_t row = (wide.first + number) / pitch, column = (wide.first + number) % pitch;
    const std::int64_t n = wide.raster * g.images_per_raster + row / image_rows;
    const std::int64_t p = row % image_rows * g.output_rows() + row_phase;
    const std::int64_t q = (wide.strip * g.strip_width + column) * g.phases_w + phase;
    const bool valid = number < g.step && phase < g.phases_w && n < g.batch && p < g.out_height &&
                       q < g.out_width && column < g.strip_width;
    const Pixel pixel = Pixel::of(g, tile, row_phase, position);
    expect(pixel.valid == valid && (!valid || (pixel.n == n && pixel.p == p && pixel.q == q)), "position ",
           position, " of tile ", index, " is (", pixel.n, ", ", pixel.p, ", ", pixel.q, ")");
    if (!pixel.valid) continue;
    for (const Unit& unit : {unit_number(g, 0), last_unit}) {
      for (const std::int32_t r : {0, unit.rows(g) - 1}) {
        for (const std::int32_t s : {0, unit.columns(g) - 1}) check_tap(g, tile, unit, pixel, position, r, s);
      }
    }
  }
  // Rows of dropped positions, too, must be found without overflow.
  for (const Unit& unit : {unit_number(g, 0), last_unit}) {
    BoxRow walked = BoxRow::of(g, tile, unit, 0);
    for (std::int32_t y = 0; y < tile.box_rows(g, unit.rows(g)); ++y) {
      const std::int64_t row = wide.first / pitch * g.joint_rows + y, input_rows = image_rows * g.joint_rows;
      const BoxRow from = BoxRow::of(g, tile, unit, y);
      expect(from.n == walked.n && from.h == walked.h && from.left == walked.left, "row ", y, " of tile ",
             index, " is (", walked.n, ", ", walked.h, ") when it is advanced to");
      walked.advance(g);
      expect(from.n == wide.raster * g.images_per_raster + row / input_rows &&
                 from.h == row % input_rows + unit.group_r * g.group_r * g.dilation_h - g.pad_top,
             "row ", y, " of tile ", index, " is (", from.n, ", ", from.h, ")");
    }
  }
}

// Every output pixel is one position of one tile, of every filter group.
void check_coverage(const HaloGeometry& g) {
  const auto pixels = static_cast<std::size_t>(std::int64_t{g.batch} * g.out_height * g.out_width);
  std::vector<std::int32_t> times(pixels * static_cast<std::size_t>(g.filter_groups()), 0);
  for (std::int32_t index = 0; index < g.tiles; ++index) {
    const Tile tile = Tile::of(g, index);
    for (std::int32_t sharer = 0; sharer < g.sharers; ++sharer) {
      const Share share = Share::of(g, tile.filter_tile * g.sharers + sharer);
      for (std::int32_t at = 0; at < kTilePixels * g.joint_rows; ++at) {
        const Pixel pixel = Pixel::of(g, tile, share.row_phase + at % g.joint_rows, at / g.joint_rows);
        if (!pixel.valid) continue;
        const std::int64_t place = (std::int64_t{pixel.n} * g.out_height + pixel.p) * g.out_width + pixel.q;
        ++times[static_cast<std::size_t>(share.group) * pixels + static_cast<std::size_t>(place)];
      }
    }
  }
  const auto wrong = times.size() - static_cast<std::size_t>(std::count(times.begin(), times.end(), 1));
  expect(wrong == 0, wrong, " of ", times.size(), " outputs are not computed once");
}

int planned_by_rows = 0, planned_joint = 0;

void check_plan(const HaloProblem& problem) {
  subject = to_text(problem);
  const HaloPlan plan = plan_halo(problem);
  expect(plan.why_not.empty() || problem.load == InputLoad::kRows, plan.why_not);
  if (!plan.why_not.empty()) return;
  if (problem.load == InputLoad::kRows) ++planned_by_rows;
  const HaloGeometry& g = plan.geometry;
  check_memory(problem, g);
  check_shape(problem, g);
  if (g.taps <= 20000) check_taps(problem, g);
  check_joint_rows(problem, g);
  if (g.joint_rows > 1) ++planned_joint;
  // Tiles at both ends and some between.
  std::set<std::int64_t> tiles{std::int64_t{g.filter_tiles.divisor} * (g.runs.divisor - 1)};
  for (std::int64_t i = 0; i < 20; ++i) tiles.insert(g.tiles * i / 20);
  for (std::int64_t i = 1; i <= 3; ++i) tiles.insert(std::max<std::int64_t>(0, g.tiles - i));
  for (const std::int64_t index : tiles) check_tile(g, static_cast<std::int32_t>(index));
  if (g.tiles <= 300) check_coverage(g);
}

struct Extreme {
  std::string_view reason;
  HaloProblem problem;
};

const std::vector<Extreme> kExtremes{
    {"the headline",
     {128, 64, 128, 128, 128, 3, 3, 1, 1, 0, 0, 126, 126, 4, 4, InputLoad::kGather, false, 4}},
    {"the headline by rows",
     {128, 64, 128, 128, 128, 3, 3, 1, 1, 0, 0, 126, 126, 4, 4, InputLoad::kRows, false, 4}},
    {"the headline, 16-bit, by rows",
     {128, 64, 128, 128, 128, 3, 3, 1, 1, 0, 0, 126, 126, 2, 2, InputLoad::kRows, false, 2}},
    {"the headline, 16-bit of float32",
     {128, 64, 128, 128, 128, 3, 3, 1, 1, 0, 0, 126, 126, 2, 4, InputLoad::kRows, false, 4}},
    {"the headline, 16-bit, TMA",
     {128, 64, 128, 128, 128, 3, 3, 1, 1, 0, 0, 126, 126, 2, 2, InputLoad::kBoxes, true, 2}},
    {"8 to 32 channels, with GroupNorm behind",
     {128, 8, 256, 256, 32, 3, 3, 1, 1, 0, 0, 254, 254, 4, 4, InputLoad::kGather, false, 4}},
    {"a large image",
     {1, 16, 40000, 40000, 16, 3, 3, 1, 1, 1, 1, 40000, 40000, 2, 2, InputLoad::kBoxes, true, 2}},
    {"a large image, a large filter",
     {1, 3, 40000, 40000, 8, 11, 11, 3, 3, 15, 15, 40000, 40000, 4, 4, InputLoad::kGather, false, 4}},
    {"a million images of one pixel",
     {1 << 20, 256, 1, 1, 256, 1, 1, 1, 1, 0, 0, 1, 1, 2, 2, InputLoad::kBoxes, true, 2}},
    {"the same with padding that is not read",
     {1 << 20, 8, 1, 1, 64, 3, 3, 1, 1, 1, 1, 1, 1, 4, 4, InputLoad::kBoxes, true, 4}},
    {"2^28 images of 16 bytes",
     {1 << 28, 8, 1, 1, 64, 1, 1, 1, 1, 0, 0, 1, 1, 2, 2, InputLoad::kBoxes, true, 2}},
    {"2^30 images: their raster is too long if stacked",
     {1 << 30, 8, 1, 1, 64, 3, 3, 1, 1, 1, 1, 1, 1, 2, 2, InputLoad::kBoxes, true, 2}},
    {"a long line", {1, 8, 1, 1 << 24, 8, 1, 3, 1, 1, 0, 1, 1, 1 << 24, 2, 2, InputLoad::kBoxes, true, 2}},
    {"a high column", {1, 8, 1 << 28, 1, 8, 3, 1, 1, 1, 1, 0, 1 << 28, 1, 2, 2, InputLoad::kBoxes, true, 2}},
    {"the highest column: virtual rows near 2^31",
     {1, 64, 2147482879, 1, 8, 1, 1, 1, 1, 0, 0, 2147482879, 1, 2, 2, InputLoad::kBoxes, true, 2}},
    {"many channels and filters",
     {8, 16384, 16, 16, 16384, 3, 3, 1, 1, 1, 1, 16, 16, 2, 2, InputLoad::kBoxes, true, 2}},
    {"a filter as large as the image",
     {4, 8, 224, 224, 64, 224, 224, 1, 1, 0, 0, 1, 1, 4, 4, InputLoad::kBoxes, true, 4}},
    {"taps farther apart than a box is high",
     {2, 8, 4000, 40, 64, 3, 3, 600, 4, 0, 0, 2800, 32, 4, 4, InputLoad::kBoxes, true, 4}},
    {"taps farther apart than a box is wide",
     {2, 8, 40, 4000, 64, 3, 3, 4, 600, 0, 0, 32, 2800, 4, 4, InputLoad::kGather, false, 4}},
    {"the transposed recipe",
     {128, 64, 128, 128, 64, 3, 3, 1, 1, 1, 1, 256, 256, 4, 4, InputLoad::kRows, false, 4, true, 2, 2}},
    {"the same, 16-bit, TMA",
     {128, 64, 128, 128, 64, 3, 3, 1, 1, 1, 1, 256, 256, 2, 2, InputLoad::kBoxes, true, 2, true, 2, 2}},
    {"a large image, transposed",
     {1, 16, 20000, 20000, 16, 4, 4, 1, 1, 1, 1, 40000, 40000, 2, 2, InputLoad::kBoxes, true, 2, true, 2, 2}},
    {"a wide filter of one row",
     {2, 3, 2, 5000, 8, 1, 3000, 1, 1, 0, 0, 2, 2001, 4, 4, InputLoad::kGather, false, 4}},
};

// Small extents, where rows of tiles, images and strips end in many ways, and some larger.
HaloProblem random_problem(std::mt19937& random) {
  const auto between = [&](int first, int last) {
    return first + static_cast<int>(random() % static_cast<std::uint32_t>(last - first + 1));
  };
  const int most = between(0, 3) == 0 ? 300 : 40;
  HaloProblem p{};
  p.batch = between(1, 3) == 1 ? between(1, 300) : 1;
  const bool is_narrow = between(0, 2) == 0;
  p.channels = between(1, is_narrow ? 32 : 200);
  p.filters = between(1, is_narrow ? 32 : 400);
  p.taps_r = between(1, between(0, 4) == 0 ? 40 : 5);
  p.taps_s = between(1, between(0, 4) == 0 ? 40 : 5);
  p.dilation_h = between(1, 3);
  p.dilation_w = between(1, 3);
  p.pad_top = between(-1, 4);
  p.pad_left = between(-1, 4);
  p.out_height = between(1, most);
  p.out_width = between(1, most);
  p.height = std::max(1, p.out_height + (p.taps_r - 1) * p.dilation_h - p.pad_top - between(0, 2));
  p.width = std::max(1, p.out_width + (p.taps_s - 1) * p.dilation_w - p.pad_left - between(0, 2));
  p.element_bytes = between(1, 2) * 2;
  p.load = static_cast<InputLoad>(between(0, 2));
  p.input_bytes =
      p.load == InputLoad::kBoxes ? p.element_bytes : std::max(p.element_bytes, between(1, 2) * 2);
  p.output_bytes = between(1, 2) * 2;
  p.stores_filters = between(0, 1) == 1 && p.filters % (16 / p.output_bytes) == 0;
  p.transposed = between(0, 1) == 1;
  if (!p.transposed) return p;
  p.stride_h = between(1, kMaxPhases);
  p.stride_w = between(1, kMaxPhases);
  p.dilation_h = p.dilation_w = 1;
  p.pad_top = between(0, 6);
  p.pad_left = between(0, 6);
  p.height = between(1, most);
  p.width = between(1, most);
  p.out_height = std::max(1, (p.height - 1) * p.stride_h + p.taps_r - p.pad_top - between(-3, 4));
  p.out_width = std::max(1, (p.width - 1) * p.stride_w + p.taps_s - p.pad_left - between(-3, 4));
  return p;
}

// More positions than a 32-bit number counts.
void check_refusal() {
  const HaloProblem problem{1, 8, 1 << 30,           1,    64, 1, 1, 1, 1, 0, 0, 1 << 30, 1,
                            2, 2, InputLoad::kBoxes, true, 2};
  subject = to_text(problem);
  expect(!plan_halo(problem).why_not.empty(), "not refused");
}

}  // namespace

int main() {
  constexpr int kRandomProblems = 1500;
  check_refusal();
  for (const Extreme& extreme : kExtremes) check_plan(extreme.problem);
  std::mt19937 random(7);
  for (int i = 0; i < kRandomProblems; ++i) check_plan(random_problem(random));
  subject = "loads by rows";
  expect(planned_by_rows > kRandomProblems / 4, "only ", planned_by_rows, " are planned");
  subject = "joint rows";
  expect(planned_joint > kRandomProblems / 40, "only ", planned_joint, " are planned");
  std::printf("%zu extreme problems and %d random ones, %d failures\n", kExtremes.size(), kRandomProblems,
              failures);
  return failures == 0 ? 0 : 1;
}
