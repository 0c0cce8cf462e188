// The convolution kernels by what runs the program. Those of static programs are for one math each: with the
// code of all, bf16 in NCHW took 3 to 5 % longer. The interpreters are for every math, each in a file of its
// own, since each takes the compiler minutes. `interleave` is that of the geometry.
#pragma once

#include "epiconv/conv_plan.h"
#include "lowering.h"

namespace epiconv::sm90 {

struct ConvKernel {
  const char* evaluator;    // "f32_static"
  const void* function;     // nullptr: there is none
  bool takes_folded_steps;  // of device/fold_steps.h
  bool is_static;           // made for its program, and not an interpreter
};

// Made for this very program, whose operands all have one element for each filter.
// Of joint rows only with a GroupNorm.
ConvKernel static_kernel(const LoweredProgram& program, ConvMath math, int interleave, int joint_rows);
// For any chain; strides of 3 and 4 are rare enough to leave them to the other interpreter.
ConvKernel chain_kernel_0();
ConvKernel chain_kernel_1();
inline ConvKernel chain_kernel(int interleave) {
  return interleave == 0 ? chain_kernel_0() : interleave == 1 ? chain_kernel_1() : ConvKernel{};
}
// For any program.
ConvKernel dag_kernel_0();
ConvKernel dag_kernel_1();
ConvKernel dag_kernel_2();
inline ConvKernel dag_kernel(int interleave) {
  return interleave == 0 ? dag_kernel_0() : interleave == 1 ? dag_kernel_1() : dag_kernel_2();
}

}  // namespace epiconv::sm90
