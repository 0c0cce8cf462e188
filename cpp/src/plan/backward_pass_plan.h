// From the backward pass of a program over a tensor to what an engine runs.
#pragma once

#include "backward_pass.h"
#include "epiconv/backward_plan.h"

namespace epiconv {

// Throws InvalidArgument when shapes do not fit.
BackwardPass make_backward_pass(const BackwardProblem& problem);

}  // namespace epiconv
