// The CUDA engine for the backward pass of a program over tensors in memory.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "backward_pass.h"

namespace epiconv {

class CudaBackward {
 public:
  // `capability`: of the card for which kernels are compiled, 90 for 9.0; 0: those of any program run. Throws
  // NotSupported for programs of more steps than a kernel takes.
  CudaBackward(const BackwardPass& pass, int capability);
  ~CudaBackward();

  // "f32_compiled", "f32_interpreted"…
  const std::string& kernel() const;
  // Why nothing was compiled, where that was asked for; else "".
  const std::string& why_not_compiled() const;
  std::size_t workspace_bytes() const;

  // Launches it on the current device, whose number is `device`; `stream` is a cudaStream_t. `workspace` is
  // aligned to 16 bytes.
  void launch(const BackwardAddresses& addresses, void* workspace, int device, void* stream) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace epiconv
