// The sm_90a convolutions as an engine: what they take, and which tiles they take it with.
#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "elementwise/epilogue_pass.h"
#include "epiconv/error.h"
#include "plan/conv_engine.h"
#include "plan/cost_model.h"
#include "plan/operand_strides.h"
#include "plan/pass_plan.h"
#include "sm90/halo_conv.h"

namespace epiconv {
namespace {

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

bool all_are(const Extents& values, std::int64_t wanted) {
  return std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value == wanted; });
}

// What no kernel computes.
std::string why_not_this_convolution(const ConvPlanProblem& problem) {
  const ConvProblem& conv = problem.conv;
  if (conv.spatial_rank() > 2) {
    return concat("the kernel convolves over one or two dimensions, and this convolution has ",
                  conv.spatial_rank());
  }
  if (conv.transposed()) {
    const auto most = *std::max_element(conv.stride().begin(), conv.stride().end());
    if (most > sm90::kMaxPhases) {
      return concat("the kernel has transposed convolutions up to stride ", sm90::kMaxPhases, ", not ", most);
    }
    if (!all_are(conv.dilation(), 1)) return "the kernel has no transposed convolutions with dilation";
    if (problem.padding_mode != PaddingMode::kZeros) {
      return "the padding of a transposed convolution crops its output: there is nothing around the input";
    }
  } else if (!all_are(conv.stride(), 1)) {
    return "the kernel has stride 1 only";
  }
  if (conv.groups() != 1) return concat("the kernel has one group only, and there are ", conv.groups());
  if (problem.math == ConvMath::kIeee) return "the kernel has no products of float32";
  return "";
}

// ---- One dimension is two, of which the first has one pixel.

void insert_height(Extents& extents, std::int64_t value) { extents.insert(extents.begin() + 2, value); }

// Strides (N, K, P, Q) or of a weight; nothing moves along a height of 1, and no word is as long as an image.
Extents planar_strides(Extents strides) {
  if (strides.size() == 3) insert_height(strides, strides[0]);
  return strides;
}

ConvProblem planar_conv(const ConvProblem& conv) {
  if (conv.spatial_rank() != 1) return conv;
  ConvArguments planar;
  planar.input = conv.input();
  planar.weight = conv.weight();
  insert_height(planar.input, 1);
  insert_height(planar.weight, 1);
  if (conv.has_bias()) planar.bias = Extents{conv.K()};
  planar.stride = {1, conv.stride()[0]};
  planar.padding_begin = {0, conv.padding_begin()[0]};
  planar.padding_end = {0, conv.padding_end()[0]};
  planar.dilation = {1, conv.dilation()[0]};
  planar.groups = conv.groups();
  planar.transposed = conv.transposed();
  planar.output_padding = {0, conv.output_padding()[0]};
  return ConvProblem(planar);
}

// Layouts and extents of two dimensions; the operands are the one-dimensional problem's.
ConvPlanProblem planar_problem(const ConvPlanProblem& problem) {
  ConvPlanProblem planar = problem;
  planar.conv = planar_conv(problem.conv);
  planar.input_strides = planar_strides(problem.input_strides);
  planar.output_strides = planar_strides(problem.output_strides);
  return planar;
}

// Index arithmetic beside the tensor cores is of 32 bits.
std::string why_not_of_32_bits(const ConvPlanProblem& problem, const std::vector<PlacedOperand>& operands) {
  const auto fits = [](const Extents& values, std::int64_t most) {
    return std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value <= most; });
  };
  const ConvProblem& conv = problem.conv;
  const std::int64_t reach = (conv.input()[3] - 1) * problem.input_strides[3];
  bool all = fits(conv.input(), kMaxInt / 512) && fits(conv.weight(), kMaxInt / 512) &&
             fits(conv.output(), kMaxInt / 512) && fits(conv.dilation(), kMaxInt / 512) &&
             fits(conv.padding_begin(), kMaxInt / 512) && fits(problem.output_strides, kMaxInt) &&
             reach <= kMaxInt;
  for (const PlacedOperand& operand : operands) all = all && fits(operand.strides, kMaxInt);
  return all ? "" : "an extent or a stride is too large for the kernel's 32-bit index arithmetic";
}

