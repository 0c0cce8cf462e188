// From clocks of a kernel to microseconds of a call (docs/planner.md).
#pragma once

#include <cstdint>

#include "ceilings.h"
#include "epiconv/conv_plan.h"
#include "epiconv/predicted_time.h"

namespace epiconv {

// Kernels whose clocks are fitted alike.
enum class KernelKind : std::uint8_t {
  kPortable,
  kGathered,  // with warpgroups, of an input that threads bring element by element
  kInPieces,  // or in pieces of 16 bytes
  kIm2col,    // of one that the copy engine brings tap by tap
  kHalo,      // or with its halos
};

// What a convolution of ours does besides what its tiles' clocks are of.
struct KernelDemand {
  KernelKind kind;
  PlannedClocks clocks;
  bool copies_input = false;  // so that channels lie side by side, before the kernel runs
  double program_clocks = 0;  // of a multiprocessor for an output, that the kernel's clocks leave out
  int stored_bytes = 0;       // of an element that it stores; 0: the output's
  int pass_bytes = 0;         // that a pass behind it moves, of an element; 0: there is none
};

// How many of them a program computes for an output, about.
int special_functions(const Program& program);

// Of a multiprocessor for an output: what a program takes that is compiled into the store stage, and its
// operand that is brought beside it.
double compiled_clocks(const ConvPlanProblem& problem, bool has_staged_operand);

PredictedTime predict_kernel(const ConvPlanProblem& problem, const KernelDemand& demand);
// torch's convolution, without bias, with a pass behind it.
PredictedTime predict_fallback(const ConvPlanProblem& problem);

}  // namespace epiconv
