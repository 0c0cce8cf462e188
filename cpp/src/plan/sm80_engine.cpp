// The portable convolution as an engine. It takes whatever can be computed with 32-bit index arithmetic; what
// its epilogue cannot do in one go is done by a pass behind it, on what it has stored in float32.
#include <algorithm>
#include <limits>
#include <utility>

#include "device/gates.h"
#include "elementwise/epilogue_pass.h"
#include "elementwise/group_norm.h"
#include "epiconv/compiler.h"
#include "epiconv/error.h"
#include "plan/conv_engine.h"
#include "plan/cost_model.h"
#include "plan/operand_strides.h"
#include "plan/pass_plan.h"
#include "sm80/implicit_conv.h"

namespace epiconv {
namespace {

using sm80::kDims;

// Two dimensions and the spatial ones, of which missing ones come first, with `missing`; `extents` of one
// element have no stride.
template <typename Target>
void spread(const Extents& values, std::int64_t missing, Target& target) {
  const std::size_t absent = 2 + kDims - values.size();
  for (std::size_t d = 0; d < 2 + kDims; ++d) {
    target[d] = d < 2 ? values[d] : d < 2 + absent ? missing : values[d - absent];
  }
}
template <typename Target>
void spread_spatial(const Extents& values, std::int64_t missing, Target& target) {
  const std::size_t absent = kDims - values.size();
  for (std::size_t d = 0; d < kDims; ++d) target[d] = d < absent ? missing : values[d - absent];
}

sm80::TensorLayout tensor_layout(DType dtype, const Extents& extents, const Extents& strides) {
  sm80::TensorLayout layout{dtype, {}};
  Extents kept = strides;
  for (std::size_t d = 0; d < kept.size(); ++d) kept[d] = extents[d] == 1 ? 0 : kept[d];
  spread(kept, 0, layout.strides);
  return layout;
}

// Whether channels lie in pieces of 16 bytes of what is multiplied.
bool in_pieces(const ConvPlanProblem& problem, const sm80::TensorLayout& input, int element_bytes) {
  const int size = dtype_size(problem.input_dtype);
  if (problem.conv.C() / problem.conv.groups() * element_bytes % sm80::kPieceBytes != 0) return false;
  if (problem.input_alignment % sm80::kPieceBytes != 0) return false;
  for (int d = 0; d < 2 + kDims; ++d) {
    const std::int64_t stride = input.strides[d];
    if (d == 1 ? stride != 1 : stride * size % sm80::kPieceBytes != 0) return false;
  }
  return true;
}

// Whether pixels follow each other, with filters side by side, in rows of the copy engine's granularity.
bool is_dense(const sm80::TensorLayout& output, const ConvProblem& conv) {
  const int size = dtype_size(output.dtype);
  if (output.strides[1] != 1 || conv.K() * size % sm80::kPieceBytes != 0) return false;
  std::int64_t stride = conv.K();
  for (std::size_t d = conv.output().size(); d-- > 0;) {
    if (d == 1) continue;
    const std::size_t at = d == 0 ? 0 : d + 2 + kDims - conv.output().size();
    if (conv.output()[d] > 1 && output.strides[at] != stride) return false;
    stride *= conv.output()[d];
  }
  return true;
}
// Whether what lies in so many dimensions, images first, begins at the copy engine's granularity.
bool has_lines(const sm80::TensorLayout& tensor, int dims) {
  return std::all_of(tensor.strides, tensor.strides + dims, [&](std::int64_t stride) {
    return stride * dtype_size(tensor.dtype) % sm80::kPieceBytes == 0;
  });
}

// The operand that is laid out like the output, element for element, in dimensions from `first` on; or -1.
int operand_like_output(const sm80::ImplicitConvProblem& problem, int first = 0) {
  for (int i = 0; i < kNumOperandPlaces; ++i) {
    const sm80::TensorLayout& operand = problem.operands[i];
    if (!problem.program.reads(i) || operand.dtype != problem.output.dtype) continue;
    if (std::equal(operand.strides + first, std::end(operand.strides), problem.output.strides + first))
      return i;
  }
  return -1;
}

// Of the kernels.
enum class Kind {
  kPortable,
  kWarpgroups,  // compiled with products of warpgroups, or not at all
  kIm2col       // and of what the copy engine brings
};

sm80::GeometryProblem geometry_problem(const ConvPlanProblem& problem,
                                       const sm80::ImplicitConvProblem& planned, Kind kind) {
  const ConvProblem& conv = problem.conv;
  sm80::GeometryProblem result{};
  result.batch = conv.N();
  result.groups = conv.groups();
  result.channels = conv.C() / conv.groups();
  result.filters = conv.K() / conv.groups();
  const auto spatial = [](const Extents& extents) { return Extents(extents.begin() + 2, extents.end()); };
  spread_spatial(spatial(conv.input()), 1, result.input);
  spread_spatial(spatial(conv.output()), 1, result.output);
  spread_spatial(spatial(conv.weight()), 1, result.taps);
  spread_spatial(conv.stride(), 1, result.stride);
  spread_spatial(conv.dilation(), 1, result.dilation);
  spread_spatial(conv.padding_begin(), 0, result.padding);
  result.transposed = conv.transposed();
  result.is_batch_invariant = problem.is_batch_invariant;
  result.element_bytes = problem.math == ConvMath::kTf32 || problem.math == ConvMath::kIeee ? 4 : 2;
  result.takes_statistics = planned.takes_statistics;
  const auto& output = planned.output.strides;
  result.stores_columns = output[4] == 1;
  result.words_are_filters = output[1] == 1 && problem.conv.K() > 1 && !result.stores_columns;
  result.stores_images = result.stores_columns && (output[3] == 0 || output[3] == result.output[2]) &&
                         (output[2] == 0 || output[2] == result.output[1] * result.output[2]);
  result.in_pieces = planned.in_pieces;
  result.output_bytes = dtype_size(planned.output.dtype);
  result.stores_slices =
      result.words_are_filters ? is_dense(planned.output, conv) : has_lines(planned.output, 2);
  result.stages_operand = planned.staged_operand >= 0;
  result.has_warpgroups = kind != Kind::kPortable;
  result.is_im2col = kind == Kind::kIm2col;
  // Sums of warpgroups wait in shared memory, and leave registers for more loads of operands at once.
  result.chunk_sums = sm80::chunk_sums(planned.program) * (kind == Kind::kWarpgroups ? 2 : 1);
  if (kind == Kind::kIm2col) {
    result.chunk_sums = 16;
    result.output_clocks = compiled_clocks(problem, planned.staged_operand >= 0);
  }
  for (int i = 0; i < kNumOperandPlaces; ++i) {
    if (!planned.program.reads(i)) continue;
    sm80::TensorLayout of_image = planned.operands[i];
    of_image.strides[0] = 0;
    result.filter_operands += sm80::is_of_filters(planned.operands[i]) ? 1 : 0;
    result.image_filter_operands += sm80::is_of_filters(of_image) ? 1 : 0;
  }
  result.stages_image_operand = kind == Kind::kIm2col && operand_like_output(planned, 1) >= 0;
  return result;
}

// What the convolution itself does, and what is left for a pass behind it.
enum class Division {
  kNone,         // it computes the whole program
  kAtNorm,       // it computes what comes before the GroupNorm, and takes the statistics of that
  kBareProducts  // it computes no program
};

class Sm80Engine final : public ConvEngine {
 public:
  const std::string& kernel() const override { return name_; }
  std::string why_interpreted() const override { return conv_->why_interpreted(); }
  const PredictedTime& predicted() const override { return predicted_; }
  std::size_t workspace_bytes() const override {
    return conv_->workspace_bytes() + intermediate_bytes_ + pass_bytes();
  }
  const std::string& weight_format() const override { return format_; }
  std::size_t packed_bytes() const override { return sm80::packed_bytes(problem_.geometry); }
  void pack(const WeightSource& weight, void* packed, int device, void* stream) const override;
  void run(const PassPointers& pointers, const void* weights, int device, void* stream) const override;

