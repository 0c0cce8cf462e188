#include "epiconv/backward_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "backward/cuda_backward.h"
#include "cpu/epilogue_backward.h"
#include "epiconv/error.h"
#include "plan/backward_pass_plan.h"
#include "plan/norm_shape.h"
#include "plan/operand_strides.h"
#include "plan/walk.h"

namespace epiconv {
namespace {

using Extents = std::vector<std::int64_t>;

// A program's backward pass before shapes are known.
struct Differentiated {
  BackwardProgram program;
  BackwardProgram norm_program;   // without steps where no gradient reaches a GroupNorm
  Saved saved = Saved::kNothing;  // the least that suffices
};

Differentiated differentiate_both(const LoweredProgram& lowered, const GradientSet& wanted, Saved saved) {
  const auto wants = [&](int operand) { return operand >= 0 && wanted.operands[operand]; };
  Differentiated both;
  both.program = differentiate(lowered, wanted, saved);
  both.saved = both.program.saved;
  if (!lowered.has_group_norm) return both;
  const bool wants_affine = wants(lowered.weight_operand) || wants(lowered.shift_operand);
  if (!both.program.passes_norm && !wants_affine) return both;
  BackwardProgram sums = norm_sums(lowered, saved == Saved::kInput ? Saved::kInput : Saved::kNothing);
  if (!sums.gives.operands[kShiftOperand]) return both;
  both.saved = Saved::kInput;  // sums are of values
  both.norm_program = std::move(sums);
  for (const int operand : {lowered.weight_operand, lowered.shift_operand}) {
    if (wants(operand)) both.program.gives.operands[operand] = true;
  }
  return both;
}

LoweredProgram lower_for_backward(const Program& program, bool has_bias, std::vector<bool> is_number) {
  LoweringOptions options;
  options.has_bias = has_bias;
  options.operand_is_number = std::move(is_number);
  return lower(program, options);
}

GradientSet wanted_of(const BackwardProblem& problem) {
  GradientSet wanted;
  wanted.input = problem.input_gradient.has_value();
  wanted.operands[kBiasOperand] = problem.bias_gradient.has_value();
  for (std::size_t i = 0; i < problem.operand_gradients.size(); ++i)
    wanted.operands[i] = problem.operand_gradients[i].has_value();
  return wanted;
}

void check(const BackwardProblem& problem) {
  const Extents& extents = problem.extents;
  const std::size_t rank = extents.size();
  require(rank >= 2 && rank <= kMaxDims,
          "an epilogue runs over (N, K) and up to three spatial dimensions, not over ", shape_text(extents));
  for (const std::int64_t extent : extents) {
    require(extent >= 0 && extent <= std::numeric_limits<std::int32_t>::max(), "the shape ",
            shape_text(extents), " has an extent outside 0 … 2^31 - 1");
  }
  require(problem.gradient_strides.size() == rank, "the output's gradient has ", rank,
          " dimensions and needs one stride for each");
  require(problem.saved == Saved::kNothing || problem.saved_strides.size() == rank, "what is saved has ",
          rank, " dimensions and needs one stride for each");
  for (const DType dtype : {problem.input_dtype, problem.output_dtype, problem.gradient_dtype}) {
    require(is_floating(dtype), "a backward pass runs over floating tensors, not over ", dtype_name(dtype));
  }
  require(problem.operand_gradients.size() == problem.operands.size(), "there are ", problem.operands.size(),
          " operands, and ", problem.operand_gradients.size(), " places for their gradients");
  require(!problem.bias_gradient || problem.bias, "a gradient of the bias is wanted, and there is none");
}

void check_gives(const BackwardProblem& problem, const GradientSet& wanted, const Differentiated& both) {
  const GradientSet& gives = both.program.gives;
  require(!wanted.input || gives.input, "no gradient of '", problem.program.text(), "' reaches its input");
  for (int place = 0; place < kNumOperandPlaces; ++place) {
    require(!wanted.operands[place] || gives.operands[place], "no gradient of '", problem.program.text(),
            "' reaches ", place == kBiasOperand ? std::string("the bias") : concat("operand b", place));
  }
  require(both.saved == Saved::kNothing || problem.saved == Saved::kInput || problem.saved == both.saved,
          "the backward pass of '", problem.program.text(), "' needs more than is saved: save its ",
          both.saved == Saved::kOutput ? "output" : "input");
}

// Strides of an operand's gradient by the dimensions of the output, 0 where it is summed.
Extents gradient_strides(const BackwardProblem& problem, int place, const OperandLayout& operand,
                         const GradientLayout& gradient) {
  require(is_floating(gradient.dtype), "a gradient is floating, not ", dtype_name(gradient.dtype));
  require(gradient.strides.size() == operand.extents.size(), "the gradient of an operand of shape ",
          shape_text(operand.extents), " needs one stride for each dimension");
  const Extents& extents = problem.extents;
  Extents strides(extents.size(), 0);
  const bool is_channel = place == kBiasOperand || problem.program.operand_is_channel(place);
  for (std::size_t i = 0; i < operand.extents.size(); ++i) {
    const std::size_t d = is_channel ? 1 : extents.size() - operand.extents.size() + i;
    if (operand.extents[i] != 1) strides[d] = gradient.strides[i];
  }
  return strides;
}

Extents contiguous_strides(const Extents& extents) {
  Extents strides(extents.size(), 1);
  for (std::size_t d = extents.size(); d-- > 1;) strides[d - 1] = strides[d] * extents[d];
  return strides;
}

std::int64_t product(const Extents& extents) {
  return std::accumulate(extents.begin(), extents.end(), std::int64_t{1},
                         [](std::int64_t a, std::int64_t b) { return a * b; });
}

class Planning {
 public:
  explicit Planning(const BackwardProblem& problem) : problem_(problem) {}

