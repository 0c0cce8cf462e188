// From a program over a tensor to the pass that an engine runs.
#pragma once

#include "epiconv/epilogue_plan.h"
#include "pass.h"

namespace epiconv {

// Throws InvalidArgument when shapes do not fit.
Pass make_pass(const EpilogueProblem& problem);

// What of the problem's program comes behind its GroupNorm's statistics, over the value before: normalising,
// with the operands kMeanOperand and so on, and the rest. The program reads nothing older than that value
// (LoweredProgram::restarts_at_norm).
Pass make_pass_behind_statistics(const EpilogueProblem& problem);

}  // namespace epiconv