// Whether the copy engine can load the input if it lies side by side along dimension `inner`.
bool copies_along(int inner, const ConvPlanProblem& problem) {
  const int size = dtype_size(problem.input_dtype);
  if (problem.padding_mode != PaddingMode::kZeros || problem.input_alignment % 16 != 0) return false;
  for (int d = 0; d < 4; ++d) {
    const std::int64_t stride = problem.input_strides[d];
    if (problem.conv.input()[d] == 1) continue;
    if (d == inner ? stride != 1 : stride <= 0 || stride * size % 16 != 0) return false;
  }
  return true;
}

sm90::InputLoad input_load(const ConvPlanProblem& problem) {
  const bool converts = problem.input_dtype == DType::kFloat32 && problem.math != ConvMath::kTf32;
  if (!converts && copies_along(1, problem)) return sm90::InputLoad::kBoxes;
  return copies_along(3, problem) ? sm90::InputLoad::kRows : sm90::InputLoad::kGather;
}

sm90::TensorLayout tensor_layout(DType dtype, const Extents& strides) {
  sm90::TensorLayout layout{dtype, {}};
  std::copy(strides.begin(), strides.end(), layout.strides);
  return layout;
}

sm90::HaloProblem halo_problem(const ConvPlanProblem& problem, DType stored, sm90::InputLoad load,
                               bool by_image) {
  const ConvProblem& conv = problem.conv;
  const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
  return {narrow(conv.N()),
          narrow(conv.C()),
          narrow(conv.input()[2]),
          narrow(conv.input()[3]),
          narrow(conv.K()),
          narrow(conv.weight()[2]),
          narrow(conv.weight()[3]),
          narrow(conv.dilation()[0]),
          narrow(conv.dilation()[1]),
          narrow(conv.padding_begin()[0]),
          narrow(conv.padding_begin()[1]),
          narrow(conv.output()[2]),
          narrow(conv.output()[3]),
          problem.math == ConvMath::kTf32 ? 4 : 2,
          dtype_size(problem.input_dtype),
          load,
          sm90::stores_filters(tensor_layout(stored, problem.output_strides), narrow(conv.K())),
          dtype_size(stored),
          conv.transposed(),
          conv.transposed() ? narrow(conv.stride()[0]) : 1,
          conv.transposed() ? narrow(conv.stride()[1]) : 1,
          by_image};
}

// The plan whose kernel stores elements of type `stored`, and how it loads.
struct PlannedHalo {
  sm90::InputLoad load;
  sm90::HaloPlan plan;
};
PlannedHalo plan_halo(const ConvPlanProblem& problem, DType stored, bool by_image) {
  const sm90::InputLoad load = input_load(problem);
  PlannedHalo planned{load, sm90::plan_halo(halo_problem(problem, stored, load, by_image))};
  if (load == sm90::InputLoad::kRows && !planned.plan.why_not.empty()) {  // no room for raw stages
    const sm90::InputLoad gather = sm90::InputLoad::kGather;
    planned = {gather, sm90::plan_halo(halo_problem(problem, stored, gather, by_image))};
  }
  return planned;
}

// Whether offsets from the begin of a tile's first image to the end of its last fit 32 bits.
bool offsets_fit(const sm90::HaloGeometry& g, const Extents& strides) {
  const std::int64_t image_positions = std::int64_t{g.image_rows.divisor} * g.pitch.divisor;
  const std::int64_t images = sm90::kTilePixels / image_positions + 1;  // behind the first
  return images * strides[0] + g.out_height * strides[2] + g.out_width * strides[3] <= kMaxInt;
}

// The order of taps follows from the phases, and those from the stride and from what it leaves of the
// padding.
std::string transposed_format(const ConvProblem& conv) {
  const auto dimension = [&](int d) {
    return concat(conv.stride()[d], "+", conv.padding_begin()[d] % conv.stride()[d]);
  };
  return concat("/transposed/", dimension(0), "/", dimension(1));
}

// How a GroupNorm is computed. `restarts`: what follows it reads nothing older than what is stored or held.
sm90::NormPlan norm_plan(const sm90::HaloPlan& plan, bool restarts) {
  const sm90::HaloGeometry& g = plan.geometry;
  // Where weights are streamed, the warp that would merge statistics is busy with that.
  if (!g.weights_stay) return sm90::NormPlan::kOfStored;
  if (restarts && sm90::Visits::can_hold(g, sm90::kMultiprocessors)) return sm90::NormPlan::kHold;
  // Computing everything twice may take less time than storing it in float32 and reading that again.
  const double elements = 1.0 * g.batch * g.filters * g.out_height * g.out_width;
  const double clocks = elements * 2 * sizeof(float) / sm90::kStoreBytesPerClock;
  return plan.statistics_clocks < clocks ? sm90::NormPlan::kRecompute : sm90::NormPlan::kOfStored;
}