  BackwardPass run() {
    check(problem_);
    std::vector<bool> is_number;
    for (const OperandLayout& operand : problem_.operands) is_number.push_back(operand.is_number);
    // First, since it checks how many operands there are.
    placed_ = place_operands(problem_.program, problem_.extents, problem_.bias, problem_.operands);
    lowered_ = lower_for_backward(problem_.program, problem_.bias.has_value(), is_number);
    const GradientSet wanted = wanted_of(problem_);
    check_gives(problem_, wanted, differentiate_both(lowered_, wanted, Saved::kNothing));
    Differentiated both = differentiate_both(lowered_, wanted, problem_.saved);
    pass_.program = std::move(both.program);
    pass_.norm_program = std::move(both.norm_program);
    pass_.double_precision =
        computes_in_double(problem_.program, problem_.input_dtype, problem_.output_dtype, problem_.operands);
    collect_tensors();
    const Extents& order =
        problem_.saved == Saved::kNothing ? problem_.gradient_strides : problem_.saved_strides;
    pass_.walk = make_walk(problem_.extents, memory_order(problem_.extents, order), tensors_);
    return std::move(pass_);
  }

 private:
  void collect_tensors() {
    if (problem_.saved != Saved::kNothing) {
      pass_.saved.dtype = problem_.saved == Saved::kInput ? problem_.input_dtype : problem_.output_dtype;
      tensors_.push_back({problem_.saved_strides, &pass_.saved});
    }
    pass_.output_gradient.dtype = problem_.gradient_dtype;
    tensors_.push_back({problem_.gradient_strides, &pass_.output_gradient});
    for (PlacedOperand& operand : placed_) {
      if (!reads(operand.place)) continue;
      pass_.operands[operand.place].dtype = operand.dtype;
      tensors_.push_back({std::move(operand.strides), &pass_.operands[operand.place]});
    }
    if (problem_.input_gradient) collect_input_gradient();
    for (std::size_t i = 0; i < problem_.operands.size(); ++i) {
      if (problem_.operand_gradients[i])
        collect_gradient(static_cast<int>(i), problem_.operands[i], *problem_.operand_gradients[i]);
    }
    if (problem_.bias_gradient) collect_gradient(kBiasOperand, *problem_.bias, *problem_.bias_gradient);
    if (uses_norm()) collect_norm();
  }

