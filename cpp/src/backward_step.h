// What a backward pass runs: steps over values and gradients in slots, as backward.h makes them.
#pragma once

#include <cstdint>

#include "step.h"

namespace epiconv {

inline constexpr int kNormOffsetOperand = kNumOperandPlaces;
inline constexpr int kNormSlopeOperand = kNumOperandPlaces + 1;
inline constexpr int kNumBackwardPlaces = kNumOperandPlaces + 2;

struct BackwardStep {
  enum class Kind : std::uint8_t {
    kReadSaved,     // target = the saved tensor
    kReadGradient,  // target = the gradient of the program's result
    kEvaluate,      // target = op(a, b, c)
    // The others read a gradient's slot; the first two write their target, or add to it.
    kDifferentiate,      // the gradient of the argument a, b or c of op
    kDifferentiateNorm,  // through the statistics of a GroupNorm; a is v + -mean
    kGiveInput,          // it is complete: the gradient of v0
    kGiveOperand,        // of the operand in place `argument`
  };
  Kind kind = Kind::kEvaluate;
  Opcode op = Opcode::kAdd;
  std::uint8_t argument = 0;
  std::uint8_t num_values = 0;  // how many of a, b, c there are
  bool adds = false;
  int target = -1;
  int gradient = -1;
  Source source[3] = {Source::kNumber, Source::kNumber, Source::kNumber};  // none is kAccumulator
  int index[3] = {};                                                       // of the slot or operand
  double number[3] = {};
  int late[3] = {-1, -1, -1};  // the operand whose value the number is, where it is known late
  double p = 0.0, q = 0.0;
};

}  // namespace epiconv
