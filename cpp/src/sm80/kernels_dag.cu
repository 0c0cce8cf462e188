#include "sm80/conv_kernel.h"
#include "sm80/conv_kernels.h"

namespace epiconv::sm80 {

ConvKernel dag_kernel() {
  return conv_kernel<Interpreted<ConvShape<2>, kMaxLiveValues>>("f32_interpreted_dag");
}

}  // namespace epiconv::sm80
