#include "elementwise/choose_kernels.h"

namespace epiconv {

const PassKernels& kernels_double(const LoweredProgram&) {
  return kernels_of_evaluator<Interpreted<ShapeOfDouble, kMaxLiveValues>, true>("f64_interpreted");
}

}  // namespace epiconv
