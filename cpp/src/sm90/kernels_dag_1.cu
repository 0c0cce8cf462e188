#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {

ConvKernel dag_kernel_1() {
  return conv_kernel<AnyMath, Interpreted<ConvShape<4, false, 2>, kMaxLiveValues>>("f32_interpreted_dag");
}

}  // namespace epiconv::sm90
