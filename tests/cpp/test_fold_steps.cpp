// Folded steps compute the same bits as the steps they stand for, and fold as far as they can.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "device/fold_steps.h"
#include "device/gates.h"
#include "epiconv/error.h"
#include "operation_dispatch.h"
#include "pass.h"

namespace {

using epiconv::Program;
using epiconv::Source;
using epiconv::Step;

int failures = 0;

void fail(const std::string& test, const std::string& what) {
  std::printf("FAILED %s: %s\n", test.c_str(), what.c_str());
  ++failures;
}

// Operand i is this number everywhere.
float operand(int i) { return 0.375f * static_cast<float>(i + 1) - 1.0f; }

float argument(const Step<float>& step, int k, float accumulator, const float* slots) {
  switch (step.source[k]) {
    case Source::kAccumulator:
      return accumulator;
    case Source::kSlot:
      return slots[step.index[k]];
    case Source::kOperand:
      return operand(step.index[k]);
    default:
      return step.number[k];
  }
}

float run(const std::vector<Step<float>>& steps, int save_input, float value) {
  float slots[epiconv::kMaxLiveValues] = {};
  if (save_input >= 0) slots[save_input] = value;
  for (const Step<float>& step : steps) {
    const float a = argument(step, 0, value, slots);
    const float b = argument(step, 1, value, slots);
    const float c = argument(step, 2, value, slots);
    if (step.op == epiconv::kAddClampMul) {
      value = epiconv::ops::math::minimum(epiconv::ops::math::maximum(a + b, step.p), step.q) * c;
    } else if (step.op == epiconv::kGate) {
      value = epiconv::gated(step, a);
    } else {
      epiconv::visit_operation(step.op, [&]<typename Operation>() {
        value = Operation::forward(epiconv::ops::Inputs<float>{a, b, c, step.p, step.q});
      });
    }
    if (step.times_itself) value *= a;
    if (step.save >= 0) slots[step.save] = value;
  }
  return value;
}

struct Case {
  const char* program;
  int folded;          // steps that are left
  int gated = -1;      // with clamped gates, where there are some
  int all_gated = -1;  // with gates of any operation, where there are more
};

const Case kCases[] = {
    {"v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)", 2},
    {"v1 = add(v0, b0); v2 = clamp(v1, 0.0, 1.0); v3 = mul(v2, 2.0); v4 = clamp(v3, 0.0, 1.0); v5 = mul(v4, "
     "0.5)",
     1},  // bounds behind a product by 2 are half as large before it
    {"v1 = clamp(v0, -1.0, 3.0); v2 = mul(v1, 4.0); v3 = clamp(v2, -2.0, 100.0); v4 = mul(v3, 0.1)", 1},
    {"v1 = clamp(v0, -1.0, 3.0); v2 = mul(v1, 4.0); v3 = relu(v2); v4 = minimum(v3, 5.0); v5 = mul(v4, -3.0)",
     1},
    {"v1 = clamp(v0, 2.0, 3.0); v2 = mul(v1, 2.0); v3 = clamp(v2, -1.0, 1.0)", 1},  // none is in both
    {"v1 = clamp(v0, 0.0, 1.0); v2 = mul(v1, 2.0); v3 = clamp(v2, nan, 1.0)", 2},
    {"v1 = clamp(v0, 0.0, 1.0); v2 = mul(v1, 0.5); v3 = clamp(v2, 0.0, 0.25)", 2},  // denormal numbers round
    {"v1 = clamp(v0, 0.0, 1.0); v2 = mul(v1, 3.0); v3 = clamp(v2, 0.0, 1.0)", 2},   // and so do products by 3
    {"v1 = relu(v0); v2 = mul(v1, 2.0); v3 = mul(v2, 0.5)", 2},  // what is not bounded may become infinite
    {"v1 = relu(v0); v2 = mul(v1, 2.0); v3 = clamp(v2, 0.0, 1e-30)", 2},
    {"v1 = relu(v0); v2 = add(v1, b0)", 2},                         // add comes first in a folded step
    {"v1 = sub(v0, 0.25); v2 = relu6(v1); v3 = mul(v2, -1.0)", 1},  // a difference is a sum
    {"v1 = add(v0, b0); v2 = mul(v1, b1)", 2},                      // one operand at most
    {"v1 = add(v0, b0); v2 = mul(v1, 3.0); v3 = mul(v2, 0.1)", 2},  // two products round twice
    {"v1 = add(v0, 1.0); v2 = add(v1, -1.0)", 2},                   // and so do two sums
    {"v1 = minimum(v0, 0.5); v2 = maximum(v1, 1.0)", 2},            // the other way round is another number
    {"v1 = maximum(v0, 1.0); v2 = minimum(v1, 0.5)", 1},
    {"v1 = add(v0, b0, alpha=2.0); v2 = relu(v1)", 2},  // a scaled sum is fused
    {"v1 = sub(v0, b0); v2 = relu(v1)", 2},
    {"v1 = tanh(v0); v2 = hardtanh(v1, -0.5, 0.5); v3 = mul(v2, b0); v4 = exp(v3)", 3},
    {"v1 = add(v0, 1.0); v2 = relu(v1); v3 = mul(v2, v1)", 3, -1, 2},  // v1 is read again
    {"v1 = add(v0, b0); v2 = hardswish(v1); v3 = mul(v1, v2); v4 = relu(v3)", 4, -1, 3},
    {"v1 = tanh(v0); v2 = mul(v1, v0); v3 = exp(v2); v4 = mul(v2, v3)", 4, -1, 2},  // one behind the other
    {"v1 = tanh(v0); v2 = mul(v1, v0); v3 = mul(v2, v0)", 3},                       // v0 is read again
    {"v1 = tanh(v0); v2 = add(v1, v0)", 2},                                         // only products are
    {"v1 = clamp(v0, -0.0, 0.0); v2 = mul(v1, -1.0)", 1},
    {"v1 = minimum(v0, nan)", 1},
    {"v1 = clamp(v0, None, b0); v2 = mul(v1, 2.0)", 2},  // an operand as bound
    {"v1 = relu(v0); v2 = add(v1, 3.0); v3 = mul(v2, 0.16666667); v4 = clamp(v3, 0.0, 1.0); v5 = mul(v1, v4)",
     4, 2},
    {"v1 = add(v0, 3.0); v2 = relu6(v1); v3 = mul(v2, v0); v4 = mul(v3, 0.16666667)", 3, 2},
    {"v1 = mul(v0, 0.2); v2 = hardtanh(v1, -0.5, 0.5); v3 = mul(v2, v0); v4 = add(v3, 1.0); v5 = clamp(v4, "
     "0.0, "
     "1.0); v6 = mul(v5, v3)",
     5, 2},
    {"v1 = sub(v0, 1.0); v2 = mul(v1, v0)", 2, 1},
    {"v1 = add(v0, 1.0); v2 = clamp(v1, 0.0, 1.0); v3 = mul(v2, v0); v4 = add(v3, v0)",
     3},                                                                   // v0 is read again
    {"v1 = add(v0, 1.0); v2 = mul(v1, v0); v3 = mul(v2, v1)", 3},          // v1 is
    {"v1 = clamp(v0, 0.0, 1.0); v2 = mul(v1, 0.5); v3 = mul(v2, v0)", 2},  // a clamp is last
    {"v1 = add(v0, b0); v2 = mul(v1, v0)", 2},                             // numbers only
    {"v1 = add(v0, 1.0); v2 = add(v1, v0)", 2},
};

std::uint32_t bits(float value) {
  return std::isnan(value) ? 0x7fc00000u : __builtin_bit_cast(std::uint32_t, value);
}

struct Gated {
  std::vector<Step<float>> steps;
  int save_input;
};

// The program with gates, of which so many steps are to be left; -1 where there are none.
Gated with_gates(const Case& tested, const epiconv::Pass& pass, epiconv::Gates gates, int expected) {
  epiconv::Pass gated = pass;
  gated.program = epiconv::with_gates(pass.program, gates);
  Gated result{std::vector<Step<float>>(gated.program.steps.size()), gated.program.save_input};
  epiconv::fill_steps(gated, epiconv::PassPointers{}, result.steps.data());
  result.steps.resize(epiconv::fold_steps(result.steps.data(), static_cast<int>(result.steps.size())));
  const bool has_gates = gated.program.steps.size() < pass.program.steps.size();
  const int left = has_gates ? static_cast<int>(result.steps.size()) : -1;
  if (has_gates && !gated.program.is_chain()) fail(tested.program, "it is no chain with gates");
  if (left != expected) {
    fail(tested.program, epiconv::concat(left, " steps are left with gates, not ", expected));
  }
  return result;
}

void test_case(const Case& expected) {
  const Program program = Program::parse(expected.program);
  epiconv::LoweringOptions options;
  options.operand_is_number.assign(program.num_operands(), false);
  epiconv::Pass pass;
  pass.program = epiconv::lower(program, options);
  std::vector<Step<float>> steps(pass.program.steps.size());
  epiconv::fill_steps(pass, epiconv::PassPointers{}, steps.data());
  std::vector<Step<float>> folded = steps;
  folded.resize(epiconv::fold_steps(folded.data(), static_cast<int>(folded.size())));
  if (static_cast<int>(folded.size()) != expected.folded) {
    fail(expected.program, epiconv::concat(folded.size(), " steps are left, not ", expected.folded));
  }
  const Gated clamped = with_gates(expected, pass, epiconv::Gates::kClamped, expected.gated);
  const Gated all =
      with_gates(expected, pass, epiconv::Gates::kAll, std::max(expected.gated, expected.all_gated));
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f,    -0.0f, 1.0f,   -1.0f,     0.5f,       1e-45f,
                               -1e-45f, 3e38f, -3e38f, kInfinity, -kInfinity, std::nanf("")};
  for (int i = -400; i <= 400; ++i) values.push_back(static_cast<float>(i) * 0.01173f);
  for (const float value : values) {
    const float one_by_one = run(steps, pass.program.save_input, value);
    const float at_once = run(folded, pass.program.save_input, value);
    if (bits(one_by_one) != bits(at_once)) {
      fail(expected.program,
           epiconv::concat("of ", value, ": ", at_once, " folded, ", one_by_one, " step by step"));
    }
    for (const Gated* gated : {&clamped, &all}) {
      const float with_gates = run(gated->steps, gated->save_input, value);
      if (bits(one_by_one) != bits(with_gates)) {
        fail(expected.program,
             epiconv::concat("of ", value, ": ", with_gates, " with gates, ", one_by_one, " step by step"));
      }
    }
  }
}

}  // namespace

int main() {
  for (const Case& expected : kCases) test_case(expected);
  return failures == 0 ? 0 : 1;
}
