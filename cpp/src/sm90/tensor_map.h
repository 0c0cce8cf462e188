// Host side: the descriptors with which the copy engine reads an input, by boxes or by rows, and stores an
// output. The driver makes them; its function is asked of the runtime, so that nothing links libcuda.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "epiconv/error.h"
#include "sm90/fragments.h"
#include "sm90/halo_conv.h"

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

// Of a tensor (N, C, H, W), whose dimensions are given in the map's order.
struct MapDimension {
  int dimension;  // of the tensor
  std::int32_t extent, box;
};
inline CUtensorMap tensor_map(const char* what, CUtensorMapDataType type, const TensorLayout& layout,
                              const void* data, const MapDimension (&dimensions)[4],
                              CUtensorMapSwizzle swizzle) {
  cuuint64_t extents[4], strides[4];
  cuuint32_t box[4];
  for (int i = 0; i < 4; ++i) {
    const auto [d, extent, box_extent] = dimensions[i];
    extents[i] = static_cast<cuuint64_t>(extent);
    box[i] = static_cast<cuuint32_t>(box_extent);
    // A dimension of one pixel may have any stride; that of the copy engine is a multiple of 16.
    strides[i] = extent == 1 ? 16 : static_cast<cuuint64_t>(layout.strides[d] * dtype_size(layout.dtype));
  }
  const cuuint32_t steps[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = tensor_map_encoder()(
      &map, type, 4, const_cast<void*>(data), extents, strides + 1, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw CudaError(concat("cuTensorMapEncodeTiled failed with error ", static_cast<int>(status), " for ",
                           what, " of extents ", extents[0], ", ", extents[1], ", ", extents[2], ", ",
                           extents[3]));
  }
  return map;
}

inline CUtensorMapDataType map_type(DType dtype) {
  return dtype == DType::kFloat32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
         : dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

// By boxes, what is copied at once is one row of a tile's box: row_bytes of channels of `pitch` pixels, as it
// lies in a slot. By rows, it is a raw stage.
inline CUtensorMap input_map(const HaloConvProblem& problem, const void* data) {
  const HaloGeometry& g = problem.geometry;
  const CUtensorMapDataType type = map_type(problem.input.dtype);
  if (problem.load == InputLoad::kRows) {
    return tensor_map(
        "an input (W, H, C, N)", type, problem.input, data,
        {{3, g.width, g.raw_width}, {2, g.height, 1}, {1, g.channels, g.raw_channels}, {0, g.batch, 1}},
        CU_TENSOR_MAP_SWIZZLE_NONE);
  }
  const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
  const CUtensorMapSwizzle swizzle = g.row_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : g.row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                         : CU_TENSOR_MAP_SWIZZLE_32B;
  // As TFLOAT32 the copy engine rounds.
  return tensor_map("an input (C, W, H, N)",
                    problem.math == ConvMath::kTf32 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 : type, problem.input,
                    data,
                    {{1, g.channels, g.row_bytes / g.element_bytes},
                     {3, g.width, pitch},
                     {2, g.height, 1},
                     {0, g.batch, 1}},
                    swizzle);
}

// A box is that of box_store.h.
inline CUtensorMap output_map(const HaloConvProblem& problem, const void* data) {
  const HaloGeometry& g = problem.geometry;
  const int size = dtype_size(problem.output.dtype);
  return tensor_map("an output (C, W, H, N)", map_type(problem.output.dtype), problem.output, data,
                    {{1, g.filters, line_filters(size)},
                     {3, g.out_width, box_pixels(size)},
                     {2, g.out_height, 1},
                     {0, g.batch, 1}},
                    CU_TENSOR_MAP_SWIZZLE_128B);
}

}  // namespace epiconv::sm90
