// The kernels, each in a file of its own.
#pragma once

namespace epiconv::sm80 {

struct ConvKernel {
  const char* evaluator;  // "f32_interpreted_chain"
  const void* function;
};

// For programs that are chains (LoweredProgram::is_chain), for those that keep one value besides, and for
// all.
ConvKernel chain_kernel();
ConvKernel one_slot_kernel();
ConvKernel dag_kernel();

}  // namespace epiconv::sm80