  // "" or why it cannot be.
  std::string plan(const ConvPlanProblem& given, Kind kind);
  std::string finish(const ConvPlanProblem& given, bool compiles) override;

 private:
  std::string why_no_warpgroups(const ConvPlanProblem& given) const {
    if (given.card.major != 9 || given.card.minor != 0) return "compute capability 9.0 only";
    if (given.math == ConvMath::kIeee) return "warpgroups have no products of float32";
    if (!problem_.program.late_numbers.empty()) return "an operand is a number known only when it runs";
    return "";
  }

  // Whether no two pixels lie in one place.
  static bool has_steps(const ConvPlanProblem& given) {
    bool has = true;
    for (std::size_t d = 0; d < given.conv.input().size(); ++d) {
      has = has && (given.conv.input()[d] == 1 || given.input_strides[d] != 0);
    }
    return has;
  }

  // Whether channels lie side by side, or the input is copied first, or why neither.
  std::string set_turn(const ConvPlanProblem& given) {
    if (given.padding_mode != PaddingMode::kZeros) return "the copy engine pads with zeros only";
    const DType multiplied = given.math == ConvMath::kTf32   ? DType::kFloat32
                             : given.math == ConvMath::kBf16 ? DType::kBFloat16
                                                             : DType::kFloat16;
    std::int64_t pixels = given.conv.N();
    for (std::size_t d = 2; d < given.conv.input().size(); ++d) pixels *= given.conv.input()[d];
    problem_.turns_input = !problem_.in_pieces || !has_steps(given) || given.input_dtype != multiplied;
    if (pixels == 0) return "the input has no pixels";
    if (pixels > std::numeric_limits<std::int32_t>::max()) {
      return given.is_batch_invariant ? "the batch is too large for the 32-bit numbers of the input's pixels"
                                      : "the input has too many pixels";
    }
    return "";
  }

