// The index arithmetic of the portable convolution (sm80/geometry.h), carried out as the kernel does on small
// integers: packed entries and rows, tiles, positions, pixels; compared with the convolution by its
// definition.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>
#include <vector>

#include "expectations.h"
#include "sm80/geometry.h"

namespace {

using namespace epiconv::sm80;
using expectations::expect;
using Shape = std::array<std::int64_t, 2 + kDims>;

struct Tensor {
  Shape shape;
  std::vector<int> values;

  explicit Tensor(const Shape& the_shape) : shape(the_shape) {
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) size *= extent;
    values.resize(size);
  }
  int& at(const Shape& index) {
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < shape.size(); ++d) offset = offset * shape[d] + index[d];
    return values.at(offset);
  }
};

void fill(Tensor& tensor, std::mt19937& random) {
  for (int& value : tensor.values) value = static_cast<int>(random() % 7) - 3;
}

// (K, C / groups, …), transposed (C, K / groups, …).
Tensor weight_of(const GeometryProblem& p) {
  const std::int64_t first = p.groups * (p.transposed ? p.channels : p.filters);
  return Tensor({first, p.transposed ? p.filters : p.channels, p.taps[0], p.taps[1], p.taps[2]});
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
    std::int64_t& other = p.transposed ? o[d] : i[d];
    other = reached;
    return reached >= 0 && reached < (p.transposed ? p.output[d] : p.input[d]);
  };
  const auto from = [&](int d) { return p.transposed ? p.input[d] : p.output[d]; };
  std::int64_t (&own)[kDims] = p.transposed ? i : o;
  for (t[0] = 0; t[0] < p.taps[0]; ++t[0])
    for (t[1] = 0; t[1] < p.taps[1]; ++t[1])
      for (t[2] = 0; t[2] < p.taps[2]; ++t[2])
        for (own[0] = 0; own[0] < from(0); ++own[0])
          for (own[1] = 0; own[1] < from(1); ++own[1])
            for (own[2] = 0; own[2] < from(2); ++own[2])
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

// What is at a place of packed weights, by its byte.
struct Packed {
  std::map<std::int64_t, PackedEntry> entries;
  std::map<std::int64_t, int> elements;
};

Packed pack(const GeometryProblem& p, const Geometry& g, Tensor& weight) {
  Packed packed;
  for (std::int32_t number = 0; number < g.all_phases(); ++number) {
    const std::int32_t row = number / g.phases[2];
    const std::int32_t phase[kDims] = {row / g.phases[1], row % g.phases[1], number % g.phases[2]};
    const PhaseTaps taps = PhaseTaps::of(g, phase);
    const std::int32_t steps = taps.packed(g).steps;
    expect(steps <= g.most_steps, "a phase of ", steps, " steps, more than ", g.most_steps);
    for (std::int32_t k = 0; k < g.most_steps * g.step_elements; ++k) {
      const bool exists = k < taps.elements;
      const Reduced reduced = exists ? Reduced::of(g, taps, k) : Reduced{-1, {}};
      packed.entries[g.packed_entry(number, k)] =
          exists ? reduced.packed(taps) : PackedEntry{{0, 0, 0}, -1, 0};
      std::int64_t tap[kDims];
      for (int d = 0; d < kDims; ++d) tap[d] = exists ? reduced.tap(taps, d) : 0;
      const std::int32_t step = k / g.step_elements, in_step = k % g.step_elements;
      for (std::int32_t group = 0; group < g.groups; ++group) {
        for (std::int32_t filter = 0; filter < g.filter_rows; ++filter) {
          const std::int64_t at = g.packed_step(number, group, step) + filter * kStepBytes +
                                  swizzled(filter, in_step / g.piece_elements) +
                                  in_step % g.piece_elements * g.element_bytes;
          expect(packed.elements.count(at) == 0, "two elements at byte ", at, " of packed weights");
          packed.elements[at] =
              exists && filter < g.filters ? weight_at(p, weight, group, filter, reduced.channel, tap) : 0;
        }
      }
    }
  }
  expect(!packed.elements.empty() && packed.elements.begin()->first % 128 == 0,
         "rows begin at a multiple of 128");
  expect(packed.entries.rbegin()->first < packed.elements.begin()->first, "entries lie before rows");
  expect(packed.elements.rbegin()->first < static_cast<std::int64_t>(packed_bytes(g)), "packed bytes");
  return packed;
}

// One element of a tile, of all splits.
int product(const GeometryProblem& p, const Geometry& g, const Packed& packed, Tensor& input,
            const Tile& tile, const Position& position, std::int32_t column_phase, std::int32_t filter) {
  const std::int32_t phase[kDims] = {tile.phase[0], tile.phase[1], column_phase};
  const PhaseTaps taps = PhaseTaps::of(g, phase);
  const std::int32_t number = tile.phase_number(g, column_phase);
  int sum = 0;
  for (std::int32_t k = 0; k < taps.packed(g).steps * g.step_elements; ++k) {
    const PackedEntry& entry = packed.entries.at(g.packed_entry(number, k));
    if (entry.channel < 0) continue;
    Shape from{position.n, tile.group * g.channels + entry.channel};
    bool inside = true;
    std::int32_t rest = entry.tap;  // of which the dimensions' numbers are left
    const PackedPhase packed_phase = taps.packed(g);
    for (int d = kDims - 1; d >= 0; --d) {
      from[2 + d] = position.j[d] * g.advance(d) + entry.pixel[d];
      inside = inside && from[2 + d] >= 0 && from[2 + d] < p.input[d];
      const std::int32_t own = rest % packed_phase.count[d];
      rest /= packed_phase.count[d];
      expect(entry.pixel[d] == packed_phase.offset[d] + own * packed_phase.offset_step[d], "tap ", entry.tap);
    }
    const std::int32_t in_step = k % g.step_elements;
    const std::int64_t at = g.packed_step(number, tile.group, k / g.step_elements) + filter * kStepBytes +
                            swizzled(filter, in_step / g.piece_elements) +
                            in_step % g.piece_elements * g.element_bytes;
    if (inside) sum += input.at(from) * packed.elements.at(at);
  }
  return sum;
}

