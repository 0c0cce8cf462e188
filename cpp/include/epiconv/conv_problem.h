// ConvProblem: the extents of a convolution, checked. The only place that computes output extents and
// GEMM extents.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "epiconv/export.h"

namespace epiconv {

using Extents = std::vector<std::int64_t>;

// What a caller says about a convolution. Sequences without a comment have one entry per spatial dimension,
// in the order of memory: (D, H, W), (H, W) or (W).
struct ConvArguments {
  Extents input;                  // (N, C, spatial…)
  Extents weight;                 // (K, C / groups, spatial…); transposed: (C, K / groups, spatial…)
  std::optional<Extents> bias{};  // (K,)
  Extents stride{};
  Extents padding_begin{};
  Extents padding_end{};
  Extents dilation{};
  std::int64_t groups = 1;
  bool transposed = false;
  Extents output_padding{};  // zeros unless transposed

  bool operator==(const ConvArguments&) const = default;
};

// Accepts what torch accepts, and refuses besides: filters and outputs without an element, output_padding
// where nothing is transposed, and extents whose product does not fit in 64 bits. As in torch, N may be 0;
// C may be 0 unless transposed, and then the output has no channels either, whatever K is.
class EPICONV_API ConvProblem {
 public:
  // Throws InvalidArgument.
  explicit ConvProblem(ConvArguments arguments);

  const Extents& input() const { return arguments_.input; }
  const Extents& weight() const { return arguments_.weight; }
  const Extents& output() const { return output_; }  // (N, K, spatial…)
  bool has_bias() const { return arguments_.bias.has_value(); }

  // One entry per spatial dimension.
  int spatial_rank() const { return static_cast<int>(arguments_.input.size()) - 2; }
  const Extents& stride() const { return arguments_.stride; }
  const Extents& padding_begin() const { return arguments_.padding_begin; }
  const Extents& padding_end() const { return arguments_.padding_end; }
  const Extents& dilation() const { return arguments_.dilation; }
  const Extents& output_padding() const { return arguments_.output_padding; }

  std::int64_t N() const { return arguments_.input[0]; }
  std::int64_t C() const { return arguments_.input[1]; }
  std::int64_t K() const { return K_; }
  std::int64_t groups() const { return arguments_.groups; }
  bool transposed() const { return arguments_.transposed; }

  // The GEMM of one group: a row for each output pixel, a column for each filter, and a sum over input
  // channels and taps. Of a transposed convolution's gemm_k an output pixel meets only the taps of its phase,
  // about one in stride to the power of the rank.
  std::int64_t gemm_m() const { return gemm_m_; }  // N * P * Q
  std::int64_t gemm_n() const { return gemm_n_; }  // K / groups
  std::int64_t gemm_k() const { return gemm_k_; }  // C / groups * R * S

  // Two for each multiply-add: fprop N * P * Q * K * C / groups * R * S, transposed
  // N * H * W * C * K / groups * R * S. So a transposed convolution's inserted zeros do not count; taps that
  // meet padding, and products that a transposed convolution's padding crops, do.
  std::int64_t flops() const { return flops_; }

  bool operator==(const ConvProblem&) const = default;

 private:
  ConvArguments arguments_;
  Extents output_;
  std::int64_t K_ = 0;
  std::int64_t gemm_m_ = 0;
  std::int64_t gemm_n_ = 0;
  std::int64_t gemm_k_ = 0;
  std::int64_t flops_ = 0;
};

}  // namespace epiconv
