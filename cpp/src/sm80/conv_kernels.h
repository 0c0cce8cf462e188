// The kernels, each in a file of its own.
#pragma once

namespace epiconv::sm80 {

struct ConvKernel {
  const char* evaluator;  // "f32_interpreted_chain"
  const void* function;
};

// For programs that are chains (LoweredProgram::is_chain), for those that keep one value besides, and for
// all; `is_wide`: for tiles of 128 filters.
ConvKernel chain_kernel(bool is_wide);
ConvKernel one_slot_kernel(bool is_wide);
ConvKernel dag_kernel(bool is_wide);

}  // namespace epiconv::sm80
