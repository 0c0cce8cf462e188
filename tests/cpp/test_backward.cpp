// What a backward pass computes again, in which slots, what it reads and which gradients it gives.
#include <cstdio>
#include <string>
#include <vector>

#include "backward.h"
#include "epiconv/backward_plan.h"
#include "epiconv/error.h"
#include "expectations.h"

using namespace epiconv;
using namespace expectations;

namespace {

using Kind = BackwardStep::Kind;

LoweredProgram lowered(const std::string& text, bool has_bias, std::vector<bool> operand_is_number) {
  subject = text;
  LoweringOptions options;
  options.has_bias = has_bias;
  options.operand_is_number = std::move(operand_is_number);
  return lower(Program::parse(text), options);
}

GradientSet everything(int num_operands) {
  GradientSet wanted;
  wanted.input = wanted.operands[kBiasOperand] = true;
  for (int i = 0; i < num_operands; ++i) wanted.operands[i] = true;
  return wanted;
}

void check_kinds(const BackwardProgram& program, const std::vector<Kind>& expected) {
  expect(program.steps.size() == expected.size(), program.steps.size(), " steps");
  for (std::size_t i = 0; i < expected.size() && i < program.steps.size(); ++i)
    expect(program.steps[i].kind == expected[i], "step ", i, " is of kind ",
           static_cast<int>(program.steps[i].kind));
}

void check_identity() {
  const BackwardProgram program = differentiate(lowered("", false, {}), everything(0), Saved::kNothing);
  check_kinds(program, {Kind::kReadGradient, Kind::kGiveInput});
  expect(program.saved == Saved::kNothing && !program.is_used && program.num_slots == 1, "what it needs");
  expect(program.gives.input && !program.gives.operands[kBiasOperand], "what it gives");
}

void check_a_linear_chain() {
  // Nothing is computed again, and operands that are only added are not read.
  const BackwardProgram program = differentiate(
      lowered("v1 = add(v0, b0); v2 = mul(v1, b1); v3 = sub(v2, b2)", true, {false, false, false}),
      [] {
        GradientSet wanted = everything(3);
        wanted.operands[1] = false;
        return wanted;
      }(),
      Saved::kNothing);
  expect(program.saved == Saved::kNothing, "what it needs");
  expect(program.reads[1] && !program.reads[0] && !program.reads[2] && !program.reads[kBiasOperand],
         "operands that it reads");
  expect(program.gives.operands[0] && program.gives.operands[2] && !program.gives.operands[1],
         "operands' gradients");
  expect(program.num_slots == 2, program.num_slots, " slots");
}

void check_a_value_used_twice() {
  const BackwardProgram program =
      differentiate(lowered("v1 = mul(v0, b0); v2 = sigmoid(v1); v3 = mul(v2, v1)", false, {false}),
                    everything(1), Saved::kNothing);
  check_kinds(program, {Kind::kReadSaved, Kind::kEvaluate, Kind::kEvaluate, Kind::kReadGradient,
                        Kind::kDifferentiate, Kind::kDifferentiate, Kind::kDifferentiate,
                        Kind::kDifferentiate, Kind::kGiveInput, Kind::kDifferentiate, Kind::kGiveOperand});
  if (program.steps.size() != 11) return;
  // Both factors' gradients, then sigmoid's is added to that of v1, whose slot they share.
  expect(!program.steps[4].adds && !program.steps[5].adds && program.steps[6].adds, "what is added up");
  expect(program.steps[6].target == program.steps[5].target, "the slot of v1's gradient");
  expect(program.saved == Saved::kInput && program.is_used, "what it needs");
  // v0, v1, v2, the gradient of the result, and that of v2, before that of v1 takes the slot of v2.
  expect(program.num_slots == 5, program.num_slots, " slots");
}

void check_the_last_result_is_not_computed() {
  const BackwardProgram program =
      differentiate(lowered("v1 = exp(v0); v2 = gelu(v1)", false, {}), everything(0), Saved::kNothing);
  check_kinds(program, {Kind::kReadSaved, Kind::kEvaluate, Kind::kReadGradient, Kind::kDifferentiate,
                        Kind::kDifferentiate, Kind::kGiveInput});
}

void check_saved(const std::string& text, bool has_bias, Saved expected) {
  const Program program = Program::parse(text);
  const int count = program.num_operands();
  const BackwardProgram backward = differentiate(lowered(text, has_bias, std::vector<bool>(count, false)),
                                                 everything(count), Saved::kNothing);
  expect(backward.saved == expected, "saves ", static_cast<int>(backward.saved));
}

void check_what_is_saved() {
  check_saved("v1 = relu(v0)", true, Saved::kOutput);
  check_saved("v1 = add(v0, b0); v2 = relu(v1)", true, Saved::kOutput);
  check_saved("v1 = leaky_relu(v0, negative_slope=0.1)", false, Saved::kOutput);
  check_saved("v1 = leaky_relu(v0, negative_slope=-0.1)", false, Saved::kInput);
  check_saved("v1 = threshold(v0, 0.5, 0.5)", false, Saved::kOutput);
  check_saved("v1 = threshold(v0, 0.5, 1.0)", false, Saved::kInput);
  check_saved("v1 = hardtanh(v0)", false, Saved::kOutput);
  // At a bound clamp passes the gradient, and below it does not: the output is the bound for both.
  check_saved("v1 = clamp(v0, 0.0, 6.0)", false, Saved::kInput);
  check_saved("v1 = mul(v0, b0); v2 = relu(v1)", false, Saved::kInput);  // the product's own gradient
  check_saved("v1 = mul(v0, 2.0); v2 = relu(v1)", false, Saved::kOutput);
  check_saved("v1 = relu(v0); v2 = mul(v1, 2.0)", false, Saved::kInput);  // not the last
  check_saved("v1 = relu(v0); v2 = add(v1, v0); v3 = relu(v2)", false, Saved::kInput);
  check_saved("v1 = neg(v0); v2 = cast(v1, dtype=bfloat16)", false, Saved::kNothing);
  check_saved("v1 = sigmoid(v0)", false, Saved::kInput);
}

void check_no_gradient_passes_a_comparison() {
  const LoweredProgram program = lowered("v1 = gt(v0, b0); v2 = where(v1, b1, 0.5)", false, {false, false});
  const BackwardProgram backward = differentiate(program, everything(2), Saved::kNothing);
  expect(!backward.gives.input && !backward.gives.operands[0] && backward.gives.operands[1], "what it gives");
  GradientSet wanted;
  wanted.input = true;
  const BackwardProgram nothing = differentiate(program, wanted, Saved::kNothing);
  expect(nothing.steps.empty() && !nothing.gives.input, nothing.steps.size(), " steps without a gradient");
}

void check_frozen_tensors_cost_nothing() {
  GradientSet wanted;
  wanted.operands[0] = true;
  const BackwardProgram program =
      differentiate(lowered("v1 = exp(v0); v2 = add(v1, b0)", true, {false}), wanted, Saved::kNothing);
  check_kinds(program, {Kind::kReadGradient, Kind::kDifferentiate, Kind::kGiveOperand});
  expect(program.saved == Saved::kNothing, "what it needs");
}

void check_a_number() {
  const BackwardProgram program =
      differentiate(lowered("v1 = mul(v0, b0)", false, {true}), everything(1), Saved::kNothing);
  expect(program.gives.operands[0] && program.reads[0], "the gradient of a number");
  bool is_late = false;
  for (const BackwardStep& step : program.steps) is_late |= step.late[1] == 0;
  expect(is_late, "its value is known late");
}

void check_group_norm() {
  const LoweredProgram program =
      lowered("v1 = sigmoid(v0); v2 = group_norm(v1, 2, b0, b1); v3 = relu(v2); v4 = mul(v3, v1)", false,
              {false, false});
  const BackwardProgram sums = norm_sums(program, Saved::kNothing);
  expect(sums.gives.operands[kScaleOperand] && sums.gives.operands[kShiftOperand], "its sums");
  expect(!sums.gives.input && !sums.passes_norm, "sums go no further");
  const BackwardProgram backward = differentiate(program, everything(0), Saved::kNothing);
  expect(backward.passes_norm && backward.gives.input, "it passes the norm");
  expect(backward.reads[kNormOffsetOperand] && backward.reads[kNormSlopeOperand] &&
             backward.reads[kScaleOperand],
         "what the statistics' gradient reads");
  expect(!sums.reads[kNormOffsetOperand], "which the sums do not");
  // Not where the result does not follow from the norm's: its comparison has no derivative.
  const BackwardProgram none = norm_sums(
      lowered("v1 = group_norm(v0, 2); v2 = gt(v1, 0.0); v3 = mul(v0, v2)", false, {}), Saved::kNothing);
  expect(!none.gives.operands[kScaleOperand], "no sums behind a comparison");
}

// Each slot that a step reads has been written, and none is written while it is needed: as if by registers.
void check_slots(const std::string& text) {
  const Program program = Program::parse(text);
  const int count = program.num_operands();
  const BackwardProgram backward =
      differentiate(lowered(text, true, std::vector<bool>(count, false)), everything(count), Saved::kInput);
  std::vector<bool> written(static_cast<std::size_t>(backward.num_slots), false);
  for (const BackwardStep& step : backward.steps) {
    for (int k = 0; k < step.num_values; ++k)
      expect(step.source[k] != Source::kSlot || written.at(static_cast<std::size_t>(step.index[k])),
             "a slot is read before it is written");
    expect(step.gradient < 0 || written.at(static_cast<std::size_t>(step.gradient)),
           "a gradient is read before it is written");
    expect(!step.adds || written.at(static_cast<std::size_t>(step.target)), "nothing is there to add to");
    if (step.target >= 0) written.at(static_cast<std::size_t>(step.target)) = true;
  }
}

void check_needs() {
  const Program program = Program::parse("v1 = group_norm(v0, 2, b0, b1); v2 = add(v1, b2)");
  subject = program.text();
  const BackwardNeeds all = backward_needs(program, true, true, {true, true, true}, Saved::kNothing);
  expect(all.saved == Saved::kInput && all.gives_input && all.gives_bias, "all");
  expect(all.reads_operand == std::vector<bool>({true, false, false}), "operands that are read");
  const BackwardNeeds shift = backward_needs(program, false, false, {false, false, true}, Saved::kNothing);
  expect(shift.saved == Saved::kNothing && !shift.reads_operand[0], "of an operand behind the norm");
  const BackwardNeeds affine = backward_needs(program, false, false, {true, true, false}, Saved::kNothing);
  expect(affine.saved == Saved::kInput && affine.gives_operand == std::vector<bool>({true, true, false}),
         "of the affine");
  try {
    backward_needs(program, true, true, {true}, Saved::kNothing);
    expect(false, "one entry for three operands");
  } catch (const InvalidArgument&) {
  }
}

BackwardProblem a_problem(const std::string& text) {
  BackwardProblem problem;
  problem.program = Program::parse(text);
  problem.extents = {2, 4, 3, 3};
  problem.saved_strides = problem.gradient_strides = {36, 9, 3, 1};
  problem.input_gradient = GradientLayout{DType::kFloat32, {36, 9, 3, 1}};
  return problem;
}

void expect_refused(const BackwardProblem& problem, const std::string& words) {
  subject = problem.program.text();
  try {
    const BackwardPlan plan(problem);
    expect(false, "is planned, though ", words);
  } catch (const InvalidArgument& error) {
    expect(std::string(error.what()).find(words) != std::string::npos, "says '", error.what(), "'");
  }
}

void check_refusals() {
  BackwardProblem problem = a_problem("v1 = sigmoid(v0)");
  problem.saved = Saved::kOutput;
  expect_refused(problem, "save its input");
  problem.saved = Saved::kNothing;
  problem.saved_strides.clear();
  expect_refused(problem, "save its input");
  problem = a_problem("v1 = relu(v0)");
  problem.saved = Saved::kNothing;
  expect_refused(problem, "save its output");
  problem = a_problem("v1 = gt(v0, 0.0); v2 = cast(v1, dtype=float32)");
  expect_refused(problem, "reaches its input");
  problem = a_problem("v1 = relu(v0)");
  problem.input_gradient->strides = {36, 9, 0, 1};
  expect_refused(problem, "overlap");
  problem = a_problem("v1 = relu(v0)");
  problem.gradient_strides = {9, 3, 1};
  expect_refused(problem, "one stride for each");
  problem = a_problem("v1 = add(v0, b0)");
  problem.operands.push_back({DType::kFloat32, {3, 3}, {3, 1}, false});
  problem.operand_gradients.push_back(GradientLayout{DType::kFloat32, {1, 3}});
  expect_refused(problem, "contiguous");
  problem.operand_gradients[0] = GradientLayout{DType::kInt32, {3, 1}};
  expect_refused(problem, "floating");
  problem.operand_gradients.clear();
  expect_refused(problem, "places for their gradients");
}

}  // namespace

int main() {
  check_identity();
  check_a_linear_chain();
  check_a_value_used_twice();
  check_the_last_result_is_not_computed();
  check_what_is_saved();
  check_no_gradient_passes_a_comparison();
  check_frozen_tensors_cost_nothing();
  check_a_number();
  check_group_norm();
  for (const char* text :
       {"v1 = add(v0, b0); v2 = gelu(v1); v3 = mul(v2, v1); v4 = add(v3, v0); v5 = mul(v4, v4)",
        "v1 = gt(v0, b0); v2 = where(v1, v0, b1); v3 = group_norm(v2, 2); v4 = mul(v3, v2)"})
    check_slots(text);
  check_needs();
  check_refusals();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
