// The kernels for a program: one function for each of device/chunk.h's shapes, each in a file of its own.
#pragma once

#include "lowering.h"

namespace epiconv {

// With which PassParameters kernels are launched.
enum class ParametersKind { kStatic, kInterpreted, kLarge, kDouble };

struct PassKernels {
  const char* name;  // of the evaluator and its type: "f32_interpreted_chain"
  ParametersKind parameters;
  int word;  // elements of a word, and words of the chunk that a thread computes at a time
  int words;
  bool takes_folded_steps;         // of fold_steps.h
  const void* pass;                // epilogue_pass
  const void* range_statistics;    // gather_range_moments; nullptr where the program has no GroupNorm
  const void* channel_statistics;  // gather_channel_moments; likewise
};

const PassKernels& kernels_32_bit(const LoweredProgram& program);
const PassKernels& kernels_16_bit(const LoweredProgram& program);
const PassKernels& kernels_large(const LoweredProgram& program);
const PassKernels& kernels_double(const LoweredProgram& program);

}  // namespace epiconv
