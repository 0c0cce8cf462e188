// What the convolution kernels are launched with.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/chunk.h"
#include "epiconv/conv_plan.h"
#include "sm90/fragments.h"
#include "sm90/tile_walk.h"

namespace epiconv::sm90 {

// A tensor over (N, K, P, Q). Strides in elements; each fits 32 bits, so that an offset takes one multiply
// per dimension: 64-bit products slow the tensor cores down.
static_assert(kNumFilterOperands == kNumOperandPlaces);
using PixelTensor = TensorRef<std::int32_t, 4>;

// The names are those that the evaluators read.
struct EpilogueParameters {
  using T = float;
  using Tensor = PixelTensor;
  static constexpr int kSteps = kMaxSteps;

  Tensor output;
  Tensor operands[kNumOperandPlaces];
  std::int32_t num_steps;
  std::int32_t num_before_norm;
  std::int32_t save_input;  // slot for v0, or -1
  std::uint8_t fetches[kSteps];
  Step<T> steps[kSteps];
  StoreKind store;
  bool runs_in_place;  // all steps are folded ones, with one element for each filter
  // Places of the operands that have one element for each filter: first those with the same in all images.
  std::uint8_t num_of_filters, num_of_all_images;
  std::uint8_t of_filters[kNumOperandPlaces];
};

// Statistics go to memory tile by tile, as a mean and the sum of squared distances from it, and are merged in
// the order of tiles: the result depends on the shape alone.
struct NormParameters {
  NormPlan plan;
  std::int32_t groups;
  Divisor group_filters{1};
  // Filters that a warpgroup has of a group come in segments, as many as divide a group and what it has.
  std::int32_t segment_filters, segments, share_segments, group_segments;
  std::int32_t image_rows;  // of partial results: runs of an image, times row phases
  float2* partials;         // [image][run][row phase][segment]: mean, squared distances from it
  float* counts;            // [image][run][row phase]: elements of a segment
  // In one kernel. [image]: how many of its tiles have been published, and one less; what the last one finds.
  std::uint32_t* arrived;
  std::uint32_t last_arrives;
  double epsilon;
  double inverse_count;  // of a group's elements
  const void* weight;    // of the affine, or nullptr
  const void* shift;
  DType weight_dtype, shift_dtype;
  std::int64_t weight_stride, shift_stride;
  // [image][filter]
  float* negated_means;
  float* scales;
  float* shifts;
};

// Input of the gather producer, (N, C, H, W); strides in elements.
struct GatheredInput {
  const void* data;
  std::int64_t stride_n, stride_c, stride_h;
  std::int32_t stride_w;
  PaddingMode padding_mode;
  bool in_vectors;  // channels lie side by side, in aligned 16 bytes
  bool in_pairs;    // pixels lie side by side, in aligned pairs, around which are zeros
};

struct ConvParameters {
  CUtensorMap input_map;   // of a load by boxes or rows
  CUtensorMap output_map;  // of StoreKind::kBoxes
  GatheredInput input;     // of a load by gathering
  const void* weights;     // packed
  ConvMath math;
  InputLoad load;
  HaloGeometry geometry;
  Visits visits;
  EpilogueParameters epilogue;
  NormParameters norm;
};

#if defined(__CUDACC__)
__device__ __forceinline__ BlockTiles block_tiles(const ConvParameters& p) {
  return {p.geometry, p.visits, static_cast<std::int32_t>(blockIdx.x), static_cast<std::int32_t>(gridDim.x)};
}
#endif

}  // namespace epiconv::sm90
