// The CPU engine.
#pragma once

#include "pass.h"

namespace epiconv {

// Runs a pass over host memory on at most `threads` threads, which are started for the call: nothing is left
// that a fork could lose.
void run_pass_cpu(const Pass& pass, const PassPointers& pointers, int threads);

}  // namespace epiconv
