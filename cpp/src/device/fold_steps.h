// Folds runs of cheap steps into one, so that an interpreter's overhead is paid once for the run.
//
// A folded step is v = min(max(v + b, p), q) * c, of which parts that a run lacks are identities that change
// no bit: b = -0.0, p = -inf, q = inf, c = 1. At most one of b and c is an operand. A product by 1, 2, 4 …
// rounds nothing: bounds behind it are taken back to before it, and what is bounded may be multiplied again.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lowering.h"

namespace epiconv {

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

// Whether a bound divided by a power of two below 2^64 is that bound again when it is multiplied by it.
template <typename T>
bool divides_exactly(T bound) {
  const T magnitude = std::abs(bound);
  return magnitude == T(0) || std::isinf(magnitude) || magnitude >= std::ldexp(T(1), -60);
}

template <typename T>
bool has_exact_factor(const Step<T>& folded) {
  int exponent = 0;
  const T factor = folded.number[2];
  return folded.source[2] == Source::kNumber && factor >= T(1) && factor < std::ldexp(T(1), 64) &&
         std::frexp(factor, &exponent) == T(0.5);
}

// Bounds what a folded step makes.
template <typename T>
bool bound_result(Step<T>& folded, T low, T high) {
  const bool are_ordered = folded.p <= folded.q && low <= high;  // and none is NaN
  if (!has_exact_factor(folded) || !are_ordered || !divides_exactly(low) || !divides_exactly(high)) {
    return false;
  }
  low /= folded.number[2];
  high /= folded.number[2];
  folded.p = std::min(std::max(folded.p, low), high);
  folded.q = std::min(std::max(folded.q, low), high);
  return true;
}

// Multiplies it, where that cannot have become infinite.
template <typename T>
bool multiply_result(Step<T>& folded, T number) {
  const T factor = folded.number[2];
  const auto is_finite = [](T value) { return std::isfinite(value); };
  if (!has_exact_factor(folded) || !is_finite(folded.p * factor) || !is_finite(folded.q * factor) ||
      !is_finite(factor * number)) {
    return false;
  }
  folded.number[2] = factor * number;
  return true;
}

// Adds `step` to `folded`, of which the parts before `stage` are taken; false if it does not fit.
template <typename T>
bool fold_into(Step<T>& folded, FoldStage& stage, const Step<T>& step) {
  if (step.source[0] != Source::kAccumulator || step.times_itself) return false;
  const int fetches = fetches_of(step);
  const bool has_operand = fetches_of(folded) != 0;
  const bool is_number = fetches == 0;
  const auto put_number = [&](FoldStage place, T& part, T number) {
    if (!is_number || stage > place) return false;
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
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const bool is_behind = is_number && stage == FoldStage::kEnd;  // behind all parts
  const auto put_low = [&](T low) {
    return is_behind ? bound_result(folded, low, kInfinity) : put_number(FoldStage::kMaximum, folded.p, low);
  };
  const auto put_high = [&](T high) {
    return is_behind ? bound_result(folded, -kInfinity, high)
                     : put_number(FoldStage::kMinimum, folded.q, high);
  };
  const auto put_clamp = [&](T low, T high) {
    if (is_behind) return bound_result(folded, low, high);
    return stage <= FoldStage::kMaximum && put_low(low) && put_high(high);
  };
  switch (step.op) {
    case Opcode::kAdd:
      return step.p == T(1) && (put_operand(FoldStage::kAdd, 1) ||
                                put_number(FoldStage::kAdd, folded.number[1], step.number[1]));
    case Opcode::kSub:
      return step.p == T(1) && put_number(FoldStage::kAdd, folded.number[1], -step.number[1]);
    case Opcode::kMul:
      if (is_behind) return multiply_result(folded, step.number[1]);
      return put_operand(FoldStage::kMul, 2) || put_number(FoldStage::kMul, folded.number[2], step.number[1]);
    case Opcode::kRelu:
      return put_low(T(0));
    case Opcode::kMaximum:
      return put_low(step.number[1]);
    case Opcode::kMinimum:
      return put_high(step.number[1]);
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
