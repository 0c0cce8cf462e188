// The index arithmetic of the portable convolution (sm80/geometry.h), carried out as the kernel does on small
// integers: packed steps and rows, tiles, boxes, positions; compared with the convolution by its definition.
// Of large problems only the sizes are looked at.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "expectations.h"
#include "implicit_cases.h"
#include "implicit_layout.h"
#include "sm80/plan_geometry.h"

namespace {

using namespace epiconv::sm80;
using namespace implicit_cases;
using namespace implicit_layout;
using expectations::expect;
using Shape = std::array<std::int64_t, 2 + kDims>;

// A piece of channels: elements are small integers, in the first bytes.
using Piece = std::array<std::int8_t, kPieceBytes>;
constexpr std::int8_t kNothing = 99;  // the first of a piece that nobody has written

std::map<std::string, int> seen;  // how many problems of a kind there were

struct Tensor {
  Shape shape;
  std::vector<int> values;

  explicit Tensor(const Shape& the_shape) : shape(the_shape) {
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) size *= extent;
    values.resize(size);
  }
  std::int64_t place(const Shape& index) const {
    std::int64_t place = 0;
    for (std::size_t d = 0; d < shape.size(); ++d) place = place * shape[d] + index[d];
    return place;
  }
  int& at(const Shape& index) { return values.at(place(index)); }
};

Tensor filled(const Shape& shape, std::mt19937& random) {
  Tensor tensor(shape);
  for (int& value : tensor.values) value = static_cast<int>(random() % 7) - 3;
  return tensor;
}

// (K, C / groups, …), transposed (C, K / groups, …).
Shape weight_shape(const GeometryProblem& p) {
  const std::int64_t first = p.groups * (p.transposed ? p.channels : p.filters);
  return {first, p.transposed ? p.filters : p.channels, p.taps[0], p.taps[1], p.taps[2]};
}
int& weight_at(const GeometryProblem& p, Tensor& weight, std::int64_t group, std::int64_t filter,
               std::int64_t channel, const std::int64_t (&tap)[kDims]) {
  if (p.transposed) return weight.at({group * p.channels + channel, filter, tap[0], tap[1], tap[2]});
  return weight.at({group * p.filters + filter, channel, tap[0], tap[1], tap[2]});
}

// Calls visitor(input pixel, output pixel, tap) for all that meet.
template <typename Visitor>
void for_all_taps(const GeometryProblem& p, Visitor&& visitor) {
  std::int64_t i[kDims], o[kDims], t[kDims];
  const auto meets = [&](int d) {
    // Of a convolution the pixel from which a tap reads, of a transposed one that to which it adds.
    const std::int64_t reached =
        (p.transposed ? i[d] : o[d]) * p.stride[d] + t[d] * p.dilation[d] - p.padding[d];
    (p.transposed ? o[d] : i[d]) = reached;
    return reached >= 0 && reached < (p.transposed ? p.output[d] : p.input[d]);
  };
  std::int64_t (&own)[kDims] = p.transposed ? i : o;
  const auto& extents = p.transposed ? p.input : p.output;
  for (t[0] = 0; t[0] < p.taps[0]; ++t[0])
    for (t[1] = 0; t[1] < p.taps[1]; ++t[1])
      for (t[2] = 0; t[2] < p.taps[2]; ++t[2])
        for (own[0] = 0; own[0] < extents[0]; ++own[0])
          for (own[1] = 0; own[1] < extents[1]; ++own[1])
            for (own[2] = 0; own[2] < extents[2]; ++own[2])
              if (meets(0) && meets(1) && meets(2)) visitor(i, o, t);
}

