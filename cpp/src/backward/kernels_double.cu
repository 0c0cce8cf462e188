#include "backward/any_program.h"

namespace epiconv::backward {

const Kernels& double_kernels() {
  static const Kernels kernels = kernels_of<double>();
  return kernels;
}

}  // namespace epiconv::backward
