#include "epiconv/conv_problem.h"

#include <algorithm>
#include <array>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include "epiconv/error.h"

namespace epiconv {
namespace {

constexpr std::int64_t kMaxSpatialRank = 3;

// Prints as "(8, 3, 3, 3)", or "(8,)" as Python does. Not a string, so that a check that holds formats
// nothing.
struct Shape {
  const Extents& extents;

  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    out << '(';
    for (std::size_t i = 0; i < shape.extents.size(); ++i) out << (i ? ", " : "") << shape.extents[i];
    return out << (shape.extents.size() == 1 ? ",)" : ")");
  }
};

std::string_view dimension_name(int spatial_rank, int dimension) {
  constexpr std::array<std::string_view, kMaxSpatialRank> kNames{"depth", "height", "width"};
  return kNames.at(kMaxSpatialRank - spatial_rank + dimension);
}

template <typename... Context>
std::int64_t checked_add(std::int64_t a, std::int64_t b, const Context&... context) {
  std::int64_t sum = 0;
  require(!__builtin_add_overflow(a, b, &sum), context..., " does not fit in 64 bits; use smaller values");
  return sum;
}

template <typename... Context>
std::int64_t checked_multiply(std::int64_t a, std::int64_t b, const Context&... context) {
  std::int64_t product = 0;
  require(!__builtin_mul_overflow(a, b, &product), context...,
          " does not fit in 64 bits; use smaller values");
  return product;
}

template <typename... Context>
std::int64_t checked_product(const Extents& extents, const Context&... context) {
  std::int64_t product = 1;
  for (const std::int64_t extent : extents) product = checked_multiply(product, extent, context...);
  return product;
}

void check_size(std::string_view name, const Extents& extents) {
  checked_product(extents, "the number of elements of the ", name, " ", Shape{extents});
}

// N times the spatial extents.
std::int64_t count_pixels(Extents extents) {
  extents[1] = 1;
  return checked_product(extents, "the number of pixels of the batch");
}

Extents spatial(const Extents& extents) { return {extents.begin() + 2, extents.end()}; }

void check_ranks(const ConvArguments& given) {
  const Extents& input = given.input;
  const Extents& weight = given.weight;
  const int spatial_rank = static_cast<int>(weight.size()) - 2;
  const std::string_view layout =
      given.transposed ? "(C, K / groups, spatial…)" : "(K, C / groups, spatial…)";
  require(spatial_rank >= 1 && spatial_rank <= kMaxSpatialRank, "weight has shape ", Shape{weight},
          " of rank ", weight.size(), "; it must be ", layout, " with 1 to 3 spatial dimensions");
  require(
      input.size() == weight.size(), "input has shape ", Shape{input}, " of rank ", input.size(),
      ", but with a weight of shape ", Shape{weight}, " it must be (N, C, spatial…) of rank ", weight.size(),
      input.size() + 1 == weight.size() ? "; add a batch dimension of 1 in front" : "; reshape one of them");

  const std::array<std::pair<std::string_view, const Extents*>, 5> sequences{{
      {"stride", &given.stride},
      {"padding_begin", &given.padding_begin},
      {"padding_end", &given.padding_end},
      {"dilation", &given.dilation},
      {"output_padding", &given.output_padding},
  }};
  for (const auto& [name, sequence] : sequences) {
    require(static_cast<int>(sequence->size()) == spatial_rank, name, " ", Shape{*sequence}, " has length ",
            sequence->size(), "; give an entry for each of the ", spatial_rank,
            " spatial dimensions of the weight ", Shape{weight});
  }
}

void check_extents(const ConvArguments& given) {
  for (const std::int64_t extent : given.input) {
    require(extent >= 0, "input has shape ", Shape{given.input}, "; extents cannot be negative");
  }
  for (const std::int64_t extent : given.weight) {
    require(extent >= 0, "weight has shape ", Shape{given.weight}, "; extents cannot be negative");
  }
  const bool may_be_empty = given.input[0] == 0 || given.input[1] == 0;
  const Extents input_spatial = spatial(given.input);
  const Extents filter = spatial(given.weight);
  const int spatial_rank = static_cast<int>(filter.size());
  for (int d = 0; d < spatial_rank; ++d) {
    const std::string_view name = dimension_name(spatial_rank, d);
    require(filter[d] > 0, "filter ", name, " is 0 in weight ", Shape{given.weight},
            "; a filter needs at least one tap in every dimension");
    require(input_spatial[d] > 0 || may_be_empty, "input ", name, " is 0 in input ", Shape{given.input},
            "; of the input's extents only N and C may be 0");
  }
}

void check_parameters(const ConvArguments& given) {
  const int spatial_rank = static_cast<int>(given.stride.size());
  for (int d = 0; d < spatial_rank; ++d) {
    const std::string_view name = dimension_name(spatial_rank, d);
    require(given.stride[d] > 0, "stride ", Shape{given.stride}, " is ", given.stride[d], " in the ", name,
            "; it must be at least 1");
    require(given.dilation[d] > 0, "dilation ", Shape{given.dilation}, " is ", given.dilation[d], " in the ",
            name, "; it must be at least 1, and 1 means that the taps are adjacent");
    for (const Extents* padding : {&given.padding_begin, &given.padding_end}) {
      require((*padding)[d] >= 0, "padding ", Shape{*padding}, " is negative in the ", name,
              "; it must be at least 0, slice the input to crop it");
    }
    const std::int64_t output_padding = given.output_padding[d];
    require(output_padding >= 0, "output_padding ", Shape{given.output_padding}, " is negative in the ", name,
            "; it must be at least 0, raise the padding to crop the output");
    require(output_padding == 0 || given.transposed, "output_padding is ", Shape{given.output_padding},
            " but the convolution is not transposed; only a transposed convolution takes output_padding, "
            "leave it 0");
    require(output_padding < std::max(given.stride[d], given.dilation[d]), "output_padding ",
            Shape{given.output_padding}, " is ", output_padding, " in the ", name,
            "; it must be smaller than either stride (", given.stride[d], ") or dilation (",
            given.dilation[d], ")");
  }
}

// Checks groups, channels and bias; returns K.
std::int64_t check_channels(const ConvArguments& given) {
  const std::int64_t groups = given.groups;
  const std::int64_t C = given.input[1];
  const Extents& weight = given.weight;
  require(groups >= 1, "groups is ", groups, "; it must be at least 1");
  require(C % groups == 0, "groups = ", groups, " does not divide the C = ", C, " channels of input ",
          Shape{given.input}, "; choose groups among the divisors of both C and K");

  std::int64_t K = weight[0];
  if (given.transposed) {
    require(weight[0] == C, "weight has C = ", weight[0], " channels (shape ", Shape{weight},
            ", transposed: (C, K / groups, spatial…)) but input has C = ", C, " (shape ", Shape{given.input},
            "); make them equal");
    require(C > 0 && weight[1] > 0, "weight has shape ", Shape{weight},
            ", transposed: (C, K / groups, spatial…); C and K must be at least 1");
    K = checked_multiply(weight[1], groups, "K = ", weight[1], " * ", groups, " groups");
  } else {
    require(K > 0, "weight has K = 0 filters (shape ", Shape{weight}, "); K must be at least 1");
    require(K % groups == 0, "groups = ", groups, " does not divide the K = ", K, " filters of weight ",
            Shape{weight}, "; choose groups among the divisors of both C and K");
    require(weight[1] == C / groups, "weight has ", weight[1], " input channels per group (shape ",
            Shape{weight}, ") but input has C = ", C, " channels (shape ", Shape{given.input}, ") in ",
            groups, groups == 1 ? " group" : " groups", ", that is ", C / groups,
            " per group; give the weight ", C / groups,
            " input channels per group, or change the input's C or groups");
  }
  if (given.bias) {
    require(*given.bias == Extents{K}, "bias has shape ", Shape{*given.bias}, " but there are K = ", K,
            " filters; it must have shape (", K, ",)");
  }
  return K;
}

// The output's extent in spatial dimension d.
std::int64_t output_extent(const ConvArguments& given, int d) {
  const std::string_view name = dimension_name(static_cast<int>(given.stride.size()), d);
  const auto add = [&](std::int64_t a, std::int64_t b) { return checked_add(a, b, "output ", name); };
  const auto multiply = [&](std::int64_t a, std::int64_t b) {
    return checked_multiply(a, b, "output ", name);
  };
  const std::int64_t input = given.input[d + 2];
  const std::int64_t taps = given.weight[d + 2];
  const std::int64_t stride = given.stride[d];
  const std::int64_t begin = given.padding_begin[d];
  const std::int64_t end = given.padding_end[d];
  const std::int64_t padding = add(begin, end);
  const std::int64_t filter = add(multiply(taps - 1, given.dilation[d]), 1);
  const auto describe_filter = [&] {
    return concat("effective filter ", name, " ", filter, " (", taps, taps == 1 ? " tap" : " taps",
                  " at dilation ", given.dilation[d], ")");
  };

  if (!given.transposed) {
    const std::int64_t padded = add(input, padding);
    if (padded >= filter) return (padded - filter) / stride + 1;
    throw InvalidArgument(concat("output ", name, " would be ≤ 0: the ", describe_filter(),
                                 " is larger than the padded input ", name, " ", padded, " (", input, " + ",
                                 begin, " + ", end,
                                 "); use a larger input, more padding or a smaller filter"));
  }
  const std::int64_t uncropped = add(add(multiply(input - 1, stride), filter), given.output_padding[d]);
  const std::int64_t extent = add(uncropped, -padding);
  if (extent > 0) return extent;
  throw InvalidArgument(concat("output ", name, " would be ", extent, ": (", input, " - 1) * stride ", stride,
                               " + ", describe_filter(), " + output_padding ", given.output_padding[d],
                               " - padding ", begin, " - ", end,
                               "; use less padding (it crops a transposed convolution's output)"));
}

}  // namespace

ConvProblem::ConvProblem(ConvArguments arguments) : arguments_(std::move(arguments)) {
  check_ranks(arguments_);
  check_extents(arguments_);
  check_parameters(arguments_);
  K_ = check_channels(arguments_);

  output_ = {N(), C() == 0 ? 0 : K_};
  for (int d = 0; d < spatial_rank(); ++d) output_.push_back(output_extent(arguments_, d));

  check_size("input", input());
  check_size("weight", weight());
  check_size("output", output_);
  gemm_m_ = count_pixels(output_);
  gemm_n_ = K_ / groups();
  gemm_k_ = checked_product(spatial(weight()), "the number of taps") * (C() / groups());
  flops_ =
      checked_product({2, transposed() ? count_pixels(input()) : gemm_m_, K_, gemm_k_},
                      "the number of operations of input ", Shape{input()}, " with weight ", Shape{weight()});
}

}  // namespace epiconv
