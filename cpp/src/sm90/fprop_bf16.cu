#include "sm90/choose_kernel.h"

namespace epiconv::sm90 {

FpropKernel fprop_bf16(const LoweredProgram& program, bool only_of_filters) {
  return choose_kernel<Bf16, __nv_bfloat16>(program, only_of_filters, ConvRecipes{});
}

}  // namespace epiconv::sm90
