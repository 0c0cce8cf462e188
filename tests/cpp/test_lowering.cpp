// What of a lowered program comes before its GroupNorm and what behind it, for a kernel that stores between
// the two.
#include <cstdio>
#include <string>
#include <vector>

#include "epiconv/error.h"
#include "expectations.h"
#include "lowering.h"

using namespace epiconv;
using namespace expectations;

namespace {

LoweredProgram lowered(const std::string& text, bool has_bias, std::vector<bool> operand_is_number) {
  subject = text;
  LoweringOptions options;
  options.has_bias = has_bias;
  options.operand_is_number = std::move(operand_is_number);
  return lower(Program::parse(text), options);
}

void check_opcodes(const LoweredProgram& program, const std::vector<Opcode>& expected) {
  expect(program.steps.size() == expected.size(), program.steps.size(), " steps");
  for (std::size_t i = 0; i < expected.size() && i < program.steps.size(); ++i) {
    expect(program.steps[i].op == expected[i], "step ", i, " has opcode ",
           static_cast<int>(program.steps[i].op));
  }
}

void check_a_chain() {
  const LoweredProgram program =
      lowered("v1 = mul(v0, b0); v2 = sigmoid(v1); v3 = group_norm(v2, 4, b1, None, 1e-05); v4 = add(v3, b2)",
              true, {true, false, true});
  expect(program.has_group_norm && program.num_before_norm == 3 && program.restarts_at_norm(), "its norm");
  expect(program.reads(kBiasOperand) && program.reads(kMeanOperand) && program.reads(kShiftOperand),
         "operands that steps read");
  // The affine's weight is read where the statistics are merged, and numbers are no operands of steps.
  expect(!program.reads(0) && !program.reads(1) && !program.reads(2), "operands that no step reads");

  const LoweredProgram before = program.before_norm();
  check_opcodes(before, {Opcode::kAdd, Opcode::kMul, Opcode::kSigmoid});
  expect(!before.has_group_norm && before.late_numbers.size() == 1 && before.late_numbers[0].operand == 0 &&
             before.late_numbers[0].step == 1,
         "late numbers before the norm");
  expect(before.reads(kBiasOperand) && !before.reads(kMeanOperand), "operands before the norm");

  const LoweredProgram behind = program.behind_statistics();
  check_opcodes(behind, {Opcode::kAdd, Opcode::kMul, Opcode::kAdd, Opcode::kAdd});
  expect(!behind.has_group_norm && behind.num_before_norm == 0 && behind.late_numbers.size() == 1 &&
             behind.late_numbers[0].operand == 2 && behind.late_numbers[0].step == 3,
         "late numbers behind the norm");
  expect(behind.steps[0].index[1] == kMeanOperand && behind.steps[1].index[1] == kScaleOperand &&
             behind.steps[2].index[1] == kShiftOperand,
         "what normalises");
  expect(!behind.reads(kBiasOperand), "operands behind the norm");
}

void check_values_across_the_norm() {
  // The norm's input, or what is older, is read behind it: that is no longer there when the norm's is stored.
  for (const char* text : {"v1 = relu(v0); v2 = group_norm(v1, 4); v3 = add(v2, v1)",
                           "v1 = relu(v0); v2 = group_norm(v1, 4); v3 = add(v2, v0)"}) {
    const LoweredProgram program = lowered(text, false, {});
    expect(program.has_group_norm && !program.restarts_at_norm(), "restarts at its norm");
  }
  // A value of its own, and one that is saved before the norm and read before it.
  for (const char* text : {"v1 = relu(v0); v2 = group_norm(v1, 4); v3 = sigmoid(v2); v4 = mul(v3, v2)",
                           "v1 = relu(v0); v2 = mul(v1, v0); v3 = group_norm(v2, 4); v4 = relu(v3)"}) {
    const LoweredProgram program = lowered(text, false, {});
    expect(program.has_group_norm && program.restarts_at_norm(), "does not restart at its norm");
  }
}

}  // namespace

int main() {
  check_a_chain();
  check_values_across_the_norm();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
