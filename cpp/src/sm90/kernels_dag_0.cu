#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {

ConvKernel dag_kernel_0() {
  return conv_kernel<AnyMath, Interpreted<ConvShape<4, false, 1>, kMaxLiveValues>>("f32_interpreted_dag");
}

}  // namespace epiconv::sm90