  void collect_input_gradient() {
    const GradientLayout& gradient = *problem_.input_gradient;
    require(is_floating(gradient.dtype), "a gradient is floating, not ", dtype_name(gradient.dtype));
    require(gradient.strides.size() == problem_.extents.size(),
            "the input's gradient needs one stride for each dimension");
    check_no_overlap("the input's gradient", problem_.extents, gradient.strides);
    pass_.input_gradient.dtype = gradient.dtype;
    tensors_.push_back({gradient.strides, &pass_.input_gradient});
  }

  void collect_gradient(int place, const OperandLayout& operand, const GradientLayout& gradient) {
    const Extents strides = gradient_strides(problem_, place, operand, gradient);
    GradientAccess& to = pass_.gradients[place];
    to.access.dtype = gradient.dtype;
    const bool is_affine = place == lowered_.weight_operand || place == lowered_.shift_operand;
    to.num_sums = product(operand.extents);
    to.is_summed = is_affine || to.num_sums != product(problem_.extents);
    if (to.is_summed) {
      const Extents dense = contiguous_strides(operand.extents);
      for (std::size_t d = 0; d < dense.size(); ++d) {
        require(operand.extents[d] == 1 || to.num_sums == 0 || gradient.strides[d] == dense[d],
                "a gradient that is summed is contiguous; that of an operand of shape ",
                shape_text(operand.extents), " has strides ", shape_text(gradient.strides));
      }
    } else {
      check_no_overlap("the operand's gradient", problem_.extents, strides);
    }
    tensors_.push_back({strides, &to.access});
  }

  bool reads(int place) const { return pass_.program.reads[place] || pass_.norm_program.reads[place]; }

  bool uses_norm() const {
    return !pass_.norm_program.steps.empty() || reads(kMeanOperand) || reads(kScaleOperand) ||
           reads(kShiftOperand);
  }

  void collect_norm() {
    const Extents& extents = problem_.extents;
    Extents strides(extents.size(), 0);
    strides[0] = extents[1];
    strides[1] = 1;
    for (const int place :
         {kMeanOperand, kScaleOperand, kShiftOperand, kNormOffsetOperand, kNormSlopeOperand}) {
      pass_.operands[place].dtype = pass_.double_precision ? DType::kFloat64 : DType::kFloat32;
      tensors_.push_back({strides, &pass_.operands[place]});
    }
    for (const int place : {kScaleOperand, kShiftOperand}) {
      pass_.gradients[place].is_summed = true;
      pass_.gradients[place].num_sums = extents[0] * extents[1];
      tensors_.push_back({strides, &pass_.gradients[place].access});
    }
    pass_.norm = norm_shape(lowered_, extents, problem_.operands);
  }