Tensor defined(const GeometryProblem& p, Tensor& input, Tensor& weight) {
  Tensor output({p.batch, p.groups * p.filters, p.output[0], p.output[1], p.output[2]});
  for_all_taps(p, [&](const auto& i, const auto& o, const auto& t) {
    for (std::int64_t n = 0; n < p.batch; ++n)
      for (std::int64_t group = 0; group < p.groups; ++group)
        for (std::int64_t k = 0; k < p.filters; ++k)
          for (std::int64_t c = 0; c < p.channels; ++c)
            output.at({n, group * p.filters + k, o[0], o[1], o[2]}) +=
                input.at({n, group * p.channels + c, i[0], i[1], i[2]}) *
                weight_at(p, weight, group, k, c, t);
  });
  return output;
}

// Packed weights, as they are written and read.
class Packed {
 public:
  Packed(const GeometryProblem& p, const Geometry& g, Tensor& weight)
      : p_(p), g_(g), bytes_(packed_bytes(g)), is_written_(packed_bytes(g) / kPieceBytes) {
    for (std::int32_t number = 0; number < g.all_phases(); ++number) pack_phase(number, weight);
    const std::int64_t phases = g.packed_phase(g.all_phases()), first = g.packed_step(0, 0, 0, 0);
    expect(first % 128 == 0 && first >= phases && first < phases + 128, "steps begin at byte ", first);
    const auto gap = (first - phases) / kPieceBytes, nothing = std::ranges::count(is_written_, false);
    expect(nothing == gap, nothing, " pieces of packed weights are not written, instead of ", gap);
  }

  template <typename Value>
  Value read(std::int64_t at) const {
    expect(is_written_.at(at / kPieceBytes), "nothing is at byte ", at, " of packed weights");
    Value value;
    std::memcpy(&value, &bytes_.at(at), sizeof(Value));
    return value;
  }

 private:
  template <typename Value>
  void write(std::int64_t at, const Value& value) {
    expect(at % kPieceBytes == 0, "byte ", at, " of packed weights is not at a piece");
    for (std::size_t i = 0; i < sizeof(Value) / kPieceBytes; ++i) {
      expect(!is_written_.at(at / kPieceBytes + i), "two things are at byte ", at, " of packed weights");
      is_written_[at / kPieceBytes + i] = true;
    }
    std::memcpy(&bytes_.at(at), &value, sizeof(Value));
  }

  void pack_phase(std::int32_t number, Tensor& weight) {
    const PhaseTaps taps = PhaseTaps::of(g_, Phase::at(g_, number));
    const PackedPhase phase = taps.packed(g_);
    expect(phase.steps <= g_.most_steps, "a phase of ", phase.steps, " steps, more than ", g_.most_steps);
    write(g_.packed_phase(number), phase);
    const auto tiles = static_cast<std::int32_t>(g_.filter_tiles.divisor);
    for (std::int32_t step = 0; step < g_.most_steps; ++step) {
      const auto reduced = [&](std::int32_t piece) {
        return step < phase.steps ? Reduced::of(g_, taps, step, piece) : Reduced{false, 0, {}, kNoPiece};
      };
      expect(step >= phase.steps || reduced(0).exists, "step ", step, " is empty");
      for (std::int32_t tile = 0; tile < g_.groups * tiles; ++tile) {
        pack_step(g_.packed_step(number, tile / tiles, tile % tiles, step), taps, reduced, tile / tiles,
                  tile % tiles * g_.tile_filters, weight);
      }
    }
  }
  template <typename Numbers>
  void pack_step(std::int64_t to, const PhaseTaps& taps, Numbers&& reduced, std::int32_t group,
                 std::int32_t first_filter, Tensor& weight) {
    PackedStep packed;
    for (std::int32_t piece = 0; piece < kStepPieces; ++piece) {
      const Reduced of_piece = reduced(piece);
      expect(of_piece.exists == (of_piece.box_offset != kNoPiece), "an offset of what does not exist");
      const bool follows = piece == 0 || packed.at[PackedStep::place(piece - 1)] != kNoPiece;
      expect(!of_piece.exists || follows, "piece ", piece, " behind one that does not exist");
      packed.at[PackedStep::place(piece)] = of_piece.box_offset;
      for (std::int32_t row = 0; row < g_.tile_filters; ++row) {
        write(to + row * kStepBytes + swizzled(row, piece),
              piece_of(taps, of_piece, group, first_filter + row, weight));
      }
    }
    write(to + g_.tile_filters * kStepBytes, packed);
  }
  Piece piece_of(const PhaseTaps& taps, const Reduced& reduced, std::int32_t group, std::int32_t filter,
                 Tensor& weight) const {
    Piece result{};
    if (!reduced.exists || filter >= g_.filters) return result;
    std::int64_t tap[kDims];
    for (int d = 0; d < kDims; ++d) tap[d] = reduced.tap(taps, d);
    for (int e = 0; e < g_.piece_elements && reduced.channel + e < g_.channels; ++e) {
      result[e] = static_cast<std::int8_t>(weight_at(p_, weight, group, filter, reduced.channel + e, tap));
    }
    return result;
  }

