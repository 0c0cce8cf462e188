#include "sm90/choose_kernel.h"

namespace epiconv::sm90 {

FpropKernel fprop_fp16(const LoweredProgram& program, bool only_of_filters) {
  return choose_kernel<Fp16, __half>(program, only_of_filters, ConvRecipes{});
}

}  // namespace epiconv::sm90
