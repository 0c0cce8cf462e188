#include "epiconv/epilogue_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "cpu/epilogue_pass.h"
#include "elementwise/epilogue_pass.h"
#include "epiconv/error.h"
#include "plan/operand_strides.h"
#include "plan/pass_plan.h"

namespace epiconv {
namespace {

using Extents = std::vector<std::int64_t>;

// Every tensor of a pass by the dimensions of the output, before the walk is chosen.
struct Tensors {
  Extents input, output;
  std::vector<std::pair<int, Extents>> operands;  // place in Pass::operands
};

Tensors collect_tensors(const EpilogueProblem& problem, Pass& pass) {
  const Extents& extents = problem.extents;
  Tensors tensors{problem.input_strides, problem.output_strides, {}};
  for (PlacedOperand& operand : place_operands(problem.program, extents, problem.bias, problem.operands)) {
    pass.operands[operand.place].dtype = operand.dtype;
    tensors.operands.emplace_back(operand.place, std::move(operand.strides));
  }
  if (pass.program.has_group_norm) {
    Extents strides(extents.size(), 0);
    strides[0] = extents[1];
    strides[1] = 1;
    for (const int place : {kMeanOperand, kScaleOperand, kShiftOperand}) {
      pass.operands[place].dtype = pass.double_precision ? DType::kFloat64 : DType::kFloat32;
      tensors.operands.emplace_back(place, strides);
    }
  }
  return tensors;
}

// Whether a channel's neighbour in memory is the next channel of the same pixel.
bool channels_are_innermost(const EpilogueProblem& problem) {
  const Extents& extents = problem.extents;
  const Extents& strides = problem.output_strides;
  bool has_pixels = false;
  for (std::size_t d = 2; d < extents.size(); ++d) {
    if (extents[d] == 1) continue;
    has_pixels = true;
    if (strides[d] <= strides[1]) return false;
  }
  return has_pixels && extents[1] != 1;
}

// Dimensions from the outermost of the walk to the innermost, without those of one element. A GroupNorm's
// statistics are gathered pixel after pixel, of one channel or of all, whatever the strides.
std::vector<int> walk_order(const EpilogueProblem& problem, bool has_group_norm) {
  std::vector<int> order(problem.extents.size());
  std::iota(order.begin(), order.end(), 0);
  if (has_group_norm && channels_are_innermost(problem))
    std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  std::erase_if(order, [&](int d) { return problem.extents[d] == 1; });
  if (!has_group_norm) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return problem.output_strides[a] > problem.output_strides[b]; });
  }
  return order;
}

void check_no_overlap(const EpilogueProblem& problem) {
  std::int64_t reach = 0;
  const std::vector<int> order = walk_order(problem, false);
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    require(problem.output_strides[*d] > reach, "the output's elements overlap: shape ",
            shape_text(problem.extents), ", strides ", shape_text(problem.output_strides));
    reach += problem.output_strides[*d] * (problem.extents[*d] - 1);
  }
}

void set_access(Access& access, const Extents& strides, const std::vector<std::vector<int>>& merged,
                const Walk& walk) {
  std::int64_t dense = 1;
  access.linear = true;
  for (int d = walk.rank - 1; d >= 0; --d) {
    access.strides[d] = strides[merged[d].back()];
    access.linear &= access.strides[d] == dense;
    dense *= walk.extents[d];
  }
}

void set_walk(const EpilogueProblem& problem, const Tensors& tensors, Pass& pass) {
  const Extents& extents = problem.extents;
  std::vector<std::vector<int>> merged;  // groups of dimensions that every tensor walks as one
  std::vector<std::int64_t> sizes;
  const auto joins = [&](const Extents& strides, int outer, int inner) {
    return strides[outer] == strides[inner] * extents[inner];
  };
  for (const int d : walk_order(problem, pass.program.has_group_norm)) {
    bool merge = !merged.empty() && sizes.back() * extents[d] <= std::numeric_limits<std::int32_t>::max();
    if (merge) {
      const int outer = merged.back().back();
      merge = joins(tensors.input, outer, d) && joins(tensors.output, outer, d);
      for (const auto& [place, strides] : tensors.operands) merge = merge && joins(strides, outer, d);
    }
    if (merge) {
      merged.back().push_back(d);
      sizes.back() *= extents[d];
    } else {
      merged.push_back({d});
      sizes.push_back(extents[d]);
    }
  }
  if (merged.empty()) {  // one element
    merged.push_back({0});
    sizes.push_back(1);
  }
  Walk& walk = pass.walk;
  walk.rank = static_cast<int>(merged.size());
  walk.count = 1;
  for (int d = 0; d < walk.rank; ++d) {
    walk.extents[d] = sizes[d];
    walk.count *= sizes[d];
  }
  set_access(pass.input, tensors.input, merged, walk);
  set_access(pass.output, tensors.output, merged, walk);
  for (const auto& [place, strides] : tensors.operands)
    set_access(pass.operands[place], strides, merged, walk);
}

void set_norm(const EpilogueProblem& problem, Pass& pass) {
  const LoweredProgram& program = pass.program;
  GroupNormShape& norm = pass.norm;
  norm.samples = problem.extents[0];
  norm.channels = problem.extents[1];
  norm.pixels = std::accumulate(problem.extents.begin() + 2, problem.extents.end(), std::int64_t{1},
                                [](std::int64_t a, std::int64_t b) { return a * b; });
  norm.groups = program.num_groups;
  norm.epsilon = program.epsilon;
  norm.channels_last = channels_are_innermost(problem);
  require(norm.channels % norm.groups == 0, "group_norm with num_groups = ", norm.groups, " over ",
          norm.channels, " channels: the number of channels must be a multiple of num_groups");
  const auto affine = [&](int operand, int& place, DType& dtype, std::int64_t& stride) {
    if (operand < 0) return;
    const OperandLayout& layout = problem.operands[operand];
    require(layout.extents.size() == 1 && layout.extents[0] == norm.channels, "operand b", operand,
            " has shape ", shape_text(layout.extents), "; group_norm takes one value per channel, shape (",
            norm.channels, ",)");
    place = operand;
    dtype = layout.dtype;
    stride = layout.strides[0];
  };
  affine(program.weight_operand, norm.weight_operand, norm.weight_dtype, norm.weight_stride);
  affine(program.shift_operand, norm.shift_operand, norm.shift_dtype, norm.shift_stride);
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
  check_no_overlap(problem);
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
  const Tensors tensors = collect_tensors(problem, pass);
  if (is_behind) pass.program = pass.program.behind_statistics();
  set_walk(problem, tensors, pass);
  if (pass.program.has_group_norm) set_norm(problem, pass);
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
