// The CPU engine's backward pass.
#pragma once

#include "backward_pass.h"

namespace epiconv {

// Runs it over host memory on at most `threads` threads.
void run_backward_pass_cpu(const BackwardPass& pass, const BackwardAddresses& addresses, int threads);

}  // namespace epiconv
