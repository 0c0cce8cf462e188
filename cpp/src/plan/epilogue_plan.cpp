#include "epiconv/epilogue_plan.h"

#include <limits>
#include <numeric>
#include <utility>

#include "cpu/epilogue_pass.h"
#include "elementwise/epilogue_pass.h"
#include "epiconv/error.h"
#include "plan/norm_shape.h"
#include "plan/operand_strides.h"
#include "plan/pass_plan.h"
#include "plan/walk.h"

namespace epiconv {
namespace {

using Extents = std::vector<std::int64_t>;

// Every tensor of a pass.
std::vector<WalkedTensor> collect_tensors(const EpilogueProblem& problem, Pass& pass) {
  const Extents& extents = problem.extents;
  std::vector<WalkedTensor> tensors{{problem.input_strides, &pass.input},
                                    {problem.output_strides, &pass.output}};
  for (PlacedOperand& operand : place_operands(problem.program, extents, problem.bias, problem.operands)) {
    pass.operands[operand.place].dtype = operand.dtype;
    tensors.push_back({std::move(operand.strides), &pass.operands[operand.place]});
  }
  if (pass.program.has_group_norm) {
    Extents strides(extents.size(), 0);
    strides[0] = extents[1];
    strides[1] = 1;
    for (const int place : {kMeanOperand, kScaleOperand, kShiftOperand}) {
      pass.operands[place].dtype = pass.double_precision ? DType::kFloat64 : DType::kFloat32;
      tensors.push_back({strides, &pass.operands[place]});
    }
  }
  return tensors;
}

std::int64_t traffic(const EpilogueProblem& problem, bool has_group_norm) {
  const auto product = [](const Extents& extents) {
    return std::accumulate(extents.begin(), extents.end(), std::int64_t{1},
                           [](std::int64_t a, std::int64_t b) { return a * b; });
  };
  std::int64_t read = product(problem.extents) * dtype_size(problem.input_dtype);
  for (const OperandLayout& operand : problem.operands) {
    if (!operand.is_number) read += product(operand.extents) * dtype_size(operand.dtype);
  }
  if (problem.bias) read += product(problem.bias->extents) * dtype_size(problem.bias->dtype);
  return read * (has_group_norm ? 2 : 1) + product(problem.extents) * dtype_size(problem.output_dtype);
}

void check(const EpilogueProblem& problem) {
  const std::size_t rank = problem.extents.size();
  require(rank >= 2 && rank <= kMaxDims,
          "an epilogue runs over (N, K) and up to three spatial dimensions, not over ",
          shape_text(problem.extents));
  for (const std::int64_t extent : problem.extents) {
    require(extent >= 0 && extent <= std::numeric_limits<std::int32_t>::max(), "the shape ",
            shape_text(problem.extents), " has an extent outside 0 … 2^31 - 1");
  }
  require(problem.input_strides.size() == rank && problem.output_strides.size() == rank, "the output has ",
          rank, " dimensions; input and output need one stride for each");
  for (const DType dtype : {problem.input_dtype, problem.output_dtype}) {
    require(is_floating(dtype), "an epilogue runs over floating tensors, not over ", dtype_name(dtype));
  }
}

// With `is_behind`, of what comes behind the statistics.
Pass make_pass(const EpilogueProblem& problem, bool is_behind) {
  check(problem);
  check_no_overlap("the output", problem.extents, problem.output_strides);
  Pass pass;
  pass.double_precision =
      computes_in_double(problem.program, problem.input_dtype, problem.output_dtype, problem.operands);
  LoweringOptions options;
  options.has_bias = problem.bias.has_value();
  options.divide_by_reciprocal = problem.on_cuda;
  options.double_precision = pass.double_precision;
  for (const OperandLayout& operand : problem.operands)
    options.operand_is_number.push_back(operand.is_number);
  pass.program = lower(problem.program, options);
  pass.input.dtype = problem.input_dtype;
  pass.output.dtype = problem.output_dtype;
  const std::vector<WalkedTensor> tensors = collect_tensors(problem, pass);
  if (is_behind) pass.program = pass.program.behind_statistics();
  const auto order = pass.program.has_group_norm ? norm_order : memory_order;
  pass.walk = make_walk(problem.extents, order(problem.extents, problem.output_strides), tensors);
  if (pass.program.has_group_norm) {
    pass.norm = norm_shape(pass.program, problem.extents, problem.operands);
    pass.norm.channels_last = channels_are_innermost(problem.extents, problem.output_strides);
  }
  return pass;
}

}  // namespace

Pass make_pass(const EpilogueProblem& problem) { return make_pass(problem, false); }
Pass make_pass_behind_statistics(const EpilogueProblem& problem) { return make_pass(problem, true); }

struct EpiloguePlan::State {
  Pass pass;
  std::unique_ptr<const CudaPass> cuda;  // nullptr on the CPU
  std::string kernel;
  std::size_t workspace_bytes;
  std::int64_t bytes_moved;
  std::vector<bool> operand_is_number;
};

EpiloguePlan::EpiloguePlan(const EpilogueProblem& problem) {
  State state{make_pass(problem), nullptr, "", 0, 0, {}};
  for (const OperandLayout& operand : problem.operands) state.operand_is_number.push_back(operand.is_number);
  const Pass& pass = state.pass;
  state.bytes_moved = traffic(problem, pass.program.has_group_norm);
  const char* what = pass.program.has_group_norm ? "group_norm_" : "elementwise_";
  if (problem.on_cuda) {
    state.cuda = std::make_unique<const CudaPass>(pass);
    state.kernel = concat(what, "cuda_", state.cuda->kernel());
    state.workspace_bytes = state.cuda->workspace_bytes();
  } else {
    state.kernel = concat(what, "cpu_", pass.double_precision ? "f64" : "f32");
  }
  state_ = std::make_unique<const State>(std::move(state));
}

EpiloguePlan::~EpiloguePlan() = default;
EpiloguePlan::EpiloguePlan(EpiloguePlan&&) noexcept = default;
EpiloguePlan& EpiloguePlan::operator=(EpiloguePlan&&) noexcept = default;

const std::string& EpiloguePlan::kernel() const { return state_->kernel; }
std::size_t EpiloguePlan::workspace_bytes() const { return state_->workspace_bytes; }
std::int64_t EpiloguePlan::bytes_moved() const { return state_->bytes_moved; }

void EpiloguePlan::run(const EpiloguePointers& pointers) const {
  const Pass& pass = state_->pass;
  const std::size_t num_operands = state_->operand_is_number.size();
  require(pointers.operands.size() == num_operands && pointers.numbers.size() == num_operands,
          "the plan takes ", num_operands, " operands, got ", pointers.operands.size());
  for (std::size_t i = 0; i < num_operands; ++i) {
    require(!state_->operand_is_number[i] || pointers.operands[i] == nullptr, "operand b", i,
            " is a number, but an address was given");
  }
  if (pass.walk.count == 0) return;
  PassPointers addresses;
  addresses.input = pointers.input;
  addresses.output = pointers.output;
  addresses.workspace = pointers.workspace;
  addresses.mean = pointers.mean;
  addresses.rstd = pointers.rstd;
  for (std::size_t i = 0; i < pointers.operands.size(); ++i) {
    addresses.operands[i] = pointers.operands[i];
    addresses.numbers[i] = pointers.numbers[i];
  }
  addresses.operands[kBiasOperand] = pointers.bias;
  if (state_->cuda != nullptr) {
    state_->cuda->launch(addresses, pointers.device, pointers.stream);
  } else {
    run_pass_cpu(pass, addresses, pointers.threads);
  }
}

}  // namespace epiconv