void check(const GeometryProblem& p, std::mt19937& random) {
  Geometry g;
  const std::string why_not = plan_geometry(p, g);
  expect(why_not.empty(), why_not);
  if (!why_not.empty()) return;
  Tensor input({p.batch, p.groups * p.channels, p.input[0], p.input[1], p.input[2]});
  Tensor weight = weight_of(p);
  fill(input, random);
  fill(weight, random);
  Tensor expected = defined(p, input, weight);
  const Packed packed = pack(p, g, weight);
  std::vector<int> written(expected.values.size(), 0);
  std::map<std::int64_t, std::int32_t> images;  // of position tiles
  const std::int64_t blocks = g.position_blocks() * g.position_tiles;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const Tile tile = Tile::of(g, static_cast<std::int32_t>(block), 0);
    if (tile.split != 0) continue;
    for (std::int32_t column = 0; column < g.tile_columns(); ++column) {
      const std::int32_t column_phase = tile.phase[2] + column % g.interleave;
      const Position position = Position::of(g, tile.position, column / g.interleave);
      const Pixel pixel = Pixel::of(g, tile, position, column_phase);
      if (pixel.n < 0) continue;
      const auto [first, is_new] = images.emplace(tile.position, pixel.n);
      expect(is_new || first->second == pixel.n || !g.by_image, "a tile of several images");
      for (std::int32_t f = tile.filter; f < std::min(tile.filter + g.tile_filters, g.filters); ++f) {
        const Shape to{pixel.n, tile.group * g.filters + f, pixel.d, pixel.h, pixel.w};
        const int got = product(p, g, packed, input, tile, position, column_phase, f);
        expect(got == expected.at(to), "filter ", f, " at ", pixel.d, ", ", pixel.h, ", ", pixel.w, ": ", got,
               " instead of ", expected.at(to));
        std::int64_t offset = 0;
        for (std::size_t d = 0; d < to.size(); ++d) offset = offset * expected.shape[d] + to[d];
        ++written[offset];
      }
    }
  }
  for (std::size_t i = 0; i < written.size(); ++i) {
    expect(written[i] == 1, "element ", i, " is written ", written[i], " times");
  }
}

GeometryProblem draw(std::mt19937& random) {
  const auto up_to = [&](int most, int least = 1) {
    return least + static_cast<int>(random() % (most - least + 1));
  };
  for (;;) {
    GeometryProblem p{};
    p.batch = up_to(3);
    p.groups = up_to(3);
    const int channels[] = {1, 3, 4, 9, 17, 33};
    p.channels = channels[random() % 6];
    p.filters = random() % 4 == 0 ? up_to(130) : up_to(9);
    p.transposed = random() % 2 == 0;
    p.element_bytes = random() % 2 == 0 ? 4 : 2;
    p.by_image = random() % 2 == 0;
    p.stores_columns = random() % 2 == 0;
    const int rank = up_to(3);
    bool fits = true;
    std::int64_t work = p.batch * p.groups * p.channels * p.filters;
    for (int d = 0; d < kDims; ++d) {
      const bool is_there = d >= kDims - rank;
      p.stride[d] = is_there ? up_to(4) : 1;
      p.dilation[d] = is_there ? up_to(3) : 1;
      p.taps[d] = is_there ? up_to(4) : 1;
      p.padding[d] = is_there ? up_to(3, 0) : 0;
      const std::int64_t reach = p.dilation[d] * (p.taps[d] - 1);
      p.input[d] = is_there ? up_to(rank == 1 ? 90 : 9) : 1;
      const std::int64_t end = is_there ? up_to(3, 0) : 0;
      if (p.transposed) {
        p.output[d] = (p.input[d] - 1) * p.stride[d] + reach + 1 - p.padding[d] - end + end % p.stride[d];
      } else {
        const std::int64_t room = p.input[d] + p.padding[d] + end - reach - 1;
        p.output[d] = room < 0 ? 0 : room / p.stride[d] + 1;
      }
      fits = fits && p.output[d] >= 1;
      work *= p.taps[d] * (p.transposed ? p.input[d] : p.output[d]);
    }
    if (fits && work < 300000) return p;
  }
}

std::string text_of(const GeometryProblem& p) {
  std::string text = epiconv::concat(p.transposed ? "transposed " : "", p.batch, " x ", p.groups, " x ",
                                     p.channels, ", ", p.filters, " filters");
  for (int d = 0; d < kDims; ++d) {
    text += epiconv::concat("; ", p.input[d], " to ", p.output[d], " by ", p.taps[d], " taps, stride ",
                            p.stride[d], ", dilation ", p.dilation[d], ", padding ", p.padding[d]);
  }
  return text;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const GeometryProblem problem = draw(random);
    expectations::subject = text_of(problem);
    check(problem, random);
  }
  return expectations::failures == 0 ? 0 : 1;
}