class Sm90Engine final : public ConvEngine {
 public:
  const std::string& kernel() const override { return kernel_name; }
  // Nothing is compiled for it.
  std::string finish(const ConvPlanProblem&, bool) override { return ""; }
  const PredictedTime& predicted() const override { return prediction; }
  std::size_t workspace_bytes() const override { return conv->workspace_bytes() + intermediate_bytes; }
  const std::string& weight_format() const override { return format; }
  std::size_t packed_bytes() const override {
    const sm90::HaloGeometry& g = problem.geometry;
    return static_cast<std::size_t>(g.filter_groups() * packed_group_bytes(g));
  }
  void pack(const WeightSource& weight, void* packed, int device, void* stream) const override;
  void run(const PassPointers& pointers, const void* weights, int device, void* stream) const override;

  sm90::HaloConvProblem problem;
  std::unique_ptr<const sm90::HaloConv> conv;
  std::unique_ptr<const CudaPass> normalise;  // of what `conv` has stored, or nullptr
  std::size_t intermediate_bytes = 0;         // of that, where it is not the output
  PredictedTime prediction;
  std::string kernel_name;
  std::string format;
};

void Sm90Engine::pack(const WeightSource& weight, void* packed, int device, void* stream) const {
  Extents strides = planar_strides(weight.strides);
  if (problem.transposed) std::swap(strides[0], strides[1]);
  sm90::pack_weights(problem.geometry, problem.math, weight.data, tensor_layout(weight.dtype, strides),
                     packed, device, stream);
}

void Sm90Engine::run(const PassPointers& pointers, const void* weights, int device, void* stream) const {
  PassPointers addresses = pointers;
  if (intermediate_bytes > 0) {
    addresses.output = static_cast<std::uint8_t*>(pointers.workspace) + conv->workspace_bytes();
  }
  conv->launch(addresses, weights, device, stream);
  if (normalise == nullptr) return;
  addresses.input = addresses.output;
  addresses.output = pointers.output;
  sm90::set_norm_tables(problem.geometry, pointers.workspace, addresses);
  normalise->launch(addresses, device, stream);
}

PredictedTime predict(const ConvPlanProblem& problem, const sm90::HaloConvProblem& conv,
                      const sm90::HaloPlan& plan, double interpreter_clocks) {
  KernelDemand demand{KernelKind::kHalo, plan.clocks};
  // Of a norm in the kernel: its statistics, and waiting for those of an image.
  constexpr double kOfNorm = 0.54;
  demand.program_clocks = interpreter_clocks + (in_one_kernel(conv.norm_plan) ? kOfNorm : 0.0);
  if (conv.norm_plan == sm90::NormPlan::kOfStored) {
    demand.stored_bytes = sizeof(float);
    demand.pass_bytes = static_cast<int>(sizeof(float)) + dtype_size(problem.output_dtype);
  } else if (conv.norm_plan == sm90::NormPlan::kRecompute) {
    demand.clocks.all += plan.statistics_clocks / kH200.multiprocessors;
  }
  return predict_kernel(problem, demand);
}

std::string why_not_on(const ComputeCapability& card) {
  constexpr std::string_view kArchitectures = EPICONV_CUDA_ARCHITECTURES_STRING;
  if (kArchitectures.find("sm_90a") == std::string_view::npos) {
    return concat(
        "this build of epiconv is for ", kArchitectures,
        ", and the kernel needs sm_90a: build with EPICONV_CUDA_ARCHITECTURES=90a-real among others");
  }
  if (card.major == 9 && card.minor == 0) return "";
  return concat("the card has compute capability ", card.major, ".", card.minor,
                ", and the kernel is for 9.0");
}

}  // namespace

