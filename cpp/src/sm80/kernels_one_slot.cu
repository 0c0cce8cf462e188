#include "sm80/conv_kernel.h"
#include "sm80/conv_kernels.h"

namespace epiconv::sm80 {

ConvKernel one_slot_kernel() {
  return conv_kernel<Interpreted<ConvShape<4>, 1>>("f32_interpreted_dag_of_one_slot");
}

}  // namespace epiconv::sm80
