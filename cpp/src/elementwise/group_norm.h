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

// Statistics that a convolution has taken of what it stored: [sample][row][channel], float32; `counts` of
// [sample][row] values each.
struct TileMoments {
  const float* means;
  const float* squares;
  const float* counts;
  std::int64_t rows;  // of a sample
};

// Merges them into `tables`, 3 * samples * channels, and sets the operands' addresses as above.
void finish_statistics(const GroupNormShape& norm, const TileMoments& moments, float* tables,
                       PassPointers& pointers, void* stream);

}  // namespace epiconv
