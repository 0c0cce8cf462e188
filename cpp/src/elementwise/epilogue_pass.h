// The CUDA engine for a program over a tensor in memory: what follows a convolution that is not ours.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "pass.h"

namespace epiconv {

// A pass that is ready to be launched any number of times.
class CudaPass {
 public:
  explicit CudaPass(const Pass& pass);
  ~CudaPass();

  // The name of the evaluator and its type: "f32_static", "f32_interpreted_chain"…
  std::string kernel() const;
  std::size_t workspace_bytes() const;

  // Launches it on the current device, whose number is `device`; `stream` is a cudaStream_t.
  void launch(const PassPointers& pointers, int device, void* stream) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace epiconv
