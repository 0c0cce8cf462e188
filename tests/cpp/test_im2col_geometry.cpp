// The index arithmetic of the im2col convolution (sm80/im2col_geometry.h) for drawn problems: that teams
// together go through each tile's steps once; that what the copy engine is told of a tap is the input pixel
// that the convolution's definition says; the order of packed weights; slices; shared memory.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "expectations.h"
#include "implicit_cases.h"
#include "sm80/im2col_geometry.h"
#include "sm80/plan_geometry.h"

namespace {

using namespace epiconv::sm80;
using namespace implicit_cases;
using expectations::expect;

std::map<std::string, int> seen;  // how many problems of a kind there were

struct Limits3 {
  std::int32_t least_corner, most_corner, most_offset;
};
constexpr Limits3 kOfRank[] = {{-32768, 32767, 65535}, {-128, 127, 255}, {-16, 15, 31}};

// Whole tiles by one team each; of the others the teams' parts follow each other, and fill them.
void check_walks(const Geometry& g) {
  const std::int32_t tiles = im2col_tiles(g);
  std::vector<int> whole(tiles, 0);
  std::map<std::int32_t, std::vector<std::pair<std::int32_t, std::int32_t>>> parts;
  for (std::int32_t worker = 0; worker < g.im2col_workers; ++worker) {
    std::int32_t inner = 0;  // parts that neither begin nor end the team's share
    Im2colWalk walk(g, worker);
    std::int32_t steps = 0;
    bool is_first = true;
    while (walk.next()) {
      expect(walk.tile >= 0 && walk.tile < tiles, "tile ", walk.tile);
      if (walk.end == Im2colWalk::kAllSteps) {
        expect(is_first, "a whole tile behind a share");
        ++whole[walk.tile];
        continue;
      }
      is_first = false;
      expect(walk.first < walk.end && walk.end <= g.most_steps, "steps ", walk.first, " to ", walk.end);
      parts[walk.tile].push_back({walk.first, walk.end});
      steps += walk.end - walk.first;
      inner += walk.first > 0 && walk.end < g.most_steps && steps < g.im2col_share ? 1 : 0;
    }
    expect(steps <= g.im2col_share && inner <= 1, "worker ", worker, " has ", steps, " steps");
  }
  for (std::int32_t tile = 0; tile < tiles; ++tile) {
    if (tile < g.im2col_whole_tiles) {
      expect(whole[tile] == 1 && parts.count(tile) == 0, "tile ", tile, " is whole ", whole[tile], " times");
      continue;
    }
    std::int32_t reached = 0;  // parts come in the order of teams
    for (const auto& [first, end] : parts[tile]) {
      expect(first == reached, "tile ", tile, " goes on at ", first, ", not ", reached);
      reached = end;
    }
    expect(whole[tile] == 0 && reached == g.most_steps, "tile ", tile, " ends at ", reached);
  }
  ++seen[g.im2col_share > 0 ? "shared" : "whole"];
}

// Each tile of filters, positions, phase and group belongs to one block of one number.
void check_tiles(const Geometry& g) {
  const std::int32_t numbers = std::min(im2col_tiles(g), 2000);
  std::set<std::int64_t> found;
  for (std::int32_t number = 0; number < numbers; ++number) {
    for (std::int32_t rank = 0; rank < g.im2col_cluster; ++rank) {
      const Tile tile = im2col_tile(g, number, rank);
      const std::int64_t of_tile =
          ((std::int64_t{tile.position} * g.groups + tile.group) * g.all_phases() + tile.phase) *
              g.filter_tiles.divisor +
          tile.filter_tile;
      expect(found.insert(of_tile).second, "number ", number, " and ", rank, " again");
      const Tile first = im2col_tile(g, number, 0);
      expect(tile.filter == first.filter && tile.phase == first.phase && tile.group == first.group &&
                 tile.position == first.position + rank,
             "blocks of a cluster differ");
    }
  }
}

// What the producer tells the copy engine, against the definition.
void check_box(const GeometryProblem& p, const Geometry& g) {
  const int rank = im2col_rank(g);
  const Limits3& limits = kOfRank[rank - 3];
  for (std::int32_t number = 0; number < g.all_phases(); ++number) {
    const Phase phase = Phase::at(g, number);
    for (int d = 0; d < kDims; ++d) {
      const TapSeries series = g.series(d, phase.of[d]);
      const Im2colRange range = Im2colRange::of(g, d, phase.of[d]);
      if (d >= kDims - (rank - 2)) {
        expect(range.low >= limits.least_corner && range.high <= limits.most_corner &&
                   range.most_offset <= limits.most_offset,
               "the box reaches from ", range.low, " to ", range.high);
      } else {
        expect(range.low == 0 && range.high == 0 && range.most_offset == 0, "dimension ", d, " is not told");
      }
      const std::int32_t last = g.input[d] - 1 + range.high;
      expect((last - range.low) / g.advance(d) + 1 == g.grid[d], "places of the box in dimension ", d);
      for (std::int32_t at = 0; at < g.grid[d]; ++at) {
        for (std::int32_t t = 0; t < series.count; ++t) {
          const std::int32_t offset = series.offset + t * series.offset_step - range.low;
          expect(offset >= 0 && offset <= range.most_offset, "offset ", offset);
          const std::int64_t pixel = range.low + std::int64_t{at} * g.advance(d) + offset;
          const std::int64_t tap = series.first + std::int64_t{t} * series.step;
          if (!p.transposed) {
            expect(pixel == at * p.stride[d] + tap * p.dilation[d] - p.padding[d], "pixel ", pixel);
          } else {
            const std::int64_t output = std::int64_t{at} * g.phases[d] + phase.of[d];
            expect(pixel * p.stride[d] + tap * p.dilation[d] - p.padding[d] == output, "pixel ", pixel);
          }
        }
      }
    }
    // Steps of packed weights: blocks of channels first, then taps, the last dimension's first.
    const PhaseTaps taps = PhaseTaps::of(g, phase);
    std::int32_t at[kDims] = {}, block = 0;
    const std::int32_t steps = std::min(taps.steps(g), 300);
    for (std::int32_t step = 0; step < steps; ++step) {
      const Reduced reduced = Reduced::of(g, taps, step, 0);
      expect(reduced.exists && reduced.channel == block * kStepBytes / g.element_bytes &&
                 std::equal(std::begin(at), std::end(at), std::begin(reduced.at)),
             "step ", step, " begins with channel ", reduced.channel);
      if (++block < g.channel_blocks) continue;
      block = 0;
      for (int d = kDims - 1; d >= 0; --d) {
        if (++at[d] < taps.series[d].count) break;
        at[d] = 0;
      }
    }
  }
}

void check_rows(const Geometry& g) {
  for (std::int32_t row = 0; row < g.tile_filters; ++row) {
    if (g.filters_are_rows) {
      expect(g.filter_of_row(row) == row, "row ", row);
      continue;
    }
    // A thread's lane of four has columns 8 j + 2 lane + e of 16, as four filters that follow each other.
    const std::int32_t lane = row % 8 / 2, j = row % 16 / 8, e = row % 2;
    expect(g.filter_of_row(row) == row / 16 * 16 + 4 * lane + 2 * j + e, "row ", row);
  }
}

// A tile's positions are lines of 128 bytes of pixels, all of the grid's are some tile's once, and of eight
// channels that a piece or two have, each is multiplied once, in another order where elements have 4 bytes.
void check_lines(const Geometry& g) {
  const std::int32_t line = kStepBytes / g.element_bytes;
  expect(g.positions_are_rows() && g.filters_are_rows && !g.is_linear, "lines are rows");
  expect(g.patch(kDims) == line && g.taps[2] == 1 && g.padding[2] == 0, "lines of ", g.patch(kDims));
  std::int32_t positions = 1;
  std::int64_t tiles = 1;
  const std::int64_t extents[kPatchDims] = {g.batch, g.grid[0], g.grid[1], g.grid[2]};
  for (int d = 0; d < kPatchDims; ++d) {
    positions *= g.patch(d);
    tiles *= g.patches[d].divisor;
    expect(std::int64_t{g.patches[d].divisor} * g.patch(d) >= extents[d], "dimension ", d, " is not covered");
  }
  expect(positions == g.tile_positions && tiles == g.position_tiles, positions, " positions of a tile");
  std::set<std::array<std::int32_t, kPatchDims>> found;
  for (std::int32_t position = 0; position < std::min(g.position_tiles, 40); ++position) {
    const Tile tile = im2col_tile(g, static_cast<std::int32_t>(position * g.position_blocks()), 0);
    for (std::int32_t i = 0; i < g.tile_positions; ++i) {
      const Position at = Position::in_grid(g, tile, i);
      expect(found.insert({at.at[0], at.at[1], at.at[2], at.at[3]}).second, "position ", i, " again");
      const Position first = Position::in_grid(g, tile, i / line * line);
      expect(at.at[3] == first.at[3] + i % line && at.at[2] == first.at[2], "position ", i, " of its line");
    }
  }
  const std::int32_t of_piece = kPieceBytes / g.element_bytes;
  std::set<std::int32_t> channels;
  for (std::int32_t channel = 0; channel < 16; channel += of_piece) {
    for (std::int32_t e = 0; e < of_piece; ++e) {
      const std::int32_t found_channel = g.channel_of(channel, e);
      channels.insert(found_channel);
      // Threads have rows 2 * (lane % 4) for the first piece of eight channels, and the next for the second.
      const std::int32_t wanted =
          g.element_bytes == 4 ? channel / 8 * 8 + 2 * e + channel / 4 % 2 : channel + e;
      expect(found_channel == wanted, "channel ", found_channel);
    }
  }
  expect(channels.size() == 16 && *channels.rbegin() == 15, "channels are left out");
}

void check_slices(std::int32_t slice_bytes) {
  std::set<std::int32_t> places;
  for (std::int32_t row = 0; row < kSliceRows; ++row) {
    for (std::int32_t byte = 0; byte < slice_bytes; ++byte) {
      const std::int32_t place = slice_offset(slice_bytes, row, byte);
      expect(places.insert(place).second && place < kSliceRows * slice_bytes, "place ", place);
      expect(place == slice_offset(slice_bytes, row, byte / kPieceBytes * kPieceBytes) + byte % kPieceBytes,
             "a piece is torn at byte ", byte);
    }
  }
  if (slice_bytes != kStepBytes) return;
  for (std::int32_t piece = 0; piece < kStepPieces; ++piece) {
    std::set<std::int32_t> banks;
    for (std::int32_t row = 0; row < 8; ++row) {
      banks.insert(slice_offset(slice_bytes, row, piece * kPieceBytes) % kStepBytes);
    }
    expect(banks.size() == 8, "piece ", piece, " lies in ", banks.size(), " places of a line");
  }
}

void check_memory(const Geometry& g) {
  const SharedLayout at = SharedLayout::of(g, false);
  const std::int32_t slots = g.im2col_slots_of_all() * kSliceRows * g.im2col_slice_bytes;
  const std::int32_t stages = g.im2col_teams * g.im2col_stages;
  expect(at.bytes <= most_shared_bytes(g), at.bytes, " bytes of shared memory");
  expect(at.tile >= g.tile_positions * kColumnBytes && at.phases > at.tile && at.flag > at.phases &&
             at.filter_operands > at.flag,
         "tables overlap");
  expect(at.filter_operands + g.filter_operands * g.tile_filters * 4 <= at.tables, "a table ends late");
  expect(at.barriers >= 2 * g.im2col_teams * at.tables, "barriers lie in tables");
  expect(at.slot_barriers >= at.barriers + 2 * stages * kBarrierBytes, "barriers overlap");
  expect(at.slots >= at.slot_barriers + g.im2col_slots_of_all() * kBarrierBytes && at.slots % 1024 == 0,
         "slots begin at ", at.slots);
  expect(at.stages >= at.slots + slots && at.stages % 1024 == 0, "stages begin at ", at.stages);
  expect(at.bytes == at.stages + stages * g.im2col_bytes() && g.im2col_bytes() % 1024 == 0, "stages end");
  expect(g.im2col_stages >= 3 && g.im2col_stages <= 8, g.im2col_stages, " stages");
}

void check(GeometryProblem p) {
  p.has_warpgroups = p.is_im2col = true;
  p.takes_statistics = false;
  if (p.groups > 1) p.channels = (p.channels + 63) / 64 * 64;
  p.output_bytes = p.element_bytes;
  p.stores_slices = p.words_are_filters || p.output[2] % 8 == 0;
  p.stages_operand = p.filters % 2 == 0;
  p.turns_input = !p.words_are_filters;
  p.reads_lines = p.turns_input && p.input[2] * p.element_bytes % kPieceBytes == 0;
  p.stores_lines = p.stores_slices;
  expectations::subject = text_of(p);
  Geometry g;
  if (const std::string why_not = plan_geometry(p, g); !why_not.empty()) {
    ++seen[why_not];
    return;
  }
  expect(p.words_are_filters ? !g.filters_are_rows : true, "filters are rows and lie side by side");
  ++seen[g.filters_are_rows ? "filters are rows" : "positions are rows"];
  if (g.im2col_teams > 1) ++seen["two teams"];
  if (g.im2col_cluster > 1) ++seen["clusters"];
  if (g.im2col_slots > 0) ++seen["slices"];
  if (g.im2col_copies_slices) ++seen["copied slices"];
  if (g.im2col_lines) {
    ++seen["lines"];
    check_lines(g);
  } else {
    check_box(p, g);
  }
  check_walks(g);
  check_tiles(g);
  check_rows(g);
  check_memory(g);
}

// Whatever the batch is, the same tile, the same steps in the same order, and none that is shared.
void check_any_batch(GeometryProblem p) {
  p.is_batch_invariant = true;
  Geometry first;
  p.batch = 1;
  p.image_filter_operands = p.filter_operands;
  p.stages_image_operand = p.stages_operand;
  if (!plan_geometry(p, first).empty()) return;
  ++seen[p.is_im2col ? "of any batch, im2col" : "of any batch, boxes"];
  for (const std::int64_t batch : {2, 3, 7, 32, 300}) {
    p.batch = batch;
    // Of an image that is alone operands cannot be told apart that have an element, or image, for all of
    // them.
    p.filter_operands = batch % 2 == 0 ? 0 : p.image_filter_operands;
    p.stages_operand = p.stages_image_operand && batch % 3 == 0;
    expectations::subject = text_of(p);
    Geometry g;
    const std::string why = plan_geometry(p, g);
    expect(why.empty(), "no plan: ", why);
    expect(g.batch == batch && g.splits.divisor == 1 && g.im2col_share == 0, "the batch");
    const std::int64_t positions = std::int64_t{g.position_tiles} * g.tile_positions;
    expect(positions >= batch * g.image_positions(), positions, " positions");
    if (g.is_im2col) check_walks(g);
    // All else is the same.
    g.batch = first.batch;
    g.filter_operands = first.filter_operands;
    g.patches[0] = first.patches[0];
    g.position_tiles = first.position_tiles;
    g.im2col_workers = first.im2col_workers;
    g.im2col_whole_tiles = first.im2col_whole_tiles;
    expect(std::memcmp(&g, &first, sizeof(Geometry)) == 0, "the plan depends on the batch");
  }
}

// Where linear tiles begin in an image differs from tile to tile; so does the box that they need. Of a large
// image of an odd number of positions a usual batch has not all of these tiles.
void check_large_images() {
  GeometryProblem p{};
  p.batch = 2;
  p.groups = 1;
  p.channels = p.filters = 64;
  p.element_bytes = p.output_bytes = 2;
  p.words_are_filters = p.in_pieces = p.has_warpgroups = true;
  p.chunk_sums = 32;
  for (int d = 0; d < kDims; ++d) {
    p.input[d] = p.output[d] = d == 0 ? 1 : d == 1 ? 16411 : 9;
    p.taps[d] = p.stride[d] = p.dilation[d] = 1;
  }
  Geometry g;
  expect(plan_geometry(p, g).empty() && g.is_linear, "a linear tile");
  p.is_batch_invariant = true;
  expect(plan_geometry(p, g).empty() && !g.is_linear, "no linear tile for every batch");
  p.output[1] = p.input[1] = 14000;
  expect(plan_geometry(p, g).empty() && g.is_linear, "a linear tile for every batch");
}

}  // namespace

