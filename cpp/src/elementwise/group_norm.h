// GroupNorm's first half on CUDA: mean, scale and shift of every (sample, channel), which the pass then
// reads.
#pragma once

#include <cstddef>

#include "elementwise/pass_kernels.h"
#include "pass.h"

namespace epiconv {

std::size_t group_norm_workspace_bytes(const Pass& pass);

// Launches the statistics of pass.program's first num_before_norm steps, and sets the addresses of the
// operands kMeanOperand, kScaleOperand and kShiftOperand, which lie in the workspace.
void launch_group_norm_statistics(const Pass& pass, const PassKernels& kernels, PassPointers& pointers,
                                  void* stream);

}  // namespace epiconv