  // Of an input that is copied first, pixels between those that a single tap meets are not.
  void leave_out_pixels(sm80::GeometryProblem& geometry) {
    for (int d = 0; d < kDims; ++d) {
      const bool meets_padding = (geometry.output[d] - 1) * geometry.stride[d] >= geometry.input[d];
      if (geometry.transposed || geometry.taps[d] != 1 || geometry.padding[d] != 0 || meets_padding) continue;
      problem_.input.strides[2 + d] *= geometry.stride[d];
      geometry.input[d] = geometry.output[d];
      geometry.stride[d] = 1;
    }
  }

  // Whether rows of the input's pixels, in what is multiplied, begin at the copy engine's granularity.
  bool has_input_lines(const ConvPlanProblem& given) const {
    const sm80::TensorLayout& input = problem_.input;
    const DType multiplied = given.math == ConvMath::kTf32   ? DType::kFloat32
                             : given.math == ConvMath::kBf16 ? DType::kBFloat16
                                                             : DType::kFloat16;
    return input.dtype == multiplied && input.strides[4] == 1 && has_lines(input, 1 + kDims) &&
           given.input_alignment % sm80::kPieceBytes == 0 && has_steps(given);
  }

  // Where a tap meets each pixel alone, an image is one row of pixels, if all tensors allow it.
  void join_pixels(sm80::GeometryProblem& geometry) {
    for (int d = 0; d < kDims; ++d) {
      if (geometry.taps[d] != 1 || geometry.padding[d] != 0 || geometry.stride[d] != 1) return;
    }
    const auto is_joined = [&](const sm80::TensorLayout& tensor) {
      std::int64_t pixels = 1, stride = -1;  // of the dimensions so far, the last ones first
      for (int d = kDims - 1; d >= 0; --d) {
        if (geometry.output[d] == 1) continue;
        if (stride >= 0 && tensor.strides[2 + d] != stride * pixels) return false;
        if (stride < 0) stride = tensor.strides[2 + d];
        pixels *= geometry.output[d];
      }
      return true;
    };
    bool are_joined = geometry.stores_images && is_joined(problem_.input) && is_joined(problem_.output);
    for (int i = 0; i < kNumOperandPlaces; ++i) {
      are_joined = are_joined && (!problem_.program.reads(i) || is_joined(problem_.operands[i]));
    }
    if (!are_joined) return;
    const auto join = [&](sm80::TensorLayout& tensor) {
      std::int64_t stride = 0;
      for (int d = kDims - 1; d >= 0 && stride == 0; --d) stride = tensor.strides[2 + d];
      tensor.strides[2] = tensor.strides[3] = 0;
      tensor.strides[4] = stride;
    };
    join(problem_.input);
    join(problem_.output);
    for (int i = 0; i < kNumOperandPlaces; ++i) {
      if (problem_.program.reads(i)) join(problem_.operands[i]);
    }
    const std::int64_t pixels = geometry.output[0] * geometry.output[1] * geometry.output[2];
    for (int d = 0; d < kDims; ++d) {
      geometry.input[d] = geometry.output[d] = d == kDims - 1 ? pixels : 1;
    }
  }

