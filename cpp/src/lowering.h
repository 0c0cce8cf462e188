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
#include "step.h"

namespace epiconv {

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
