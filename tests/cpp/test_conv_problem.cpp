// Extents of convolutions: what is computed, and what is refused with which message.
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "epiconv/conv_problem.h"
#include "epiconv/error.h"

using epiconv::ConvArguments;
using epiconv::ConvProblem;
using epiconv::Extents;

namespace {

int failures = 0;

void fail(std::string_view test, const std::string& what) {
  std::printf("FAILED %s: %s\n", std::string(test).c_str(), what.c_str());
  ++failures;
}

std::string to_text(const Extents& extents) {
  std::string text;
  for (const std::int64_t extent : extents) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return epiconv::concat("(", text, ")");
}

// Stride 1, dilation 1 and no padding, where a test leaves them out.
ConvArguments with_defaults(ConvArguments arguments) {
  const std::size_t rank = arguments.weight.size() < 2 ? 0 : arguments.weight.size() - 2;
  if (arguments.stride.empty()) arguments.stride = Extents(rank, 1);
  if (arguments.padding_begin.empty()) arguments.padding_begin = Extents(rank, 0);
  if (arguments.padding_end.empty()) arguments.padding_end = arguments.padding_begin;
  if (arguments.dilation.empty()) arguments.dilation = Extents(rank, 1);
  if (arguments.output_padding.empty()) arguments.output_padding = Extents(rank, 0);
  return arguments;
}

// Outputs and FLOPs are those of torch 2.13 and its flop counter.
struct Accepted {
  std::string_view reason;
  ConvArguments arguments;
  Extents output;
  Extents gemm;  // gemm_m, gemm_n, gemm_k
  std::int64_t flops;
};

const std::vector<Accepted> kAccepted{
    {"a recipe, with bias",
     {.input = {128, 64, 128, 128}, .weight = {128, 64, 3, 3}, .bias = Extents{128}},
     {128, 128, 126, 126},
     {128 * 126 * 126, 128, 64 * 9},
     299649466368},
    {"a recipe, transposed, four phases",
     {.input = {128, 64, 128, 128},
      .weight = {64, 64, 3, 3},
      .bias = Extents{64},
      .stride = {2, 2},
      .padding_begin = {1, 1},
      .transposed = true,
      .output_padding = {1, 1}},
     {128, 64, 256, 256},
     {128 * 256 * 256, 64, 64 * 9},
     154618822656},
    {"a 1x1 filter is a plain GEMM",
     {.input = {2, 4, 5, 7}, .weight = {6, 4, 1, 1}},
     {2, 6, 5, 7},
     {2 * 5 * 7, 6, 4},
     3360},
    {"the stride leaves a remainder in one dimension only",
     {.input = {1, 1, 8, 9}, .weight = {1, 1, 3, 3}, .stride = {3, 2}},
     {1, 1, 2, 4},
     {2 * 4, 1, 9},
     144},
    {"1-D",
     {.input = {2, 4, 9}, .weight = {6, 4, 3}, .stride = {2}, .padding_begin = {1}, .dilation = {2}},
     {2, 6, 4},
     {2 * 4, 6, 4 * 3},
     1152},
    {"3-D, grouped, every dimension different",
     {.input = {2, 4, 5, 7, 9},
      .weight = {6, 2, 3, 1, 5},
      .bias = Extents{6},
      .stride = {2, 1, 3},
      .padding_begin = {1, 0, 2},
      .dilation = {1, 2, 1},
      .groups = 2},
     {2, 6, 3, 7, 3},
     {2 * 3 * 7 * 3, 3, 2 * 3 * 1 * 5},
     45360},
    {"depthwise with two filters for each channel",
     {.input = {1, 3, 6, 6}, .weight = {6, 1, 3, 3}, .groups = 3},
     {1, 6, 4, 4},
     {16, 2, 9},
     1728},
    {"the effective filter is as large as the input",
     {.input = {1, 1, 5, 7}, .weight = {1, 1, 3, 3}, .dilation = {2, 3}},
     {1, 1, 1, 1},
     {1, 1, 9},
     18},
    {"padding larger than the filter: some outputs meet nothing but padding",
     {.input = {2, 4, 8, 8}, .weight = {6, 4, 3, 3}, .padding_begin = {7, 7}},
     {2, 6, 20, 20},
     {2 * 20 * 20, 6, 36},
     345600},
    {"padding differs between the two sides, as \"same\" gives it for even filters",
     {.input = {1, 1, 5, 5}, .weight = {1, 1, 4, 2}, .padding_begin = {0, 2}, .padding_end = {1, 0}},
     {1, 1, 3, 6},
     {18, 1, 8},
     288},
    {"1-D transposed",
     {.input = {2, 4, 9}, .weight = {4, 3, 4}, .stride = {2}, .padding_begin = {1}, .transposed = true},
     {2, 3, 18},
     {2 * 18, 3, 16},
     1728},
    {"3-D transposed, grouped, every dimension different",
     {.input = {2, 4, 5, 7, 9},
      .weight = {4, 3, 3, 1, 5},
      .bias = Extents{6},
      .stride = {2, 1, 3},
      .padding_begin = {1, 0, 2},
      .dilation = {1, 2, 1},
      .groups = 2,
      .transposed = true,
      .output_padding = {1, 1, 2}},
     {2, 6, 10, 8, 27},
     {2 * 10 * 8 * 27, 3, 2 * 3 * 1 * 5},
     226800},
    {"output_padding below the dilation, although not below the stride",
     {.input = {1, 1, 8, 8},
      .weight = {1, 1, 3, 3},
      .dilation = {2, 2},
      .transposed = true,
      .output_padding = {1, 1}},
     {1, 1, 13, 13},
     {169, 1, 9},
     1152},
    {"transposed and cropped to one pixel",
     {.input = {1, 1, 1, 1}, .weight = {1, 1, 3, 3}, .padding_begin = {1, 1}, .transposed = true},
     {1, 1, 1, 1},
     {1, 1, 9},
     18},
    {"an empty batch", {.input = {0, 4, 8, 8}, .weight = {6, 4, 3, 3}}, {0, 6, 6, 6}, {0, 6, 36}, 0},
    {"an empty batch, transposed",
     {.input = {0, 4, 8, 8}, .weight = {4, 6, 3, 3}, .transposed = true},
     {0, 6, 10, 10},
     {0, 6, 36},
     0},
    {"an empty batch of empty images",
     {.input = {0, 4, 0, 8}, .weight = {6, 4, 3, 3}, .padding_begin = {2, 2}},
     {0, 6, 2, 10},
     {0, 6, 36},
     0},
    {"no input channels: torch returns no output channels",
     {.input = {2, 0, 8, 8}, .weight = {6, 0, 3, 3}, .bias = Extents{6}, .groups = 3},
     {2, 0, 6, 6},
     {72, 2, 0},
     0},
    {"more elements than 32 bits count",
     {.input = {70000, 1, 256, 256}, .weight = {1, 1, 1, 1}},
     {70000, 1, 256, 256},
     {4587520000, 1, 1},
     9175040000},
};

struct Refused {
  std::vector<std::string_view> words;  // that the message contains
  ConvArguments arguments;
};

constexpr std::int64_t kHuge = std::int64_t{1} << 62;
const Extents kImage{2, 4, 8, 8};
const Extents kFilter{6, 4, 3, 3};

const std::vector<Refused> kRefused{
    {{"weight has shape (6,)", "rank 1", "1 to 3 spatial"}, {.input = kImage, .weight = {6}}},
    {{"weight has shape (6, 4)", "(K, C / groups"}, {.input = kImage, .weight = {6, 4}}},
    {{"rank 6", "1 to 3 spatial"}, {.input = kImage, .weight = {6, 4, 3, 3, 3, 3}}},
    {{"(C, K / groups"}, {.input = kImage, .weight = {6, 4}, .transposed = true}},
    {{"input has shape (4, 8, 8)", "batch dimension"}, {.input = {4, 8, 8}, .weight = kFilter}},
    {{"input has shape (2, 4, 8, 8, 8)", "reshape"}, {.input = {2, 4, 8, 8, 8}, .weight = kFilter}},
    {{"stride (1,) has length 1", "2 spatial"}, {.input = kImage, .weight = kFilter, .stride = {1}}},
    {{"padding_begin (1, 1, 1) has length 3"},
     {.input = kImage, .weight = kFilter, .padding_begin = {1, 1, 1}}},
    {{"padding_end (1,) has length 1"}, {.input = kImage, .weight = kFilter, .padding_end = {1}}},
    {{"dilation (1, 1, 1) has length 3"}, {.input = kImage, .weight = kFilter, .dilation = {1, 1, 1}}},
    {{"output_padding (0,) has length 1"}, {.input = kImage, .weight = kFilter, .output_padding = {0}}},

    {{"input has shape (2, 4, -8, 8)", "negative"}, {.input = {2, 4, -8, 8}, .weight = kFilter}},
    {{"weight has shape (6, 4, 3, -3)", "negative"}, {.input = kImage, .weight = {6, 4, 3, -3}}},
    {{"filter height is 0", "(6, 4, 0, 3)"}, {.input = kImage, .weight = {6, 4, 0, 3}}},
    {{"filter width is 0"}, {.input = {2, 4, 8}, .weight = {6, 4, 0}}},
    {{"filter depth is 0"}, {.input = {2, 4, 8, 8, 8}, .weight = {6, 4, 0, 3, 3}}},
    {{"input height is 0", "only N and C"},
     {.input = {2, 4, 0, 8}, .weight = kFilter, .padding_begin = {2, 2}}},

    {{"stride (0, 1)", "height", "at least 1"}, {.input = kImage, .weight = kFilter, .stride = {0, 1}}},
    {{"stride (1, -2)", "width", "at least 1"}, {.input = kImage, .weight = kFilter, .stride = {1, -2}}},
    {{"dilation (1, 0)", "width", "at least 1"}, {.input = kImage, .weight = kFilter, .dilation = {1, 0}}},
    {{"dilation (-1, 1)", "height"}, {.input = kImage, .weight = kFilter, .dilation = {-1, 1}}},
    {{"padding (0, -1)", "negative", "width"},
     {.input = kImage, .weight = kFilter, .padding_begin = {0, -1}, .padding_end = {0, 0}}},
    {{"padding (-1, 0)", "negative", "height"}, {.input = kImage, .weight = kFilter, .padding_end = {-1, 0}}},
    {{"output_padding is (1, 0)", "not transposed"},
     {.input = kImage, .weight = kFilter, .stride = {2, 2}, .output_padding = {1, 0}}},
    {{"output_padding (0, -1)", "negative", "width"},
     {.input = kImage, .weight = {4, 6, 3, 3}, .transposed = true, .output_padding = {0, -1}}},
    {{"output_padding (1, 0)", "height", "smaller than either stride (1) or dilation (1)"},
     {.input = kImage,
      .weight = {4, 6, 3, 3},
      .stride = {1, 2},
      .transposed = true,
      .output_padding = {1, 0}}},

    {{"groups is 0", "at least 1"}, {.input = kImage, .weight = kFilter, .groups = 0}},
    {{"groups is -2", "at least 1"}, {.input = kImage, .weight = kFilter, .groups = -2}},
    {{"groups = 3", "C = 4", "divisors"}, {.input = kImage, .weight = {6, 1, 3, 3}, .groups = 3}},
    {{"groups = 4", "K = 6", "divisors"}, {.input = kImage, .weight = {6, 1, 3, 3}, .groups = 4}},
    {{"groups = 4", "K = 2"}, {.input = kImage, .weight = {2, 1, 3, 3}, .groups = 4}},
    {{"3 input channels per group", "(6, 3, 3, 3)", "C = 4", "in 1 group, that is 4 per group", "give"},
     {.input = kImage, .weight = {6, 3, 3, 3}}},
    {{"4 input channels per group", "in 2 groups, that is 2 per group"},
     {.input = kImage, .weight = kFilter, .groups = 2}},
    {{"weight has K = 0"}, {.input = kImage, .weight = {0, 4, 3, 3}}},
    {{"weight has C = 5", "transposed", "input has C = 4"},
     {.input = kImage, .weight = {5, 6, 3, 3}, .transposed = true}},
    {{"(0, 6, 3, 3)", "at least 1"}, {.input = {2, 0, 8, 8}, .weight = {0, 6, 3, 3}, .transposed = true}},
    {{"(4, 0, 3, 3)", "at least 1"}, {.input = kImage, .weight = {4, 0, 3, 3}, .transposed = true}},
    {{"bias has shape (5,)", "K = 6", "(6,)"}, {.input = kImage, .weight = kFilter, .bias = Extents{5}}},
    {{"bias has shape (6, 1)"}, {.input = kImage, .weight = kFilter, .bias = Extents{6, 1}}},
    {{"bias has shape ()"}, {.input = kImage, .weight = kFilter, .bias = Extents{}}},
    {{"bias has shape (3,)", "K = 6"},
     {.input = kImage, .weight = {4, 3, 3, 3}, .bias = Extents{3}, .groups = 2, .transposed = true}},

    {{"output height", "≤ 0", "effective filter height 5 (3 taps at dilation 2)", "padded input height 4"},
     {.input = {2, 4, 3, 8},
      .weight = kFilter,
      .padding_begin = {0, 0},
      .padding_end = {1, 0},
      .dilation = {2, 1}}},
    {{"output width", "effective filter width 3"}, {.input = {2, 4, 2}, .weight = {6, 4, 3}}},
    {{"output depth", "effective filter depth 3"}, {.input = {2, 4, 2, 8, 8}, .weight = {6, 4, 3, 3, 3}}},
    {{"output width", "effective filter"}, {.input = {0, 4, 8, 2}, .weight = kFilter}},
    {{"output height would be 0", "effective filter height 3", "less padding"},
     {.input = kImage, .weight = {4, 6, 3, 3}, .padding_begin = {5, 0}, .transposed = true}},
    {{"output width would be -1"},
     {.input = {2, 4, 1, 1}, .weight = {4, 6, 1, 1}, .padding_begin = {0, 1}, .transposed = true}},

    {{"elements of the input", "64 bits"}, {.input = {kHuge, 4, 8, 8}, .weight = kFilter}},
    {{"elements of the weight", "64 bits"}, {.input = {1, kHuge, 1}, .weight = {4, kHuge, 1}}},
    {{"elements of the output", "64 bits"}, {.input = {1 << 30, 1, 1 << 30}, .weight = {1 << 10, 1, 1}}},
    {{"number of pixels", "64 bits"}, {.input = {kHuge, 0, 8}, .weight = {1, 0, 1}}},
    {{"number of operations", "64 bits"}, {.input = {1 << 20, 1 << 20, 1}, .weight = {1 << 30, 1 << 20, 1}}},
    {{"output width", "64 bits"}, {.input = {1, 1, 8}, .weight = {1, 1, 4}, .dilation = {kHuge}}},
    {{"output width", "64 bits"}, {.input = {1, 1, 8}, .weight = {1, 1, 3}, .padding_begin = {kHuge}}},
    {{"output width", "64 bits"},
     {.input = {1, 1, 8}, .weight = {1, 1, 3}, .stride = {kHuge}, .transposed = true}},
    {{"K = ", "64 bits"}, {.input = {1, 4, 1}, .weight = {4, kHuge, 1}, .groups = 4, .transposed = true}},
};

void test_accepted(const Accepted& expected) {
  try {
    const ConvProblem problem(with_defaults(expected.arguments));
    if (problem.output() != expected.output) {
      fail(expected.reason, "output " + to_text(problem.output()) + ", expected " + to_text(expected.output));
    }
    const Extents gemm{problem.gemm_m(), problem.gemm_n(), problem.gemm_k()};
    if (gemm != expected.gemm)
      fail(expected.reason, "gemm " + to_text(gemm) + ", expected " + to_text(expected.gemm));
    if (problem.flops() != expected.flops) {
      fail(expected.reason,
           "flops " + std::to_string(problem.flops()) + ", expected " + std::to_string(expected.flops));
    }
    if (!expected.arguments.transposed &&
        problem.flops() != 2 * gemm[0] * gemm[1] * gemm[2] * problem.groups()) {
      fail(expected.reason, "flops are not those of the GEMM of each group");
    }
  } catch (const epiconv::InvalidArgument& error) {
    fail(expected.reason, error.what());
  }
}

void test_refused(const Refused& expected) {
  const std::string test =
      epiconv::concat("refusal of input ", to_text(expected.arguments.input), " weight ",
                      to_text(expected.arguments.weight), " (\"", expected.words[0], "\")");
  try {
    const ConvProblem problem(with_defaults(expected.arguments));
    fail(test, "accepted, output " + to_text(problem.output()));
  } catch (const epiconv::InvalidArgument& error) {
    for (const std::string_view word : expected.words) {
      if (std::string_view(error.what()).find(word) == std::string_view::npos) {
        fail(test, epiconv::concat("\"", word, "\" is not in: ", error.what()));
      }
    }
  }
}

void test_accessors() {
  const ConvArguments arguments = with_defaults({.input = {2, 4, 5, 7},
                                                 .weight = {4, 3, 1, 2},
                                                 .bias = Extents{6},
                                                 .stride = {3, 2},
                                                 .padding_begin = {0, 1},
                                                 .padding_end = {1, 0},
                                                 .dilation = {1, 2},
                                                 .groups = 2,
                                                 .transposed = true,
                                                 .output_padding = {2, 1}});
  const ConvProblem problem(arguments);
  const bool right = problem.N() == 2 && problem.C() == 4 && problem.K() == 6 && problem.groups() == 2 &&
                     problem.spatial_rank() == 2 && problem.has_bias() && problem.transposed() &&
                     problem.input() == arguments.input && problem.weight() == arguments.weight &&
                     problem.stride() == arguments.stride && problem.dilation() == arguments.dilation &&
                     problem.padding_begin() == arguments.padding_begin &&
                     problem.padding_end() == arguments.padding_end &&
                     problem.output_padding() == arguments.output_padding;
  if (!right) fail("accessors", "one does not return what was given");

  ConvArguments unbiased = arguments;
  unbiased.bias.reset();
  if (!(problem == ConvProblem(arguments))) fail("equality", "the same arguments make different problems");
  if (problem == ConvProblem(unbiased)) fail("equality", "a bias makes no difference");
}

}  // namespace

int main() {
  for (const Accepted& expected : kAccepted) test_accepted(expected);
  for (const Refused& expected : kRefused) test_refused(expected);
  test_accessors();
  return failures == 0 ? 0 : 1;
}
