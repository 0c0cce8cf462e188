#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {

ConvKernel dag_kernel(int interleave) {
  const char* const name = "f32_interpreted_dag";
  if (interleave == 0) return conv_kernel<AnyMath, Interpreted<ConvShape<4, false, 1>, kMaxLiveValues>>(name);
  if (interleave == 1) return conv_kernel<AnyMath, Interpreted<ConvShape<4, false, 2>, kMaxLiveValues>>(name);
  return conv_kernel<AnyMath, Interpreted<ConvShape<4, false, 4>, kMaxLiveValues>>(name);
}

}  // namespace epiconv::sm90
