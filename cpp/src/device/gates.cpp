#include "device/gates.h"

#include <algorithm>

#include "device/fold_steps.h"

namespace epiconv {
namespace {

// Adds a step to a gate that has parts up to `stage`: 0 none, 1 a sum, 2 a product, 3 a clamp.
bool add_to_gate(const Step<double>& step, Step<double>& gate, int& stage) {
  if (step.save >= 0 || fetches_of(step) != 0) return false;
  const auto clamp = [&](double low, double high) {
    if (stage > 2) return false;
    gate.p = low;
    gate.q = high;
    stage = 3;
    return true;
  };
  switch (step.op) {
    case Opcode::kAdd:
    case Opcode::kSub:
      if (stage > 0 || step.p != 1.0) return false;
      gate.number[1] = step.op == Opcode::kAdd ? step.number[1] : -step.number[1];
      stage = 1;
      return true;
    case Opcode::kMul:
      if (stage > 1) return false;
      gate.number[2] = step.number[1];
      stage = 2;
      return true;
    case Opcode::kClamp:
      return clamp(step.number[1], step.number[2]);
    case Opcode::kHardtanh:
      return clamp(step.p, step.q);
    case Opcode::kRelu6:
      return clamp(0.0, 6.0);
    default:
      return false;
  }
}

// Whether a step multiplies the accumulator by that slot.
bool closes_gate(const Step<double>& step, int slot) {
  if (step.op != Opcode::kMul) return false;
  const auto is_slot = [&](int k) { return step.source[k] == Source::kSlot && step.index[k] == slot; };
  const auto is_accumulator = [&](int k) { return step.source[k] == Source::kAccumulator; };
  return (is_accumulator(0) && is_slot(1)) || (is_slot(0) && is_accumulator(1));
}

// Whether a slot is read from step `first` on before it is filled again.
bool is_read(const std::vector<Step<double>>& steps, std::size_t first, int slot) {
  for (std::size_t i = first; i < steps.size(); ++i) {
    for (int k = 0; k < steps[i].num_values; ++k) {
      if (steps[i].source[k] == Source::kSlot && steps[i].index[k] == slot) return true;
    }
    if (steps[i].save == slot) return false;
  }
  return false;
}

// The steps from `first` on that make a gate of a value in `slot`, which becomes `gate`; 0 if they do not.
std::size_t gate_length(const std::vector<Step<double>>& steps, std::size_t first, int slot,
                        Step<double>& gate) {
  gate = folded_identity<double>();
  gate.op = kGate;
  int stage = 0;
  for (std::size_t i = first; i < steps.size(); ++i) {
    if (i > first && closes_gate(steps[i], slot)) {
      gate.save = steps[i].save;
      return is_read(steps, i + 1, slot) && gate.save != slot ? 0 : i + 1 - first;
    }
    if (!add_to_gate(steps[i], gate, stage)) return 0;
  }
  return 0;
}

// Whether the step makes something of a value in `slot`, and the next one multiplies that by the value.
bool is_times_itself(const std::vector<Step<double>>& steps, std::size_t number, int slot) {
  if (number + 1 >= steps.size() || !closes_gate(steps[number + 1], slot)) return false;
  const Step<double>& step = steps[number];
  const bool is_free = steps[number + 1].save == slot || !is_read(steps, number + 2, slot);
  return is_free && step.save < 0 && fetches_of(step) == 0;
}

}  // namespace

LoweredProgram with_gates(const LoweredProgram& program, Gates gates) {
  if (program.num_slots == 0 || program.has_group_norm || !program.late_numbers.empty()) return program;
  LoweredProgram result = program;
  result.steps.clear();
  const auto save_of_last = [&]() -> int {
    return result.steps.empty() ? result.save_input : result.steps.back().save;
  };
  for (std::size_t i = 0; i < program.steps.size();) {
    Step<double> step;
    const int slot = save_of_last();
    std::size_t length = slot >= 0 ? gate_length(program.steps, i, slot, step) : 0;
    if (length == 0 && gates == Gates::kAll && slot >= 0 && is_times_itself(program.steps, i, slot)) {
      step = program.steps[i];
      step.times_itself = true;
      step.save = program.steps[i + 1].save;
      length = 2;
    }
    if (length == 0) {
      step = program.steps[i];
      length = 1;
    } else if (result.steps.empty()) {  // nobody else reads the value
      result.save_input = -1;
    } else {
      result.steps.back().save = -1;
    }
    result.steps.push_back(step);
    i += length;
  }
  const bool saves = std::any_of(result.steps.begin(), result.steps.end(),
                                 [](const Step<double>& step) { return step.save >= 0; });
  if (!saves && result.save_input < 0) result.num_slots = 0;
  return result;
}

}  // namespace epiconv
