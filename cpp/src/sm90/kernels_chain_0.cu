#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {

ConvKernel chain_kernel_0() {
  return conv_kernel<AnyMath, Interpreted<ConvShape<8, false, 1>, 0>>("f32_interpreted_chain");
}

}  // namespace epiconv::sm90