  PredictedTime predict(const ConvPlanProblem& given, const PlannedClocks& clocks) const {
    // As measured: of an output and a step, of all warps.
    constexpr double kOutputInstructions = 10, kStepInstructions = 12, kInterpretedOfClock = 51;
    const KernelKind kind = !problem_.geometry.has_warpgroups ? KernelKind::kPortable
                            : problem_.geometry.is_im2col     ? KernelKind::kIm2col
                            : problem_.in_pieces              ? KernelKind::kInPieces
                                                              : KernelKind::kGathered;
    KernelDemand demand{kind, clocks};
    demand.copies_input = problem_.turns_input;
    if (!problem_.geometry.has_warpgroups && !is_compiled_) {
      const auto steps = static_cast<double>(problem_.program.steps.size());
      demand.program_clocks = (kOutputInstructions + steps * kStepInstructions) / kInterpretedOfClock;
    } else if (!problem_.geometry.is_im2col && division_ != Division::kBareProducts) {
      demand.program_clocks = compiled_clocks(given, false);
    }
    if (division_ == Division::kNone) return predict_kernel(given, demand);
    // float32 is stored, and read by the pass; of a GroupNorm without statistics twice.
    const bool reads_twice =
        division_ == Division::kBareProducts && given.program.group_norm_statement() >= 0;
    demand.stored_bytes = sizeof(float);
    demand.pass_bytes = sizeof(float) * (reads_twice ? 2 : 1) + dtype_size(given.output_dtype);
    return predict_kernel(given, demand);
  }

  std::size_t pass_bytes() const {
    if (division_ == Division::kAtNorm) return tables_bytes_;
    return pass_ == nullptr ? 0 : pass_->workspace_bytes();
  }

