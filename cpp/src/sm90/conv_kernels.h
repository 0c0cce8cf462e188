// The convolution kernels by what runs the program, each in a file of its own. Those of static programs are
// for one math each: with the code of all, bf16 in NCHW took 3 to 5 % longer. The interpreters are for every
// math. `interleave` is that of the geometry.
#pragma once

#include "epiconv/conv_plan.h"
#include "lowering.h"

namespace epiconv::sm90 {

struct ConvKernel {
  const char* evaluator;    // "f32_static"
  const void* function;     // nullptr: there is none
  bool takes_folded_steps;  // of device/fold_steps.h
};

// Made for this very program, whose operands all have one element for each filter.
// Of joint rows only with a GroupNorm.
ConvKernel static_kernel(const LoweredProgram& program, ConvMath math, int interleave, int joint_rows);
// For any chain.
ConvKernel chain_kernel(int interleave);
// For any program.
ConvKernel dag_kernel(int interleave);

}  // namespace epiconv::sm90