  const GeometryProblem& p_;
  const Geometry& g_;
  std::vector<std::uint8_t> bytes_;
  std::vector<bool> is_written_;  // by pieces
};

// The kernel's blocks, one after the other; of a tile's splits the first computes all.
class Kernel {
 public:
  Kernel(const GeometryProblem& p, const Geometry& g, const Packed& packed, Tensor& input, Tensor& expected)
      : p_(p), g_(g), packed_(packed), input_(input), expected_(expected), written_(expected.values.size()) {}

  void run() {
    const std::int64_t blocks = g_.position_blocks() * g_.position_tiles;
    const std::int64_t launch = g_.position_blocks() * 3;  // of three position tiles
    for (std::int64_t block = 0; block < blocks; ++block) {
      const auto in_launch = static_cast<std::int32_t>(block % launch);
      const Tile tile = Tile::of(g_, in_launch, static_cast<std::int32_t>(block / launch) * 3);
      if (tile.split == 0) run_block(tile);
    }
    for (std::size_t i = 0; i < written_.size(); ++i) {
      expect(written_[i] == 1, "element ", i, " is written ", written_[i], " times");
    }
  }

 private:
  void run_block(const Tile& tile) {
    expect(!p_.takes_statistics || tile.position / (g_.position_tiles / p_.batch) == tile.first[0],
           "a tile's image is not ", tile.first[0]);
    find_positions(tile);
    if (g_.pixel_tables == 1) table_ = pixels(tile, PhaseTaps::of(g_, Phase::at(g_, 0)).packed(g_), 0);
    if (g_.is_resident) load_box(table_, tile.group, 0);
    filters_ = std::min(g_.tile_filters, g_.filters - tile.filter);
    for (std::int32_t column = 0; column < g_.block_phases; ++column) {
      const std::int32_t number = tile.phase + column, turn = column % g_.interleave;
      const Phase phase = Phase::at(g_, number), first = Phase::at(g_, number - turn);
      expect(phase.of[0] == first.of[0] && phase.of[1] == first.of[1] && phase.of[2] == first.of[2] + turn,
             "phase ", number, " does not follow the one it is stored with");
      find_outputs(phase);
      sums_.assign(std::size_t(filters_) * positions_.size(), 0);
      sum(tile, number);
      store(tile);
    }
  }

  void sum(const Tile& tile, std::int32_t number) {
    const auto phase = packed_.read<PackedPhase>(g_.packed_phase(number));
    const std::int64_t weights = g_.packed_step(number, tile.group, tile.filter_tile, 0);
    std::int32_t step = 0;
    for (std::int32_t other = 0; other < phase.other_taps && phase.steps > 0; ++other) {
      const std::vector<BoxPixel> here = pixels(tile, phase, other);
      const std::size_t bytes = here.size() * sizeof(BoxPixel);
      expect(g_.pixel_tables == 2 || std::memcmp(here.data(), table_.data(), bytes) == 0,
             "other pixels in phase ", number, ", tap ", other);
      for (std::int32_t block = 0; block < g_.channel_blocks; ++block) {
        if (!g_.is_resident) load_box(here, tile.group, block);
        const std::int32_t end = step + g_.unit_steps(phase.joined_taps, block);
        for (; step < end; ++step) multiply(weights + std::int64_t{step} * g_.step_bytes());
      }
    }
    expect(step == phase.steps, "units of ", step, " steps, not ", phase.steps);
  }

