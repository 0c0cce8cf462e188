// A kernel compiled at run time for one plan: that of conv_kernel.h, in which all that the plan knows is a
// constant and every step of the program is code of its own.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "sm80/parameters.h"

namespace epiconv::sm80 {

class CompiledConv {
 public:
  // nullptr, with a sentence in `why_not`, where it cannot be compiled. `capability`: of the card, 90
  // for 9.0.
  static std::shared_ptr<const CompiledConv> make(const ConvParameters& parameters, int chunk_sums,
                                                  int capability, std::string& why_not);
  ~CompiledConv();

  // What cudaLaunchKernel takes; its arguments are a ConvLaunch and, of im2col_conv.h, Im2colMaps. Loaded at
  // the first call.
  const void* function() const;

 private:
  explicit CompiledConv(std::string machine_code) : machine_code_(std::move(machine_code)) {}

  std::string machine_code_;
  mutable std::once_flag is_loaded_;
  mutable const void* function_ = nullptr;
};

}  // namespace epiconv::sm80
