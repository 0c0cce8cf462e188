#include "sm90/choose_kernel.h"

namespace epiconv::sm90 {

FpropKernel fprop_tf32(const LoweredProgram& program, bool only_of_filters) {
  return choose_kernel<Tf32, float>(program, only_of_filters, Tf32Programs{});
}

}  // namespace epiconv::sm90