std::unique_ptr<ConvEngine> plan_sm90_engine(const ConvPlanProblem& given, std::string& why_not) {
  why_not = why_not_on(given.card);
  if (why_not.empty()) why_not = why_not_this_convolution(given);
  if (!why_not.empty()) return nullptr;
  std::vector<PlacedOperand> operands =
      place_operands(given.program, given.conv.output(), given.bias, given.operands);
  for (PlacedOperand& operand : operands) operand.strides = planar_strides(operand.strides);
  const ConvPlanProblem problem = planar_problem(given);
  why_not = why_not_of_32_bits(problem, operands);
  if (computes_in_double(problem.program, problem.input_dtype, problem.output_dtype, problem.operands)) {
    why_not = "the kernel computes its epilogue in float32, and this one is in float64";
  }
  if (!why_not.empty()) return nullptr;

  auto engine = std::make_unique<Sm90Engine>();
  LoweringOptions options;
  options.has_bias = problem.bias.has_value();
  options.divide_by_reciprocal = true;
  for (const OperandLayout& operand : problem.operands) {
    options.operand_is_number.push_back(operand.is_number);
  }
  sm90::HaloConvProblem& conv = engine->problem;
  conv.program = lower(problem.program, options);
  DType stored = problem.output_dtype;
  const bool has_norm = conv.program.has_group_norm;
  PlannedHalo planned = plan_halo(problem, stored, has_norm);
  why_not = planned.plan.why_not;
  if (!why_not.empty()) return nullptr;
  if (has_norm) {
    conv.norm = make_pass(pass_behind(given, given.output_strides)).norm;  // whose shapes that checks
    const bool restarts = conv.program.restarts_at_norm();
    conv.norm_plan = norm_plan(planned.plan, restarts);
    if (conv.norm_plan == sm90::NormPlan::kOfStored) {
      if (!restarts) {
        why_not =
            "what follows the GroupNorm reads a value from before it, and computing that anew takes longer "
            "than a pass behind another convolution";
        return nullptr;
      }
      conv.program = conv.program.before_norm();
      stored = DType::kFloat32;
      planned = plan_halo(problem, stored, true);
      why_not = planned.plan.why_not;
      if (!why_not.empty()) return nullptr;
    }
  }
  conv.load = planned.load;
  const sm90::HaloGeometry& g = conv.geometry = planned.plan.geometry;
  if (!offsets_fit(g, problem.output_strides)) {
    why_not = "an image of the output is too large for the kernel's 32-bit index arithmetic";
    return nullptr;
  }
  conv.transposed = problem.conv.transposed();
  conv.math = problem.math;
  conv.padding_mode = problem.padding_mode;
  conv.input = tensor_layout(problem.input_dtype, problem.input_strides);
  conv.output = tensor_layout(stored, problem.output_strides);
  for (const PlacedOperand& operand : operands) {
    if (!conv.program.reads(operand.place)) continue;
    conv.operands[operand.place] = tensor_layout(operand.dtype, operand.strides);
    conv.is_used[operand.place] = true;
  }
  if (in_one_kernel(conv.norm_plan)) {
    for (const int place : {kMeanOperand, kScaleOperand, kShiftOperand}) {
      conv.operands[place] = tensor_layout(DType::kFloat32, {problem.conv.K(), 1, 0, 0});
      conv.is_used[place] = true;
    }
  }
  engine->format = concat(name_of(problem.math), "/", g.row_bytes, "/", g.group_r, "x", g.group_s);
  if (g.joint_rows > 1) engine->format += concat("/joint/", g.joint_rows);
  if (problem.conv.transposed()) engine->format += transposed_format(problem.conv);
  engine->conv = std::make_unique<const sm90::HaloConv>(conv);
  engine->kernel_name = engine->conv->kernel();
  if (conv.norm_plan == sm90::NormPlan::kHold) engine->kernel_name += "_holding";
  if (conv.norm_plan == sm90::NormPlan::kRecompute) engine->kernel_name += "_recomputing";
  if (conv.norm_plan == sm90::NormPlan::kOfStored) {
    engine->normalise = std::make_unique<const CudaPass>(
        make_pass_behind_statistics(pass_behind(given, given.output_strides)));
    // It lies in the output, if that keeps all of it.
    if (given.output_dtype != DType::kFloat32) engine->intermediate_bytes = stored_bytes(given);
    engine->kernel_name += concat("_with_statistics, elementwise_cuda_", engine->normalise->kernel());
  }
  engine->prediction =
      predict(given, conv, planned.plan, engine->conv->interpreter_clocks(special_functions(given.program)));
  return engine;
}

}  // namespace epiconv
