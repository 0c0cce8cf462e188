// Host side: a program's steps as a kernel's parameters.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device/fold_steps.h"
#include "pass.h"

namespace epiconv {

// Of the pass only the program counts; `takes_folded_steps` is the evaluator's.
template <typename Parameters>
void set_steps(Parameters& parameters, const Pass& pass, const PassPointers& pointers,
               bool takes_folded_steps) {
  Step<typename Parameters::T>* const steps = parameters.steps;
  fill_steps(pass, pointers, steps);
  const int before_norm = pass.program.num_before_norm;
  const int behind = static_cast<int>(pass.program.steps.size()) - before_norm;
  parameters.num_before_norm = before_norm;
  parameters.num_steps = before_norm + behind;
  if (takes_folded_steps) {
    parameters.num_before_norm = fold_steps(steps, before_norm);
    std::copy(steps + before_norm, steps + before_norm + behind, steps + parameters.num_before_norm);
    parameters.num_steps =
        parameters.num_before_norm + fold_steps(steps + parameters.num_before_norm, behind);
  }
  for (int i = 0; i < parameters.num_steps; ++i) {
    parameters.fetches[i] = static_cast<std::uint8_t>(fetches_of(steps[i]));
  }
}

}  // namespace epiconv
