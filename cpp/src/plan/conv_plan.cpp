#include "epiconv/conv_plan.h"

#include <algorithm>
#include <utility>

#include "epiconv/device.h"
#include "epiconv/error.h"
#include "plan/conv_engine.h"

namespace epiconv {
namespace {

void check(const ConvPlanProblem& problem) {
  const std::size_t rank = problem.conv.input().size();
  require(problem.input_strides.size() == rank && problem.output_strides.size() == rank,
          "input and output have ", rank, " dimensions and need one stride for each");
  require(is_floating(problem.input_dtype) && is_floating(problem.output_dtype),
          "a convolution takes floating tensors, not ", dtype_name(problem.input_dtype), " and ",
          dtype_name(problem.output_dtype));
}

std::string why_not_this_math(const ConvPlanProblem& problem) {
  const DType input = problem.input_dtype;
  const bool is_narrow = problem.math == ConvMath::kBf16 || problem.math == ConvMath::kFp16;
  const DType own = problem.math == ConvMath::kBf16 ? DType::kBFloat16 : DType::kFloat16;
  if (input == DType::kFloat32 || (is_narrow && input == own)) return "";
  return concat("the kernels multiply no ", dtype_name(input), " in ", name_of(problem.math));
}

bool is_empty(const ConvProblem& conv) {
  const Extents& output = conv.output();
  return std::find(output.begin(), output.end(), 0) != output.end();
}

// The family that runs, why, and why it had better not.
struct Chosen {
  std::unique_ptr<const ConvEngine> engine;
  std::string why, why_slower;
};

// On a card of compute capability 9.0 the kernels made for it are faster wherever they take a problem, with
// the exceptions that `why_slower` knows.
Chosen choose(const ConvPlanProblem& problem, std::string& why_not) {
  const auto chosen = [](std::unique_ptr<const ConvEngine> engine, std::string why,
                         const std::string& before) {
    std::string why_slower = engine == nullptr ? "" : engine->why_slower();
    if (!why_slower.empty()) why_slower = before + why_slower;
    return Chosen{std::move(engine), std::move(why), std::move(why_slower)};
  };
  if (problem.family == ConvFamily::kSm80) {
    return chosen(make_sm80_engine(problem, why_not), "kernels of sm_80 are asked for", "");
  }
  if (problem.family == ConvFamily::kSm90Compiled) {
    return chosen(make_sm90_compiled_engine(problem, why_not), "compiled kernels of sm_90a are asked for",
                  "");
  }
  if (problem.family == ConvFamily::kSm90Im2col) {
    return chosen(make_sm90_im2col_engine(problem, why_not), "im2col kernels of sm_90a are asked for", "");
  }
  std::unique_ptr<const ConvEngine> sm90;
  if (problem.is_batch_invariant) {
    why_not = "they choose tiles by the batch, and the result is to be the same for every batch";
  } else {
    sm90 = make_sm90_engine(problem, why_not);
  }
  if (problem.family == ConvFamily::kSm90) {
    return chosen(std::move(sm90), "kernels of sm_90a are asked for", "");
  }
  if (sm90 != nullptr) {
    // Steps cost a compiled kernel nothing, and the interpreter of the others much.
    const std::string why_slow = problem.compile == Compile::kNever ? "" : sm90->why_slower();
    std::unique_ptr<const ConvEngine> sm80;
    if (!why_slow.empty()) {
      ConvPlanProblem if_faster = problem;
      if_faster.compile = Compile::kIfFaster;
      sm80 = make_sm80_engine(if_faster, why_not);
    }
    if (sm80 == nullptr || !sm80->why_slower().empty()) {
      return chosen(std::move(sm90), "made for this card, and takes the problem", "");
    }
    return chosen(std::move(sm80), "faster than those made for this card: " + why_slow, "");
  }
  const std::string not_sm90 = concat("not one of sm_90a: ", why_not);
  return chosen(make_sm80_engine(problem, why_not), concat("takes any convolution; ", not_sm90),
                concat(not_sm90, "; "));
}

}  // namespace

struct ConvPlan::State {
  std::unique_ptr<const ConvEngine> engine;  // nullptr where the output has no elements
  std::string kernel, why_kernel, why_slower, weight_format;
  std::size_t rank;  // of input and weight
  std::vector<bool> operand_is_number;
};

std::optional<ConvPlan> ConvPlan::make(const ConvPlanProblem& problem, std::string& why_not) {
  check(problem);
  why_not = why_no_conv_kernels(problem.card);
  if (why_not.empty()) why_not = why_not_this_math(problem);
  if (!why_not.empty()) return std::nullopt;
  auto state = std::make_unique<State>();
  state->rank = problem.conv.input().size();
  for (const OperandLayout& operand : problem.operands) state->operand_is_number.push_back(operand.is_number);
  if (is_empty(problem.conv)) {
    state->kernel = "none";
    state->why_kernel = "the output has no elements";
    return ConvPlan(std::move(state));
  }
  Chosen chosen = choose(problem, why_not);
  if (chosen.engine == nullptr) return std::nullopt;
  state->kernel = chosen.engine->kernel();
  state->why_kernel = std::move(chosen.why);
  if (problem.is_batch_invariant) {
    state->why_kernel += "; planned as for any batch, so that an image's bits do not depend on it";
  }
  if (const std::string why = chosen.engine->why_interpreted(); !why.empty()) {
    state->why_kernel += "; not compiled for the plan: " + why;
  }
  state->why_slower = std::move(chosen.why_slower);
  state->weight_format = chosen.engine->weight_format();
  state->engine = std::move(chosen.engine);
  return ConvPlan(std::move(state));
}

ConvPlan::ConvPlan(std::unique_ptr<const State> state) : state_(std::move(state)) {}
ConvPlan::~ConvPlan() = default;
ConvPlan::ConvPlan(ConvPlan&&) noexcept = default;
ConvPlan& ConvPlan::operator=(ConvPlan&&) noexcept = default;

const std::string& ConvPlan::kernel() const { return state_->kernel; }
const std::string& ConvPlan::why_kernel() const { return state_->why_kernel; }
const std::string& ConvPlan::why_slower() const { return state_->why_slower; }
const std::string& ConvPlan::weight_format() const { return state_->weight_format; }
double ConvPlan::predicted_us() const {
  return state_->engine == nullptr ? 0 : state_->engine->predicted_us();
}
std::size_t ConvPlan::workspace_bytes() const {
  return state_->engine == nullptr ? 0 : state_->engine->workspace_bytes();
}
std::size_t ConvPlan::packed_bytes() const {
  return state_->engine == nullptr ? 0 : state_->engine->packed_bytes();
}

void ConvPlan::pack(const WeightSource& weight, void* packed, int device, void* stream) const {
  require(weight.strides.size() == state_->rank, "a weight of ", weight.strides.size(),
          " dimensions; the plan's has ", state_->rank);
  if (state_->engine != nullptr) state_->engine->pack(weight, packed, device, stream);
}

void ConvPlan::run(const ConvPointers& pointers) const {
  const std::size_t num_operands = state_->operand_is_number.size();
  require(pointers.operands.size() == num_operands && pointers.numbers.size() == num_operands,
          "the plan takes ", num_operands, " operands, got ", pointers.operands.size());
  PassPointers addresses;
  addresses.input = pointers.input;
  addresses.output = pointers.output;
  for (std::size_t i = 0; i < num_operands; ++i) {
    require(!state_->operand_is_number[i] || pointers.operands[i] == nullptr, "operand b", i,
            " is a number, but an address was given");
    addresses.operands[i] = pointers.operands[i];
    addresses.numbers[i] = pointers.numbers[i];
  }
  if (state_->engine == nullptr) return;
  require(reinterpret_cast<std::uintptr_t>(pointers.weights) % 128 == 0,
          "packed weights lie at a multiple of 128 bytes");
  addresses.operands[kBiasOperand] = pointers.bias;
  addresses.workspace = pointers.workspace;
  require(workspace_bytes() == 0 || pointers.workspace != nullptr, "the plan takes a workspace of ",
          workspace_bytes(), " bytes");
  state_->engine->run(addresses, pointers.weights, pointers.device, pointers.stream);
}

std::string why_no_conv_kernels(const ComputeCapability& card) {
  return why_not_on_card(card.major, card.minor);
}

}  // namespace epiconv
