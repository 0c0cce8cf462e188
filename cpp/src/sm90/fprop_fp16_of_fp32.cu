#include "sm90/choose_kernel.h"

namespace epiconv::sm90 {

FpropKernel fprop_fp16_of_fp32(const LoweredProgram& program, bool only_of_filters) {
  return choose_kernel<Fp16, float>(program, only_of_filters, ConvRecipes{});
}

}  // namespace epiconv::sm90
