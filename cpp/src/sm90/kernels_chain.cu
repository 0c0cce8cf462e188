#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {

// Strides of 3 and 4 are rare enough to leave chains to the other interpreter.
ConvKernel chain_kernel(int interleave) {
  const char* const name = "f32_interpreted_chain";
  if (interleave == 0) return conv_kernel<AnyMath, Interpreted<ConvShape<8, false, 1>, 0>>(name);
  if (interleave == 1) return conv_kernel<AnyMath, Interpreted<ConvShape<8, false, 2>, 0>>(name);
  return {};
}

}  // namespace epiconv::sm90
