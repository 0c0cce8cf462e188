// Problems for the test of the portable convolution's index arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include "epiconv/error.h"
#include "sm80/plan_geometry.h"

namespace implicit_cases {

using namespace epiconv::sm80;

inline std::string text_of(const GeometryProblem& p) {
  std::string text = epiconv::concat(p.transposed ? "transposed, " : "", p.element_bytes, " bytes, ");
  text += epiconv::concat(p.has_warpgroups ? "warpgroups, " : "", p.stores_images ? "images, " : "");
  text += epiconv::concat(p.takes_statistics ? "statistics, " : "", p.stores_columns ? "columns, " : "",
                          p.words_are_filters ? "words of filters, " : "", p.in_pieces ? "pieces, " : "");
  text += epiconv::concat(p.batch, " x ", p.groups, " x ", p.channels, ", ", p.filters, " filters");
  for (int d = 0; d < kDims; ++d) {
    text += epiconv::concat("; ", p.input[d], " to ", p.output[d], " by ", p.taps[d], " taps, stride ",
                            p.stride[d], ", dilation ", p.dilation[d], ", padding ", p.padding[d]);
  }
  return text;
}

// Sets the output of a dimension; false where it has no pixel.
inline bool set_output(GeometryProblem& p, int d, std::int64_t padding_end) {
  const std::int64_t reach = p.dilation[d] * (p.taps[d] - 1), padding = p.padding[d] + padding_end;
  const std::int64_t room = p.input[d] + padding - reach - 1;
  p.output[d] = room < 0 ? 0 : room / p.stride[d] + 1;
  if (!p.transposed) return p.output[d] >= 1;
  p.output[d] = (p.input[d] - 1) * p.stride[d] + reach + 1 - padding + padding_end % p.stride[d];
  return p.output[d] >= 1;
}

// Of problems of a kind. `far`: one dimension's taps or pixels are far from each other; `up`: all are
// transposed, of stride 2.
struct Limits {
  int batch, least_groups, groups, least_channels, channels, filters, taps;
  int extents[kDims];  // by rank
  bool far, up;
};
inline constexpr Limits kLimits[] = {
    {3, 1, 3, 1, 33, 9, 4, {90, 9, 9}, false, false},    {3, 1, 3, 1, 17, 140, 4, {30, 6, 6}, false, false},
    {20, 1, 3, 1, 33, 9, 4, {6, 6, 6}, false, false},    {2, 264, 300, 1, 2, 2, 3, {9, 5, 3}, false, false},
    {1, 264, 280, 1, 1, 1, 3, {9, 5, 3}, false, true},   {3, 1, 3, 34, 400, 9, 4, {6, 6, 6}, false, false},
    {3, 1, 3, 1, 33, 9, 40, {900, 20, 1}, false, false}, {3, 1, 3, 1, 33, 9, 4, {6, 6, 6}, true, false},
    {14, 1, 1, 1, 9, 9, 3, {70, 15, 6}, false, false}};
inline constexpr Limits kLargeLimits = {200, 1, 3, 1, 3000, 1000, 9, {1000000, 1500, 120}, false, false};

inline GeometryProblem draw(std::mt19937& random, const Limits& limits, bool computes) {
  const auto up_to = [&](int most, int least = 1) -> int { return least + random() % (most - least + 1); };
  const auto chance = [&](int of) { return random() % of == 0; };
  for (;;) {
    GeometryProblem p{};
    p.batch = up_to(limits.batch);
    p.groups = up_to(limits.groups, limits.least_groups);
    p.channels = up_to(limits.channels, limits.least_channels);
    p.filters = up_to(limits.filters);
    p.transposed = limits.up || chance(2);
    p.element_bytes = chance(2) ? 4 : 2;
    p.takes_statistics = chance(4);
    p.words_are_filters = chance(3);
    p.stores_columns = !p.words_are_filters && !chance(3);
    p.stores_images = p.stores_columns && chance(2);
    p.in_pieces = chance(2);
    p.has_warpgroups = chance(2);
    p.filter_operands = up_to(9, 0);
    p.chunk_sums = chance(2) ? 8 : 16;
    const bool is_doubled = limits.up || !chance(3);  // every stride is 2
    const int rank = up_to(kDims), far = limits.far ? up_to(kDims - 1, kDims - rank) : -1;
    bool fits = true;
    std::int64_t work = p.batch * p.groups * p.channels * p.filters, outputs = p.batch * p.groups * p.filters;
    for (int d = 0; d < kDims; ++d) {
      const bool is_there = d >= kDims - rank, is_far = d == far;
      p.stride[d] = !is_there ? 1 : is_far && chance(2) ? up_to(60) : is_doubled ? 2 : up_to(4);
      p.dilation[d] = !is_there ? 1 : is_far && chance(2) ? up_to(60) : up_to(3);
      p.taps[d] = is_there ? up_to(limits.taps) : 1;
      p.padding[d] = is_there ? up_to(is_far ? 40 : 3, 0) : 0;
      p.input[d] = is_there ? up_to(is_far && !p.transposed ? 300 : limits.extents[rank - 1]) : 1;
      fits = set_output(p, d, is_there ? up_to(is_far ? 40 : 3, 0) : 0) && fits;
      work *= p.taps[d] * (p.transposed ? p.input[d] : p.output[d]);
      outputs *= p.output[d];
    }
    if (fits && (!computes || std::max(work, outputs) < 200000)) return p;
  }
}

// Of one dimension.
inline GeometryProblem row_problem(bool transposed, int input, int taps, int stride, int dilation) {
  GeometryProblem p{};
  p.batch = p.groups = p.element_bytes = 2;
  p.chunk_sums = 16;
  p.channels = p.filters = 5;
  p.transposed = transposed;
  for (int d = 0; d < kDims; ++d) p.input[d] = p.output[d] = p.taps[d] = p.stride[d] = p.dilation[d] = 1;
  p.input[2] = input, p.taps[2] = taps, p.stride[2] = stride, p.dilation[2] = dilation;
  set_output(p, 2, 0);
  return p;
}

}  // namespace implicit_cases
