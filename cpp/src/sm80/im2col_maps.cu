#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "epiconv/error.h"
#include "sm80/im2col_maps.h"

namespace epiconv::sm80 {
namespace {

template <typename Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result);
  if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    throw CudaError(concat("the NVIDIA driver offers no ", name, " of CUDA 12.0: update the driver"));
  }
  return reinterpret_cast<Function>(function);
}

CUtensorMapDataType type_of(ConvMath math) {
  switch (math) {
    case ConvMath::kBf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case ConvMath::kFp16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;  // as which the copy engine rounds
  }
}

}  // namespace

void make_im2col_maps(const Geometry& g, ConvMath math, const TensorLayout& input, const void* data,
                      Im2colMaps& maps) {
  static const auto encode = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  constexpr int kMostRank = 5;
  const int rank = im2col_rank(g), spatial = rank - 2;
  cuuint64_t extents[kMostRank], strides[kMostRank];
  cuuint32_t steps[kMostRank];
  const auto set = [&](int at, std::int64_t extent, std::int64_t stride, std::int32_t step) {
    extents[at] = static_cast<cuuint64_t>(extent);
    // A dimension of one pixel may have any stride; that of the copy engine is a multiple of 16.
    strides[at] = extent == 1 ? kPieceBytes : static_cast<cuuint64_t>(stride * g.element_bytes);
    steps[at] = static_cast<cuuint32_t>(step);
  };
  set(0, std::int64_t{g.groups} * g.channels, 1, 1);
  for (int i = 0; i < spatial; ++i) {
    const int d = kDims - 1 - i;
    set(1 + i, g.input[d], input.strides[2 + d], g.advance(d));
  }
  set(rank - 1, g.batch, input.strides[0], 1);
  for (std::int32_t number = 0; number < g.all_phases(); ++number) {
    const Phase phase = Phase::at(g, number);
    int low[kDims], high[kDims];
    for (int i = 0; i < spatial; ++i) {
      const int d = kDims - 1 - i;
      const Im2colRange range = Im2colRange::of(g, d, phase.of[d]);
      low[i] = range.low;
      high[i] = range.high;
    }
    CUtensorMap map;
    const CUresult status = encode(
        &map, type_of(math), static_cast<cuuint32_t>(rank), const_cast<void*>(data), extents, strides + 1,
        low, high, static_cast<cuuint32_t>(kStepBytes / g.element_bytes),
        static_cast<cuuint32_t>(g.tile_positions), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) {
      throw CudaError(concat("cuTensorMapEncodeIm2col failed with error ", static_cast<int>(status),
                             " for an input of ", g.batch, " x ", g.groups * g.channels, " x ", g.input[0],
                             " x ", g.input[1], " x ", g.input[2]));
    }
    static_assert(sizeof(map) == sizeof(Im2colMap));
    std::memcpy(&maps.of_phase[number], &map, sizeof(map));
  }
}

namespace {

// Bytes to the next row, and to the next of so many matrices; of one alone `count` is 0.
struct Matrices {
  std::int64_t columns, rows, row_bytes;
  std::int64_t count = 0, matrix_bytes = 0;
};

Im2colMap make_matrix_map(CUtensorMapDataType type, const void* data, const Matrices& m, int box_columns,
                          int box_rows, CUtensorMapSwizzle swizzle) {
  static const auto encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  const auto stride = [](std::int64_t bytes) {
    return static_cast<cuuint64_t>(bytes == 0 ? kPieceBytes : bytes);  // of one row any multiple
  };
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows),
                                static_cast<cuuint64_t>(m.count)};
  const cuuint64_t strides[] = {stride(m.row_bytes), stride(m.matrix_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, type, m.count == 0 ? 2 : 3, const_cast<void*>(data), extents, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw CudaError(concat("cuTensorMapEncodeTiled failed with error ", static_cast<int>(status),
                           " for matrices of ", m.rows, " x ", m.columns));
  }
  Im2colMap result;
  std::memcpy(&result, &map, sizeof(map));
  return result;
}

}  // namespace

namespace {

CUtensorMapDataType type_of(DType dtype) {
  return dtype == DType::kFloat32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
         : dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

// Of a tensor (W, H, D, C, N) whose pixels lie side by side: lines of so many pixels of each of so many
// channels.
Im2colMap make_line_map(const Geometry& g, CUtensorMapDataType type, const TensorLayout& tensor,
                        const void* data, const std::int32_t (&pixels)[kDims], std::int64_t channels,
                        int line_pixels, int line_channels, CUtensorMapSwizzle swizzle) {
  static const auto encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  constexpr int kRank = 2 + kDims;
  const std::int64_t of_dims[] = {pixels[2], pixels[1], pixels[0], channels, g.batch};
  const int stride_of[] = {4, 3, 2, 1, 0};
  cuuint64_t extents[kRank], strides[kRank];
  for (int i = 0; i < kRank; ++i) {
    extents[i] = static_cast<cuuint64_t>(of_dims[i]);
    // A dimension of one pixel may have any stride; that of the copy engine is a multiple of 16.
    const std::int64_t bytes = tensor.strides[stride_of[i]] * dtype_size(tensor.dtype);
    strides[i] = static_cast<cuuint64_t>(of_dims[i] == 1 ? kPieceBytes : bytes);
  }
  const cuuint32_t box[] = {static_cast<cuuint32_t>(line_pixels), 1, 1,
                            static_cast<cuuint32_t>(line_channels), 1};
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, type, kRank, const_cast<void*>(data), extents, strides + 1, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw CudaError(concat("cuTensorMapEncodeTiled failed with error ", static_cast<int>(status),
                           " for a tensor of ", g.batch, " x ", channels, " x ", pixels[0], " x ", pixels[1],
                           " x ", pixels[2]));
  }
  Im2colMap result;
  std::memcpy(&result, &map, sizeof(map));
  return result;
}

}  // namespace

Im2colMap make_input_line_map(const Geometry& g, ConvMath math, const TensorLayout& input, const void* data) {
  const int elements = kStepBytes / g.element_bytes;  // pixels, and channels of a step
  return make_line_map(g, type_of(math), input, data, g.input, std::int64_t{g.groups} * g.channels, elements,
                       elements, CU_TENSOR_MAP_SWIZZLE_128B);
}

Im2colMap make_slice_map(const Geometry& g, const TensorLayout& output, const void* data) {
  const int size = dtype_size(output.dtype), columns = g.im2col_slice_bytes / size;
  const CUtensorMapSwizzle swizzle =
      g.im2col_slice_bytes == kStepBytes ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const std::int64_t filters = std::int64_t{g.groups} * g.filters, pixels = g.image_positions();
  if (g.im2col_lines) {
    return make_line_map(g, type_of(output.dtype), output, data, g.output, filters, columns, kSliceRows,
                         swizzle);
  }
  const Matrices pixel_rows{filters, g.batch * pixels, filters * size};
  const Matrices images{pixels, filters, output.strides[1] * size, g.batch, output.strides[0] * size};
  return make_matrix_map(type_of(output.dtype), data, g.filters_are_rows ? images : pixel_rows, columns,
                         kSliceRows, swizzle);
}

Im2colMap make_weights_map(const Geometry& g, const void* packed) {
  const std::int64_t first = g.packed_step(0, 0, 0, 0), end = g.packed_step(g.all_phases(), 0, 0, 0);
  return make_matrix_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, static_cast<const std::uint8_t*>(packed) + first,
                         {kStepBytes / 4, (end - first) / kStepBytes, kStepBytes}, kStepBytes / 4,
                         g.tile_filters / g.im2col_cluster, CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace epiconv::sm80