int main() {
  check_large_images();
  std::mt19937 random(1);
  for (int i = 0; i < 60; ++i) {
    for (const Limits& limits : kLimits) check(draw(random, limits, true));
  }
  for (int i = 0; i < 200; ++i) {
    // Of a network's size: 1x1, 3x3 and what a stride of 2 makes of it.
    GeometryProblem p{};
    p.batch = 1 + random() % 40;
    p.groups = 1;
    p.channels = 32 << random() % 6;
    p.filters = 24 << random() % 6;
    p.element_bytes = random() % 2 == 0 ? 2 : 4;
    p.words_are_filters = random() % 2 == 0;
    p.stores_columns = p.stores_images = !p.words_are_filters;
    p.transposed = random() % 4 == 0;
    p.filter_operands = 1 + random() % 3;
    p.chunk_sums = 16;
    const bool is_pointwise = i % 4 == 0 && !p.transposed;
    const std::int64_t size = is_pointwise ? 32 << random() % 2 : 7 << random() % 4;
    const std::int64_t taps = !is_pointwise && random() % 2 == 0 ? 3 : p.transposed ? 2 : 1;
    for (int d = 0; d < kDims; ++d) {
      p.input[d] = d == 0 ? 1 : size;
      p.taps[d] = d == 0 ? 1 : taps;
      p.stride[d] = d == 0 ? 1 : p.transposed ? 2 : 1 + i % 2;
      p.dilation[d] = 1;
      p.padding[d] = d == 0 || taps < 3 ? 0 : 1;
      if (!set_output(p, d, p.padding[d])) return 1;
    }
    check(p);
    for (const int kind : {0, 1, 2}) {
      p.is_im2col = kind == 2;
      p.has_warpgroups = kind > 0;
      p.turns_input = p.reads_lines = p.is_im2col && !p.words_are_filters && p.input[2] % 8 == 0;
      p.stores_slices = p.stores_lines = true;
      p.output_bytes = p.element_bytes;
      check_any_batch(p);
    }
  }
  for (const std::int32_t bytes : {kStepBytes / 2, kStepBytes}) check_slices(bytes);
  for (const auto& [kind, count] : seen) std::printf("%4d %s\n", count, kind.c_str());
  for (const char* kind :
       {"shared", "whole", "filters are rows", "positions are rows", "two teams", "slices", "lines",
        "copied slices", "of any batch, im2col", "of any batch, boxes", "a phase meets no tap",
        "there are more phases than maps for the copy engine",
        "strides of more than 8 are too large for the copy engine",
        "the copy engine moves boxes no farther beside the input than its padding and taps "
        "ask for"}) {
    expect(seen[kind] >= 3, "only ", seen[kind], " problems: ", kind);
  }
  return expectations::failures == 0 ? 0 : 1;
}