  std::vector<BoxPixel> pixels(const Tile& tile, const PackedPhase& phase, std::int32_t other) const {
    std::vector<BoxPixel> result(g_.box_pixels);
    for (std::int32_t i = 0; i < g_.box_pixels; ++i) result[i] = BoxPixel::of(g_, tile, phase, other, i);
    return result;
  }

  void load_box(const std::vector<BoxPixel>& pixels, std::int32_t group, std::int32_t block) {
    box_.assign(g_.box_bytes() / kPieceBytes, Piece{kNothing});
    const auto pieces = static_cast<std::int32_t>(g_.block_pieces.divisor);
    for (std::int32_t i = 0; i < g_.box_pixels * pieces; ++i) {
      const BoxPixel& pixel = pixels[i / pieces];
      bool exists = pixel.n < p_.batch;
      for (int d = 0; d < kDims; ++d) exists = exists && pixel.at[d] >= 0 && pixel.at[d] < p_.input[d];
      Piece& to = box_.at(i / pieces * g_.pixel_bytes / kPieceBytes + i % pieces);
      to = {};
      const std::int32_t first = (block * pieces + i % pieces) * g_.piece_elements;
      for (int e = 0; e < g_.piece_elements && exists && first + e < g_.channels; ++e) {
        const std::int32_t channel = group * g_.channels + first + e;
        to[e] =
            static_cast<std::int8_t>(input_.at({pixel.n, channel, pixel.at[0], pixel.at[1], pixel.at[2]}));
      }
    }
  }

  // A step whose weights lie at `from`. Half of the lanes read pieces 0, 2, …, the others 1, 3, …; in pairs,
  // of which the last two are not multiplied where the third has no piece.
  void multiply(std::int64_t from) {
    const auto packed = packed_.read<PackedStep>(from + g_.tile_filters * kStepBytes);
    constexpr int kPairs = kStepPieces / 2;
    const bool is_full = packed.at[kPairs / 2] != kNoPiece;
    seen[is_full ? "steps that are multiplied" : "steps of which half is multiplied"] += 1;
    std::vector<Piece> rows(filters_);
    for (std::int32_t piece = 0; piece < kStepPieces; ++piece) {
      const std::int32_t pair = piece / 2, parity = piece % 2, offset = packed.at[parity * kPairs + pair];
      if (offset == kNoPiece) continue;
      expect(is_full || pair < kPairs / 2, "piece ", piece, " is not multiplied");
      // Of 32 rows the lanes have the places of the first 16, of the first pair.
      for (std::int32_t row = 0; row < filters_; ++row) {
        const std::int32_t group = row & 16, line = row - group;
        const std::int32_t place = (line * kStepBytes + swizzled(line, parity)) ^ (pair * 2 * kPieceBytes);
        rows[row] = packed_.read<Piece>(from + group * kStepBytes + place);
      }
      for (std::size_t i = 0; i < positions_.size(); ++i) {
        const std::int32_t at = places_[i] + offset;
        const bool fits = at >= 0 && at % kPieceBytes == 0 && at + kPieceBytes <= g_.box_bytes();
        expect(fits, "position ", i, " reads byte ", at, " of a box of ", g_.box_bytes());
        if (!fits || outputs_[i][0] < 0) continue;
        const Piece& pixel = box_[at / kPieceBytes];
        expect(pixel[0] != kNothing, "position ", i, " reads byte ", at, ", where nothing is");
        for (std::int32_t row = 0; row < filters_; ++row) {
          int& to = sums_[i * filters_ + row];
          for (int e = 0; e < g_.piece_elements; ++e) to += pixel[e] * rows[row][e];
        }
      }
    }
  }

