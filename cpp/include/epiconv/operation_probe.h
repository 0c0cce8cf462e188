// Runs single rows of the operation table over arrays: the tests' way to compare each with torch.
#pragma once

#include <cstdint>

#include "epiconv/dtype.h"
#include "epiconv/epilogue.h"
#include "epiconv/export.h"

namespace epiconv {

struct OperationProbe {
  Opcode op;
  DType dtype;            // float32 or float64, of all arrays
  std::int64_t count;     // elements in each array
  const void* inputs[3];  // a, b, c of ops::Inputs
  double parameters[2];   // p, q
  void* results[4];       // the value, then the derivatives for a, b and c
};

// Arrays in host memory.
EPICONV_API void evaluate_operation_cpu(const OperationProbe& probe);
// Arrays on the current device; `stream` is a cudaStream_t.
EPICONV_API void evaluate_operation_cuda(const OperationProbe& probe, void* stream);

}  // namespace epiconv