  const BackwardProblem& problem_;
  LoweredProgram lowered_;
  std::vector<PlacedOperand> placed_;
  BackwardPass pass_;
  std::vector<WalkedTensor> tensors_;  // with the places in pass_ where their strides go
};

}  // namespace

BackwardPass make_backward_pass(const BackwardProblem& problem) { return Planning(problem).run(); }

BackwardNeeds backward_needs(const Program& program, bool wants_input, bool wants_bias,
                             const std::vector<bool>& wants_operand, Saved saved) {
  const auto num_operands = static_cast<std::size_t>(program.num_operands());
  require(wants_operand.size() == num_operands, "the program '", program.text(), "' has ", num_operands,
          " operands; ", wants_operand.size(), " were said to be wanted or not");
  GradientSet wanted;
  wanted.input = wants_input;
  wanted.operands[kBiasOperand] = wants_bias;
  std::copy(wants_operand.begin(), wants_operand.end(), wanted.operands.begin());
  const LoweredProgram lowered = lower_for_backward(program, true, std::vector<bool>(num_operands, false));
  const Saved least = differentiate_both(lowered, wanted, Saved::kNothing).saved;
  const Differentiated both = differentiate_both(lowered, wanted, std::max(least, saved));
  const auto reads = [&](int place) {
    return place >= 0 && (both.program.reads[place] || both.norm_program.reads[place]);
  };
  BackwardNeeds needs;
  needs.saved = least;
  needs.reads_bias = reads(kBiasOperand);
  needs.gives_input = both.program.gives.input;
  needs.gives_bias = both.program.gives.operands[kBiasOperand];
  for (int i = 0; i < program.num_operands(); ++i) {
    const bool scales =
        i == lowered.weight_operand && (reads(kScaleOperand) || !both.norm_program.steps.empty());
    const bool shifts = i == lowered.shift_operand && reads(kShiftOperand);
    needs.reads_operand.push_back(reads(i) || scales || shifts);
    needs.gives_operand.push_back(both.program.gives.operands[static_cast<std::size_t>(i)]);
  }
  return needs;
}

struct BackwardPlan::State {
  BackwardPass pass;
  std::unique_ptr<const CudaBackward> cuda;  // nullptr on the CPU
  std::string kernel;
  std::string why_not_compiled;
  std::size_t workspace_bytes = 0;
  std::size_t num_operands = 0;

  explicit State(const BackwardProblem& problem)
      : pass(make_backward_pass(problem)), num_operands(problem.operands.size()) {
    if (!problem.on_cuda) {
      kernel = concat("backward_cpu_", pass.double_precision ? "f64" : "f32");
      return;
    }
    cuda = std::make_unique<const CudaBackward>(pass, problem.compiled_for);
    kernel = concat("backward_cuda_", cuda->kernel());
    why_not_compiled = cuda->why_not_compiled();
    workspace_bytes = cuda->workspace_bytes();
  }
};

BackwardPlan::BackwardPlan(const BackwardProblem& problem) : state_(std::make_unique<const State>(problem)) {}
BackwardPlan::~BackwardPlan() = default;
BackwardPlan::BackwardPlan(BackwardPlan&&) noexcept = default;
BackwardPlan& BackwardPlan::operator=(BackwardPlan&&) noexcept = default;

const std::string& BackwardPlan::kernel() const { return state_->kernel; }
const std::string& BackwardPlan::why_not_compiled() const { return state_->why_not_compiled; }
std::size_t BackwardPlan::workspace_bytes() const { return state_->workspace_bytes; }

void BackwardPlan::run(const BackwardPointers& pointers) const {
  const std::size_t num_operands = state_->num_operands;
  require(pointers.operands.size() == num_operands && pointers.numbers.size() == num_operands &&
              pointers.operand_gradients.size() == num_operands,
          "the plan takes ", num_operands, " operands, got ", pointers.operands.size());
  BackwardAddresses addresses;
  addresses.saved = pointers.saved;
  addresses.output_gradient = pointers.output_gradient;
  addresses.mean = pointers.mean;
  addresses.rstd = pointers.rstd;
  addresses.input_gradient = pointers.input_gradient;
  for (std::size_t i = 0; i < num_operands; ++i) {
    addresses.operands[i] = pointers.operands[i];
    addresses.numbers[i] = pointers.numbers[i];
    addresses.gradients[i] = pointers.operand_gradients[i];
  }
  addresses.operands[kBiasOperand] = pointers.bias;
  addresses.gradients[kBiasOperand] = pointers.bias_gradient;
  if (state_->cuda != nullptr) {
    state_->cuda->launch(addresses, pointers.workspace, pointers.device, pointers.stream);
  } else {
    run_backward_pass_cpu(state_->pass, addresses, pointers.threads);
  }
}

}  // namespace epiconv
