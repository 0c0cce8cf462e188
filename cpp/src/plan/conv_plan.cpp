#include "epiconv/conv_plan.h"

#include <algorithm>
#include <utility>

#include "epiconv/compiler.h"
#include "epiconv/device.h"
#include "epiconv/error.h"
#include "plan/conv_engine.h"
#include "plan/cost_model.h"

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

constexpr const char* kFallback = "cudnn+epilogue";

using PlanEngine = std::unique_ptr<ConvEngine>(const ConvPlanProblem&, std::string&);

struct Family {
  ConvFamily family;
  const char* name;   // as EPICONV_KERNELS has it
  const char* words;  // in a sentence
  PlanEngine* plan;
  bool is_compiled;  // for the plan, or not at all
};
constexpr Family kFamilies[] = {
    {ConvFamily::kSm90, "sm90", "kernels of sm_90a", &plan_sm90_engine, false},
    {ConvFamily::kSm90Im2col, "sm90_im2col", "im2col kernels of sm_90a", &plan_sm90_im2col_engine, true},
    {ConvFamily::kSm90Compiled, "sm90_compiled", "compiled kernels of sm_90a", &plan_sm90_compiled_engine,
     true},
    {ConvFamily::kSm80, "sm80", "kernels of sm_80", &plan_sm80_engine, false},
};

// One that takes the problem, or why it does not.
struct Planned {
  const Family* family;
  std::unique_ptr<ConvEngine> engine;
  std::string why_not;

  double us() const { return engine == nullptr ? 0 : engine->predicted().us; }
};

Planned plan_family(const Family& family, const ConvPlanProblem& problem) {
  Planned planned{&family, nullptr, ""};
  if (problem.is_batch_invariant && family.family == ConvFamily::kSm90) {
    planned.why_not = "they choose tiles by the batch, and the result is to be the same for every batch";
  } else {
    planned.engine = family.plan(problem, planned.why_not);
  }
  return planned;
}

// What is compiled for its plan needs a compiler, and time.
std::string why_not_compiled(const ConvPlanProblem& problem) {
  return problem.compile == Compile::kNever ? "nothing is to be compiled" : why_no_compiler();
}

// Of the family that is asked for, or of all: those that take the problem, in the order of their predictions,
// and before them those that do not.
std::vector<Planned> plan_families(const ConvPlanProblem& problem) {
  std::vector<Planned> all;
  for (const Family& family : kFamilies) {
    if (problem.family != ConvFamily::kAny && problem.family != family.family) continue;
    std::string why_not = family.is_compiled ? why_not_compiled(problem) : "";
    all.push_back(why_not.empty() ? plan_family(family, problem)
                                  : Planned{&family, nullptr, std::move(why_not)});
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Planned& a, const Planned& b) { return a.us() < b.us(); });
  return all;
}

// "cudnn+epilogue 20.1 us, sm90 31.0 us; not sm80: …": what was predicted of those that run, and why others
// do not.
std::string comparison_text(const std::vector<Planned>& all, double fallback_us) {
  std::string times, refusals;
  bool has_fallback = false;
  const auto add = [&](const char* name, double us) {
    times.append(times.empty() ? "" : ", ").append(name).append(" ").append(us_text(us));
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].engine == nullptr) {
      const bool goes_on = i > 0 && all[i - 1].why_not == all[i].why_not;
      const bool ends = i + 1 == all.size() || all[i + 1].why_not != all[i].why_not;
      refusals.append(goes_on ? ", " : "; not ").append(all[i].family->name);
      if (ends) refusals.append(": ").append(all[i].why_not);
      continue;
    }
    if (!has_fallback && fallback_us < all[i].us()) {
      add(kFallback, fallback_us);
      has_fallback = true;
    }
    add(all[i].family->name, all[i].us());
  }
  if (!has_fallback) add(kFallback, fallback_us);
  return times + refusals;
}

// The family that runs, why, and why it had better not.
struct Chosen {
  std::unique_ptr<const ConvEngine> engine;
  std::string why, why_slower;
};

// Of those that take the problem the one that is predicted to be the fastest. Where torch's convolution with
// a pass behind it is faster than that, nothing is compiled for it unless that is asked for.
Chosen choose(const ConvPlanProblem& problem, std::string& why_not) {
  std::vector<Planned> all = plan_families(problem);
  const double fallback_us = predict_fallback(problem).us;
  const std::string comparison = comparison_text(all, fallback_us);
  why_not = "";
  for (Planned& planned : all) {
    if (planned.engine != nullptr) {
      std::string why_slower;
      if (problem.math == ConvMath::kIeee) {
        why_slower = "too little is known of products of float32 to take a kernel of ours";
      } else if (planned.us() > fallback_us) {
        why_slower =
            concat("torch's convolution with a pass behind it is predicted to be faster: ", comparison);
      }
      const bool compiles = problem.compile == Compile::kAlways ||
                            (problem.compile == Compile::kIfFaster && why_slower.empty());
      if (planned.family->is_compiled && !compiles) continue;
      planned.why_not = planned.engine->finish(problem, compiles);
      if (planned.why_not.empty()) {
        std::string why = problem.family == ConvFamily::kAny
                              ? concat("predicted to be the fastest: ", comparison)
                              : concat(planned.family->words, " are asked for");
        return {std::move(planned.engine), std::move(why), std::move(why_slower)};
      }
    }
    const std::string name = problem.family == ConvFamily::kAny ? concat(planned.family->name, ": ") : "";
    why_not += concat(why_not.empty() ? "" : "; ", name, planned.why_not);
  }
  return {};
}

}  // namespace

struct ConvPlan::State {
  std::unique_ptr<const ConvEngine> engine;  // nullptr where the output has no elements
  std::string kernel, why_kernel, why_slower, weight_format;
  PredictedTime predicted;
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
  state->predicted = chosen.engine->predicted();
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
const PredictedTime& ConvPlan::predicted() const { return state_->predicted; }
const std::string& ConvPlan::weight_format() const { return state_->weight_format; }
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

std::vector<PredictedWay> predict_ways(const ConvPlanProblem& problem) {
  check(problem);
  std::vector<PredictedWay> ways;
  if (is_empty(problem.conv)) return ways;
  const std::string why_not_math = why_not_this_math(problem);
  for (const Family& family : kFamilies) {
    const Planned planned =
        why_not_math.empty() ? plan_family(family, problem) : Planned{&family, nullptr, why_not_math};
    ways.push_back({family.name, planned.why_not,
                    planned.engine == nullptr ? PredictedTime{} : planned.engine->predicted()});
  }
  ways.push_back({kFallback, "", predict_fallback(problem)});
  return ways;
}

std::string why_no_conv_kernels(const ComputeCapability& card) {
  return why_not_on_card(card.major, card.minor);
}

}  // namespace epiconv
