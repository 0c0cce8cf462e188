// A kernel compiled at run time for one plan: that of conv_kernel.h, in which all that the plan knows is a
// constant and every step of the program is code of its own.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "compiler/loaded_kernel.h"
#include "sm80/parameters.h"

namespace epiconv::sm80 {

class CompiledConv {
 public:
  // nullptr, with a sentence in `why_not`, where it cannot be compiled. `capability`: of the card, 90
  // for 9.0.
  static std::shared_ptr<const CompiledConv> make(const ConvParameters& parameters, int chunk_sums,
                                                  int capability, std::string& why_not);

  // What cudaLaunchKernel takes; its arguments are a ConvLaunch and, of im2col_conv.h, Im2colMaps.
  const void* function() const { return kernel_.function(); }

 private:
  CompiledConv(std::string machine_code, const char* name) : kernel_(std::move(machine_code), name) {}

  LoadedKernel kernel_;
};

}  // namespace epiconv::sm80