  sm80::ImplicitConvProblem problem_;
  PredictedTime predicted_;
  bool is_compiled_ = false;  // or would be, if it were worth a kernel
  Division division_ = Division::kNone;
  std::unique_ptr<const sm80::ImplicitConv> conv_;
  std::unique_ptr<const CudaPass> pass_;  // over what `conv_` has stored, or nullptr
  GroupNormShape norm_;
  std::size_t intermediate_bytes_ = 0;  // of what is stored, where it is not in the output
  std::size_t tables_bytes_ = 0;
  std::string name_, format_;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

std::string Sm80Engine::plan(const ConvPlanProblem& given, Kind kind) {
  const bool has_warpgroups = kind != Kind::kPortable;
  LoweringOptions options;
  options.has_bias = given.bias.has_value();
  options.divide_by_reciprocal = true;
  for (const OperandLayout& operand : given.operands) options.operand_is_number.push_back(operand.is_number);
  const std::vector<PlacedOperand> operands =
      place_operands(given.program, given.conv.output(), given.bias, given.operands);
  problem_.program = lower(given.program, options);
  const bool in_double =
      computes_in_double(given.program, given.input_dtype, given.output_dtype, given.operands);
  const bool has_norm = problem_.program.has_group_norm;
  if (in_double || (has_norm && !problem_.program.restarts_at_norm())) {
    if (has_norm && given.is_batch_invariant) {
      return "the statistics of a GroupNorm in a pass of its own are of words of the whole batch";
    }
    division_ = Division::kBareProducts;
    problem_.program = lower(Program(), LoweringOptions{});
  } else if (has_norm) {
    division_ = Division::kAtNorm;
    problem_.program = problem_.program.before_norm();
    problem_.takes_statistics = true;
  }
  problem_.program = with_gates(problem_.program, Gates::kAll);
  const Extents& extents = given.conv.output();
  // What is asked of strides is asked of an image's too where it is alone, so that no plan depends on that.
  const auto in_batch = [&](Extents of) {
    if (given.is_batch_invariant) of[0] = std::max<std::int64_t>(of[0], 2);
    return of;
  };
  const DType stored = division_ == Division::kNone ? given.output_dtype : DType::kFloat32;
  problem_.math = given.math;
  problem_.padding_mode = given.padding_mode;
  problem_.input = tensor_layout(given.input_dtype, in_batch(given.conv.input()), given.input_strides);
  problem_.output = tensor_layout(stored, in_batch(extents), given.output_strides);
  const int element_bytes = given.math == ConvMath::kTf32 || given.math == ConvMath::kIeee ? 4 : 2;
  problem_.in_pieces = in_pieces(given, problem_.input, element_bytes);
  for (const PlacedOperand& operand : operands) {
    if (!problem_.program.reads(operand.place)) continue;
    problem_.operands[operand.place] = tensor_layout(operand.dtype, extents, operand.strides);
  }
  if (kind == Kind::kIm2col) problem_.staged_operand = operand_like_output(problem_);
  std::string why_not = has_warpgroups ? why_no_warpgroups(given) : "";
  if (why_not.empty() && kind == Kind::kIm2col) why_not = set_turn(given);
  PlannedClocks clocks;
  if (why_not.empty()) {
    sm80::GeometryProblem geometry = geometry_problem(given, problem_, kind);
    if (problem_.turns_input) {
      leave_out_pixels(geometry);
      join_pixels(geometry);
      geometry.turns_input = true;
      geometry.reads_lines = has_input_lines(given);
      geometry.stores_lines = has_lines(problem_.output, 1 + kDims);
    }
    why_not = sm80::plan_geometry(geometry, problem_.geometry);
    if (why_not.empty()) clocks = sm80::planned_clocks(geometry, problem_.geometry);
    problem_.turns_input = problem_.turns_input && !problem_.geometry.im2col_lines;
  }
  if (!why_not.empty()) return why_not;
  is_compiled_ =
      given.compile != Compile::kNever && problem_.program.late_numbers.empty() && why_no_compiler().empty();
  predicted_ = predict(given, clocks);
  return "";
}

std::string Sm80Engine::finish(const ConvPlanProblem& given, bool compiles) {
  const bool has_warpgroups = problem_.geometry.has_warpgroups;
  problem_.compiled_for = compiles || has_warpgroups ? given.card.major * 10 + given.card.minor : 0;
  conv_ = std::make_unique<const sm80::ImplicitConv>(problem_);
  if (has_warpgroups && !conv_->why_interpreted().empty()) return conv_->why_interpreted();
  name_ = conv_->kernel();
  if (division_ != Division::kNone) {
    if (given.output_dtype != DType::kFloat32) intermediate_bytes_ = aligned(stored_bytes(given));
    const EpilogueProblem behind = pass_behind(given, given.output_strides);
    const Pass whole = make_pass(behind);
    const bool has_norm = whole.program.has_group_norm;
    if (division_ == Division::kAtNorm) {
      norm_ = whole.norm;
      tables_bytes_ = static_cast<std::size_t>(3 * norm_.samples * norm_.channels) * sizeof(float);
      pass_ = std::make_unique<const CudaPass>(make_pass_behind_statistics(behind));
      name_ += concat("_with_statistics, elementwise_cuda_", pass_->kernel());
    } else {
      pass_ = std::make_unique<const CudaPass>(whole);
      name_ += concat(has_norm ? ", group_norm_cuda_" : ", elementwise_cuda_", pass_->kernel());
    }
  }
  // Packed weights are of the boxes, too, and so of the input's extents.
  const sm80::Geometry& g = problem_.geometry;
  const char* const order = g.im2col_lines ? "lines/" : g.is_im2col && g.filters_are_rows ? "rows/" : "";
  format_ = concat(g.is_im2col ? "im2col/" : "sm80/", order, name_of(given.math), "/", g.groups,
                   g.transposed ? "/transposed" : "");
  for (int d = 0; d < kDims; ++d) {
    format_ += concat("/", g.transposed ? g.stride[d] : 1, ",", g.padding[d], ",", g.dilation[d], ",",
                      g.box[d], g.joined[d] ? concat("+", g.box_low[d]) : "");
  }
  format_ += concat("/", g.block_pieces.divisor, ",", g.pixel_bytes, ",", g.tile_filters);
  return "";
}

void Sm80Engine::pack(const WeightSource& weight, void* packed, int device, void* stream) const {
  const sm80::Geometry& g = problem_.geometry;
  sm80::WeightLayout layout{weight.dtype, {}, 0};
  spread(weight.strides, 0, layout.strides);
  // (K, C / groups, …), or (C, K / groups, …).
  layout.group_stride = layout.strides[0] * (g.transposed ? g.channels : g.filters);
  if (g.transposed) std::swap(layout.strides[0], layout.strides[1]);
  sm80::pack_weights(g, problem_.math, weight.data, layout, packed, device, stream);
}

void Sm80Engine::run(const PassPointers& given, const void* weights, int device, void* stream) const {
  PassPointers pointers = given;
  auto* const workspace = static_cast<std::uint8_t*>(given.workspace);
  std::uint8_t* const behind_conv = workspace + conv_->workspace_bytes();
  if (intermediate_bytes_ > 0) pointers.output = behind_conv;
  conv_->launch(pointers, weights, device, stream);
  if (pass_ == nullptr) return;
  pointers.input = pointers.output;
  pointers.output = given.output;
  pointers.workspace = behind_conv + intermediate_bytes_;
  if (division_ == Division::kAtNorm) {
    const sm80::StoredStatistics found = conv_->statistics(workspace);
    finish_statistics(norm_, {found.means, found.squares, found.counts, found.rows},
                      static_cast<float*>(pointers.workspace), pointers, stream);
  }
  pass_->launch(pointers, device, stream);
}

}  // namespace

namespace {

std::unique_ptr<ConvEngine> plan_engine(const ConvPlanProblem& problem, Kind kind, std::string& why_not) {
  if (problem.conv.transposed() && problem.padding_mode != PaddingMode::kZeros) {
    why_not = "the padding of a transposed convolution crops its output: there is nothing around the input";
    return nullptr;
  }
  auto engine = std::make_unique<Sm80Engine>();
  why_not = engine->plan(problem, kind);
  if (!why_not.empty()) return nullptr;
  return engine;
}

}  // namespace

std::unique_ptr<ConvEngine> plan_sm80_engine(const ConvPlanProblem& problem, std::string& why_not) {
  return plan_engine(problem, Kind::kPortable, why_not);
}

std::unique_ptr<ConvEngine> plan_sm90_compiled_engine(const ConvPlanProblem& problem, std::string& why_not) {
  return plan_engine(problem, Kind::kWarpgroups, why_not);
}

std::unique_ptr<ConvEngine> plan_sm90_im2col_engine(const ConvPlanProblem& problem, std::string& why_not) {
  return plan_engine(problem, Kind::kIm2col, why_not);
}

}  // namespace epiconv
