#include "device/current_device.h"
#include "sm80/implicit_conv.h"
#include "sm80/math.h"

namespace epiconv::sm80 {
namespace {

constexpr int kPackThreads = 256;

struct PackParameters {
  Geometry geometry;
  ConvMath math;
  WeightLayout weight;
  const void* data;
  std::uint8_t* packed;
  std::int64_t phases, entries, pieces;  // in all
};

__device__ __forceinline__ PhaseTaps taps_of(const Geometry& g, std::int32_t phase) {
  const std::int32_t of_depth = g.phases[1] * g.phases[2];
  const std::int32_t depth = phase / of_depth, rest = phase - depth * of_depth;
  const std::int32_t phases[kDims] = {depth, rest / g.phases[2], rest % g.phases[2]};
  return PhaseTaps::of(g, phases);
}

// Entry number `index` of all phases.
__device__ __forceinline__ void pack_entry(const PackParameters& p, std::int64_t index) {
  const Geometry& g = p.geometry;
  const std::int32_t of_phase = g.most_steps * g.step_elements;
  const auto phase = static_cast<std::int32_t>(index / of_phase);
  const auto k = static_cast<std::int32_t>(index - std::int64_t{phase} * of_phase);
  const PhaseTaps taps = taps_of(g, phase);
  const PackedEntry entry =
      k < taps.elements ? Reduced::of(g, taps, k).packed(taps) : PackedEntry{{0, 0, 0}, -1, 0};
  *reinterpret_cast<PackedEntry*>(p.packed + g.packed_entry(phase, k)) = entry;
}

template <typename Math>
__device__ __forceinline__ uint4 packed_piece(const PackParameters& p, std::int32_t phase, std::int32_t group,
                                              std::int32_t filter, std::int32_t first) {
  const Geometry& g = p.geometry;
  const PhaseTaps taps = taps_of(g, phase);
  union {
    typename Math::Element elements[Math::kPieceElements];
    uint4 piece;
  };
#pragma unroll
  for (int e = 0; e < Math::kPieceElements; ++e) {
    float value = 0.0f;
    if (filter < g.filters && first + e < taps.elements) {
      const Reduced k = Reduced::of(g, taps, first + e);
      std::int64_t at =
          group * p.weight.group_stride + filter * p.weight.strides[0] + k.channel * p.weight.strides[1];
      for (int d = 0; d < kDims; ++d) at += k.tap(taps, d) * p.weight.strides[2 + d];
      value = load_element<float>(p.data, p.weight.dtype, at);
    }
    elements[e] = Math::element(value);
  }
  return piece;
}

// Of all [phase][group][step][filter][piece].
__device__ __forceinline__ void pack_piece(const PackParameters& p, std::int64_t index) {
  const Geometry& g = p.geometry;
  const auto take = [&](std::int32_t extent) {
    const std::int64_t quotient = index / extent;
    const auto rest = static_cast<std::int32_t>(index - quotient * extent);
    index = quotient;
    return rest;
  };
  const std::int32_t piece = take(kStepPieces), filter = take(g.filter_rows), step = take(g.most_steps);
  const std::int32_t group = take(g.groups), phase = take(g.all_phases());
  const std::int32_t first = step * g.step_elements + piece * g.piece_elements;
  uint4 packed;
  visit_math(p.math, [&]<typename Math>() { packed = packed_piece<Math>(p, phase, group, filter, first); });
  const std::int64_t row = g.packed_step(phase, group, step) + std::int64_t{filter} * kStepBytes;
  *reinterpret_cast<uint4*>(p.packed + row + swizzled(filter, piece)) = packed;
}

__global__ void __launch_bounds__(kPackThreads) pack(const __grid_constant__ PackParameters p) {
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (index < p.phases) {
    const auto phase = static_cast<std::int32_t>(index);
    *reinterpret_cast<PackedPhase*>(p.packed + p.geometry.packed_phase(phase)) =
        taps_of(p.geometry, phase).packed(p.geometry);
  } else if ((index -= p.phases) < p.entries) {
    pack_entry(p, index);
  } else if ((index -= p.entries) < p.pieces) {
    pack_piece(p, index);
  }
}

}  // namespace

void pack_weights(const Geometry& geometry, ConvMath math, const void* weight, const WeightLayout& layout,
                  void* packed, int device, void* stream) {
  make_current(device);
  const Geometry& g = geometry;
  const std::int64_t entries = std::int64_t{g.all_phases()} * g.most_steps * g.step_elements;
  const std::int64_t rows = std::int64_t{g.all_phases()} * g.groups * g.most_steps * g.filter_rows;
  PackParameters p{g,
                   math,
                   layout,
                   weight,
                   static_cast<std::uint8_t*>(packed),
                   g.all_phases(),
                   entries,
                   rows * kStepPieces};
  void* arguments[] = {&p};
  const auto blocks =
      static_cast<unsigned>((p.phases + entries + p.pieces + kPackThreads - 1) / kPackThreads);
  const cudaError_t status =
      cudaLaunchKernel(reinterpret_cast<const void*>(&pack), dim3(blocks), dim3(kPackThreads), arguments, 0,
                       static_cast<cudaStream_t>(stream));
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat("the packing of weights, ", g.groups, " x ", g.filters, " x ", g.channels, " x ",
                         g.taps[0], " x ", g.taps[1], " x ", g.taps[2],
                         ", failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace epiconv::sm80
