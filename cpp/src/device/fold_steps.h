// Folds runs of cheap steps into one, so that an interpreter's overhead is paid once for the run.
//
// A folded step is v = min(max(v + b, p), q) * c, of which parts that a run lacks are identities that change
// no bit: b = -0.0, p = -inf, q = inf, c = 1. At most one of b and c is an operand.
#pragma once

#include <limits>

#include "lowering.h"

namespace epiconv {

// Behind all opcodes of the table.
inline constexpr Opcode kAddClampMul = static_cast<Opcode>(kNumOperations);

// The place in v = min(max(v + b, p), q) * c from which on a step's operation can still be added.
enum class FoldStage { kAdd, kMaximum, kMinimum, kMul, kEnd };

template <typename T>
Step<T> folded_identity() {
  Step<T> step{};
  step.op = kAddClampMul;
  step.save = -1;
  step.num_values = 3;
  step.source[1] = step.source[2] = Source::kNumber;
  step.number[1] = T(-0.0);
  step.number[2] = T(1);
  step.p = -std::numeric_limits<T>::infinity();
  step.q = std::numeric_limits<T>::infinity();
  return step;
}

// Adds `step` to `folded`, of which the parts before `stage` are taken; false if it does not fit.
template <typename T>
bool fold_into(Step<T>& folded, FoldStage& stage, const Step<T>& step) {
  if (step.source[0] != Source::kAccumulator) return false;
  const int fetches = fetches_of(step);
  const bool has_operand = fetches_of(folded) != 0;
  const auto put_number = [&](FoldStage place, T& part, T number) {
    if (fetches != 0 || stage > place) return false;
    part = number;
    stage = static_cast<FoldStage>(static_cast<int>(place) + 1);
    return true;
  };
  const auto put_operand = [&](FoldStage place, int argument) {
    if (fetches != kFetchB || step.source[1] != Source::kOperand || has_operand || stage > place)
      return false;
    folded.source[argument] = Source::kOperand;
    folded.index[argument] = step.index[1];
    stage = static_cast<FoldStage>(static_cast<int>(place) + 1);
    return true;
  };
  const auto put_clamp = [&](T low, T high) {
    if (stage > FoldStage::kMaximum) return false;
    return put_number(FoldStage::kMaximum, folded.p, low) && put_number(FoldStage::kMinimum, folded.q, high);
  };
  switch (step.op) {
    case Opcode::kAdd:
      return step.p == T(1) && (put_operand(FoldStage::kAdd, 1) ||
                                put_number(FoldStage::kAdd, folded.number[1], step.number[1]));
    case Opcode::kSub:
      return step.p == T(1) && put_number(FoldStage::kAdd, folded.number[1], -step.number[1]);
    case Opcode::kMul:
      return put_operand(FoldStage::kMul, 2) || put_number(FoldStage::kMul, folded.number[2], step.number[1]);
    case Opcode::kRelu:
      return put_number(FoldStage::kMaximum, folded.p, T(0));
    case Opcode::kMaximum:
      return put_number(FoldStage::kMaximum, folded.p, step.number[1]);
    case Opcode::kMinimum:
      return put_number(FoldStage::kMinimum, folded.q, step.number[1]);
    case Opcode::kClamp:
      return fetches == 0 && put_clamp(step.number[1], step.number[2]);
    case Opcode::kHardtanh:
      return put_clamp(step.p, step.q);
    case Opcode::kRelu6:
      return put_clamp(T(0), T(6));
    default:
      return false;
  }
}

// Folds steps[0…count) in place; returns how many are left.
template <typename T>
int fold_steps(Step<T>* steps, int count) {
  int left = 0;
  bool is_open = false;  // whether the last of those left may take another step
  FoldStage stage = FoldStage::kAdd;
  for (int i = 0; i < count; ++i) {
    const Step<T> step = steps[i];
    if (is_open && fold_into(steps[left - 1], stage, step)) {
      steps[left - 1].save = step.save;
    } else {
      Step<T> folded = folded_identity<T>();
      stage = FoldStage::kAdd;
      is_open = fold_into(folded, stage, step);
      folded.save = step.save;
      steps[left++] = is_open ? folded : step;
    }
    is_open = is_open && step.save < 0;  // a value that is kept is the last of its run
  }
  return left;
}

}  // namespace epiconv
