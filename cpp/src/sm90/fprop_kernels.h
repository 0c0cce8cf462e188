// The convolution kernels for a program: one function for each pair of math and input, in a file of its own.
// `only_of_filters`: every operand has one element for each filter.
#pragma once

#include "lowering.h"

namespace epiconv::sm90 {

struct FpropKernel {
  const char* evaluator;  // "f32_static"
  const void* function;
  bool takes_folded_steps;  // of device/fold_steps.h
};

FpropKernel fprop_tf32(const LoweredProgram& program, bool only_of_filters);          // of float32
FpropKernel fprop_bf16(const LoweredProgram& program, bool only_of_filters);          // of bfloat16
FpropKernel fprop_fp16(const LoweredProgram& program, bool only_of_filters);          // of float16
FpropKernel fprop_bf16_of_fp32(const LoweredProgram& program, bool only_of_filters);  // of float32, rounded
FpropKernel fprop_fp16_of_fp32(const LoweredProgram& program, bool only_of_filters);

}  // namespace epiconv::sm90