  void find_positions(const Tile& tile) {
    positions_.clear();
    places_.clear();
    for (std::int32_t i = 0; i < g_.tile_positions; ++i) {
      positions_.push_back(Position::in_grid(g_, tile, i));
      const bool has_box = !g_.is_linear || positions_.back().at[0] < p_.batch;
      places_.push_back(has_box ? Position::place(g_, tile, i) : 0);
    }
  }
  void find_outputs(const Phase& phase) {
    outputs_.assign(positions_.size(), {});
    for (std::size_t i = 0; i < positions_.size(); ++i) {
      bool exists = positions_[i].at[0] < p_.batch;
      for (int d = 0; d < kDims; ++d) {
        const std::int32_t number = positions_[i].at[1 + d];
        const std::int64_t at = outputs_[i][2 + d] = std::int64_t{number} * g_.phases[d] + phase.of[d];
        expect((at < p_.output[d]) == (number < numbers_in(g_, d, phase.of[d])), "number ", number);
        exists = exists && at < p_.output[d];
      }
      outputs_[i][0] = exists ? positions_[i].at[0] : -1;
    }
  }
  void store(const Tile& tile) {
    for (std::size_t i = 0; i < positions_.size(); ++i) {
      Shape& to = outputs_[i];
      for (std::int32_t row = 0; row < filters_ && to[0] >= 0; ++row) {
        to[1] = tile.group * g_.filters + tile.filter + row;
        const int got = sums_[i * filters_ + row];
        expect(got == expected_.at(to), "filter ", to[1], " at ", to[2], ", ", to[3], ", ", to[4],
               " of image ", to[0], ": ", got, " instead of ", expected_.at(to));
        ++written_.at(expected_.place(to));
      }
    }
  }

  const GeometryProblem& p_;
  const Geometry& g_;
  const Packed& packed_;
  Tensor& input_;
  Tensor& expected_;
  std::vector<int> written_;  // how often
  std::vector<Position> positions_;
  std::vector<std::int32_t> places_;
  std::vector<BoxPixel> table_;  // of phase 0, where there is one table
  std::vector<Piece> box_;
  std::int32_t filters_ = 0;
  std::vector<int> sums_;
  std::vector<Shape> outputs_;  // of positions; image -1 where there is none
};

void count_kinds(const GeometryProblem& p, const Geometry& g) {
  bool joins = false, leaves = false;
  for (int d = 0; d < kDims; ++d) (g.joined[d] ? joins : leaves) |= g.taps[d] > 1;
  const auto count = [](const std::string& kind, bool is_it) { seen[kind] += is_it ? 1 : 0; };
  count("resident, several phases", g.is_resident && g.block_phases > g.interleave);
  count("two boxes, one table", !g.is_resident && g.pixel_tables == 1);
  count("joined taps", joins);
  count("taps not joined", leaves);
  count("joined taps and others", joins && leaves);
  count("several channel blocks", g.channel_blocks > 1);
  count("last channel block shorter", g.channel_blocks > 1 && g.last_pieces < g.pieces(0));
  count("several tiles of filters", g.filter_tiles.divisor > 1);
  count("splits", g.splits.divisor > 1);
  count("interleave 2", g.interleave == 2);
  count("interleave 2, several rows of phases", g.interleave == 2 && g.block_phases > 2);
  count(epiconv::concat("tiles of ", g.tile_filters, " filters"), true);
  count(g.filters_are_rows ? "filters are rows" : "positions are rows", true);
  count("several patches of several images", !g.is_linear && g.patch_bits[0] > 0 && g.patches[0].divisor > 1);
  count("warpgroups", g.has_warpgroups);
  count("linear tiles of joined taps", g.is_linear && joins && g.position_tiles > 1);
  count("linear tiles of other taps", g.is_linear && leaves && g.position_tiles > 1);
  count("linear tiles of filters' rows", g.is_linear && g.filters_are_rows);
  count("three boxes or more", g.boxes > 2);
  count("statistics of several tiles", p.takes_statistics && g.position_tiles > p.batch);
}

