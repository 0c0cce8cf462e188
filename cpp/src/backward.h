// From a lowered program to the steps of its backward pass over one element.
//
// A slot holds a value or a gradient. Values that a derivative reads are computed again, in the program's
// order; behind them, in reverse order, come gradients of arguments from those of results. A gradient that
// several steps contribute to is added up in its slot, and leaves it at once when it is complete. num_slots
// is how many are live together.
//
// A GroupNorm arrives as v = (v + -mean) * scale + shift. Its statistics depend on every element of a group,
// so that the gradient of its input is that of (v + -mean) and a line of it: + offset + slope * (v + -mean),
// one offset and slope per sample and channel. They follow from sums, per sample and channel, of the
// gradients of scale and shift: a sweep of its own, whose program is norm_sums().
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backward_step.h"
#include "epiconv/backward_plan.h"
#include "lowering.h"

namespace epiconv {

// What gradients are wanted of, or come out: v0, and places of operands.
struct GradientSet {
  bool input = false;
  std::array<bool, kNumOperandPlaces> operands{};
};

struct BackwardProgram {
  std::vector<BackwardStep> steps;
  int num_slots = 0;
  // Which gradients come out: those wanted that the result's gradient reaches. No gradient passes a
  // comparison.
  GradientSet gives;
  bool passes_norm = false;                      // a gradient reaches the GroupNorm's result
  Saved saved = Saved::kNothing;                 // the least that suffices
  bool is_used = false;                          // whether a step reads the saved tensor
  std::array<bool, kNumBackwardPlaces> reads{};  // operands that steps read
};

// The backward pass from `saved`, Saved::kNothing standing for the least that suffices. A wanted operand that
// is a number, which the program knows late, counts as any other.
BackwardProgram differentiate(const LoweredProgram& program, const GradientSet& wanted, Saved saved);

// Of a program with a GroupNorm: the gradients of kScaleOperand and kShiftOperand.
BackwardProgram norm_sums(const LoweredProgram& program, Saved saved);

}  // namespace epiconv
