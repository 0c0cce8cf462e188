// The CUDA engine for a program over a tensor in memory: what follows a convolution that is not ours.
#pragma once

#include <cstddef>
#include <string>

#include "pass.h"

namespace epiconv {

// The name of the evaluator and its type: "f32_static", "f64_interpreted"…
std::string cuda_pass_kernel(const Pass& pass);

std::size_t cuda_pass_workspace_bytes(const Pass& pass);

// Launches a pass on the current device, whose number is `device`; `stream` is a cudaStream_t.
void launch_pass_cuda(const Pass& pass, const PassPointers& pointers, int device, void* stream);

}  // namespace epiconv
