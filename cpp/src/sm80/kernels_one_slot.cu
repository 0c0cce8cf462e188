#include "sm80/conv_kernel.h"
#include "sm80/conv_kernels.h"

namespace epiconv::sm80 {

ConvKernel one_slot_kernel(bool is_wide) {
  return conv_kernel<Interpreted<ConvShape<4>, 1>>("f32_interpreted_dag_of_one_slot", is_wide);
}

}  // namespace epiconv::sm80
