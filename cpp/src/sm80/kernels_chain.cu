#include "sm80/conv_kernel.h"
#include "sm80/conv_kernels.h"

namespace epiconv::sm80 {

ConvKernel chain_kernel() { return conv_kernel<Interpreted<ConvShape<4>, 0>>("f32_interpreted_chain"); }

}  // namespace epiconv::sm80
