// Host side: the device that launches go to.
#pragma once

#include <cuda_runtime_api.h>

#include "epiconv/error.h"

namespace epiconv {

// This copy of the CUDA runtime need not know which device the caller's copy has made current.
inline void make_current(int device) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current == device) return;
  const cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat("cudaSetDevice(", device, ") failed: ", cudaGetErrorName(status), ", ",
                         cudaGetErrorString(status)));
}

}  // namespace epiconv
