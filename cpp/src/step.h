// What a kernel runs: steps on an accumulator, as lowering.h makes them.
#pragma once

#include <cstdint>

#include "epiconv/epilogue_ops/math.h"
#include "epiconv/export.h"
#include "epiconv/opcode.h"

namespace epiconv {

inline constexpr int kMaxDims = 5;  // N, K and three spatial dimensions

enum class Source : std::uint8_t { kAccumulator, kSlot, kNumber, kOperand };

// T is float or double, the type of all intermediates.
template <typename T>
struct Step {
  Opcode op;
  std::int8_t save;         // slot that also gets the result, or -1
  std::uint8_t num_values;  // how many of a, b, c the operation reads
  Source source[3];         // of a, b, c
  std::uint8_t index[3];    // of the slot or operand
  bool times_itself;        // the result is multiplied by a, the accumulator (device/gates.h)
  T number[3];              // where the source is kNumber
  T p, q;
};

// Which of a step's arguments are values instead of numbers; without kFetchA, a is the accumulator.
inline constexpr int kFetchA = 1;
inline constexpr int kFetchB = 2;
inline constexpr int kFetchC = 4;
template <typename T>
int fetches_of(const Step<T>& step) {
  const auto is_value = [&](int k) { return k < step.num_values && step.source[k] != Source::kNumber; };
  return (step.source[0] != Source::kAccumulator ? kFetchA : 0) | (is_value(1) ? kFetchB : 0) |
         (is_value(2) ? kFetchC : 0);
}

inline constexpr int kBiasOperand = kMaxOperands;
inline constexpr int kMeanOperand = kMaxOperands + 1;
inline constexpr int kScaleOperand = kMaxOperands + 2;
inline constexpr int kShiftOperand = kMaxOperands + 3;
inline constexpr int kNumNormOperands = 3;
inline constexpr int kNumOperandPlaces = kMaxOperands + 1 + kNumNormOperands;
inline constexpr int kMaxSteps = kMaxStatements + 3;  // the bias, and two more for a GroupNorm

// Behind all opcodes of the table: v = min(max(v + b, p), q) * c (device/fold_steps.h).
inline constexpr Opcode kAddClampMul = static_cast<Opcode>(kNumOperations);

// Behind all opcodes of the table: v = min(max((v + b) * c, p), q) * v, with the bits of the steps it stands
// for. Parts that they lack are identities that change no bit: b = -0.0, c = 1, p = -inf, q = inf.
inline constexpr Opcode kGate = static_cast<Opcode>(kNumOperations + 1);

struct Gated {
  template <typename T>
  static EPICONV_HOST_DEVICE T forward(const ops::Inputs<T>& in) {
    return ops::math::minimum(ops::math::maximum((in.a + in.b) * in.c, in.p), in.q) * in.a;
  }
};
template <typename T>
EPICONV_HOST_DEVICE T gated(const Step<T>& step, T v) {
  return Gated::forward(ops::Inputs<T>{v, step.number[1], step.number[2], step.p, step.q});
}

}  // namespace epiconv
