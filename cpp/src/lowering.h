// From a program to the steps that a kernel runs.
//
// The machine has an accumulator, which every step overwrites with its result, and kMaxLiveValues slots. A
// value that a later step than the next one reads is saved to a slot when it is made.
//
// Operands are numbered as in the program; behind them come the conv bias, which is the program's first
// operation, and what a GroupNorm is turned into: v = (v + -mean) * scale + shift, each one value per sample
// and channel.
#pragma once

#include <cstdint>
#include <vector>

#include "epiconv/epilogue.h"

namespace epiconv {

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

// A step's number that is known only when the program runs: the value of an operand that is a number.
struct LateNumber {
  int step;
  int argument;  // of a, b, c
  int operand;
  bool reciprocal;
};

struct LoweredProgram {
  std::vector<Step<double>> steps;
  std::vector<LateNumber> late_numbers;
  int save_input = -1;  // slot that gets v0 at the start, or -1
  int num_slots = 0;
  int num_before_norm = 0;  // steps that compute the GroupNorm's input; 0 without one

  // Whether each step computes its value from the one before and at most one operand, its b.
  bool is_chain() const;

  // Of a program with a GroupNorm: the steps that compute its input, and those behind.
  LoweredProgram before_norm() const;
  LoweredProgram behind_statistics() const;
  // Whether what is behind reads no value that is older than the norm's input.
  bool restarts_at_norm() const;
  // Whether a step reads an operand.
  bool reads(int operand) const;

  // Of the GroupNorm.
  bool has_group_norm = false;
  std::int64_t num_groups = 0;
  double epsilon = 0.0;
  int weight_operand = -1;
  int shift_operand = -1;  // torch calls it bias
};

struct LoweringOptions {
  bool has_bias = false;
  // A division by a number becomes a product with its reciprocal, as in torch on CUDA.
  bool divide_by_reciprocal = false;
  bool double_precision = false;        // the type in which reciprocals are rounded
  std::vector<bool> operand_is_number;  // one per operand
};

LoweredProgram lower(const Program& program, const LoweringOptions& options);

}  // namespace epiconv