// `computes`: else only sizes are looked at.
void check(const GeometryProblem& p, std::mt19937& random, bool computes) {
  expectations::subject = text_of(p);
  Geometry g;
  const std::string why_not = plan_geometry(p, g);
  if (!why_not.empty()) return expect(false, why_not);
  expect_sizes(p, g);
  expect_layout(p, g);
  if (!computes) return;
  count_kinds(p, g);
  Tensor input = filled({p.batch, p.groups * p.channels, p.input[0], p.input[1], p.input[2]}, random);
  Tensor weight = filled(weight_shape(p), random);
  Tensor expected = defined(p, input, weight);
  const Packed packed(p, g, weight);
  Kernel(p, g, packed, input, expected).run();
}

void check_too_large() {
  using P = GeometryProblem;
  constexpr std::int64_t kLarge = std::int64_t{1} << 30;
  const auto expect_refused = [](bool transposed, auto&& change) {
    P p = row_problem(transposed, 50, 3, 2, 1);
    change(p);
    expectations::subject = text_of(p);
    Geometry g;
    expect(!plan_geometry(p, g).empty(), "is not refused");
  };
  for (const bool transposed : {false, true}) {
    for (const auto extent : {&P::batch, &P::groups, &P::channels, &P::filters})
      expect_refused(transposed, [&](P& p) { p.*extent = kLarge; });
    for (const auto extents : {&P::input, &P::output, &P::taps, &P::stride, &P::dilation, &P::padding})
      for (int d = 0; d < kDims; ++d) expect_refused(transposed, [&](P& p) { (p.*extents)[d] = kLarge; });
    // None is too large, but together they are.
    expect_refused(transposed, [&](P& p) { p.output[0] = p.output[1] = p.output[2] = kLarge / 2 - 1; });
    expect_refused(transposed, [&](P& p) { p.taps[0] = p.taps[1] = p.taps[2] = kLarge / 2; });
    expect_refused(transposed, [&](P& p) { p.groups = p.filters = kLarge / 2 - 1; });
  }
  expect_refused(true, [&](P& p) { p.stride[0] = p.stride[1] = p.stride[2] = kLarge / 2 - 1; });
}

// Eight rows that follow each other have the same piece in different banks.
void check_banks() {
  expectations::subject = "banks";
  for (std::int32_t row = 0; row < 128; ++row) {
    for (std::int32_t piece = 0; piece < kStepPieces; ++piece) {
      int banks = 0;
      for (int i = 0; i < 8; ++i) banks |= 1 << swizzled(row + i, piece) / kPieceBytes % 8;
      expect(banks == 255, "piece ", piece, " from row ", row, " on");
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (int i = 0; i < 140; ++i) {
    for (const Limits& limits : kLimits) check(draw(random, limits, true), random, true);
  }
  for (const GeometryProblem& p : {row_problem(false, 5001, 3, 1000, 1), row_problem(false, 2500, 3, 1, 1000),
                                   row_problem(false, 9000, 4, 1000, 1000), row_problem(true, 4, 3, 1000, 1),
                                   row_problem(true, 20, 3, 1, 1000), row_problem(true, 4, 3, 1000, 999)}) {
    check(p, random, true);
  }
  expect(seen.size() == 26, seen.size(), " kinds of problems");
  for (const auto& [kind, count] : seen) {
    std::printf("%4d %s\n", count, kind.c_str());
    expect(count >= 3, "only ", count, " problems: ", kind);
  }
  for (int i = 0; i < 300; ++i) check(draw(random, kLargeLimits, false), random, false);
  check_too_large();
  check_banks();
  return expectations::failures == 0 ? 0 : 1;
}
