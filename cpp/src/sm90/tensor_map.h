// Host side: the descriptor with which the copy engine reads an NHWC input. The driver makes it; its function
// is asked of the runtime, so that nothing links libcuda.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "epiconv/error.h"
#include "sm90/fprop.h"

namespace epiconv::sm90 {

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                                cudaEnableDefault, &found);
    if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      cudaGetLastError();
      throw CudaError("the NVIDIA driver offers no cuTensorMapEncodeTiled of CUDA 12.0: update the driver");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// A box is one row of a tile's box: row_bytes of channels, `pitch` pixels.
inline CUtensorMap input_map(const FpropProblem& problem, const void* data) {
  const HaloGeometry& g = problem.geometry;
  const auto bytes = [&](int d) {
    return static_cast<cuuint64_t>(problem.input.strides[d] * dtype_size(problem.input.dtype));
  };
  // A dimension of one pixel may have any stride; that of the copy engine is a multiple of 16.
  const auto stride = [&](int d, std::int64_t extent) { return extent == 1 ? cuuint64_t{16} : bytes(d); };
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(g.channels), static_cast<cuuint64_t>(g.width),
                                static_cast<cuuint64_t>(g.height), static_cast<cuuint64_t>(g.batch)};
  const cuuint64_t strides[] = {stride(3, g.width), stride(2, g.height), stride(0, g.batch)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(g.row_bytes / g.element_bytes), g.pitch.divisor, 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUtensorMapDataType type = problem.math == ConvMath::kTf32   ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                                   : problem.math == ConvMath::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUtensorMapSwizzle swizzle = g.row_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : g.row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                         : CU_TENSOR_MAP_SWIZZLE_32B;
  CUtensorMap map;
  const CUresult status = tensor_map_encoder()(
      &map, type, 4, const_cast<void*>(data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw CudaError(concat("cuTensorMapEncodeTiled failed with error ", static_cast<int>(status),
                           " for an input of ", g.batch, " x ", g.channels, " x ", g.height, " x ", g.width));
  }
  return map;
}

}  // namespace epiconv::sm90
