#include "backward/any_program.h"

namespace epiconv::backward {

const Kernels& float_kernels() {
  static const Kernels kernels = kernels_of<float>();
  return kernels;
}

}  // namespace epiconv::backward
