// A backward pass over tensors, as an engine takes it: steps, and how elements are walked and addressed, in
// the order of the input's memory.
#pragma once

#include <cstdint>

#include "backward.h"
#include "pass.h"

namespace epiconv {

// Where the gradient of an operand goes: along the walk, or into sums, one for each of its elements, where it
// is broadcast. Sums lie in the order of the operand's dimensions.
struct GradientAccess {
  bool is_summed = false;
  Access access;
  std::int64_t num_sums = 0;
};

struct BackwardPass {
  BackwardProgram program;
  BackwardProgram norm_program;  // the first sweep; without steps where no gradient reaches a GroupNorm
  bool double_precision = false;
  Walk walk;
  Access saved, output_gradient, input_gradient;
  Access operands[kNumBackwardPlaces];
  GradientAccess gradients[kNumOperandPlaces];
  GroupNormShape norm;
};

struct BackwardAddresses {
  const void* saved = nullptr;
  const void* output_gradient = nullptr;
  const void* mean = nullptr;
  const void* rstd = nullptr;
  void* input_gradient = nullptr;
  const void* operands[kNumBackwardPlaces] = {};
  double numbers[kMaxOperands] = {};
  void* gradients[kNumOperandPlaces] = {};
};

}  // namespace epiconv
