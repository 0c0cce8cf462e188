#include "elementwise/choose_kernels.h"

namespace epiconv {

const PassKernels& kernels_large(const LoweredProgram&) {
  return kernels_of_evaluator<Interpreted<ShapeOfLarge, kMaxLiveValues>, true>("f32_interpreted_large");
}

}  // namespace epiconv
