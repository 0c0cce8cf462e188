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
  std::int64_t phases, pieces;  // in all
};

__device__ __forceinline__ PhaseTaps taps_of(const Geometry& g, std::int32_t phase) {
  return PhaseTaps::of(g, Phase::at(g, phase));
}

template <typename Math>
__device__ __forceinline__ uint4 packed_piece(const PackParameters& p, std::int32_t phase, std::int32_t group,
                                              std::int32_t filter, std::int32_t step, std::int32_t piece) {
  const Geometry& g = p.geometry;
  const PhaseTaps taps = taps_of(g, phase);
  union {
    typename Math::Element elements[Math::kPieceElements];
    uint4 packed;
  };
  Reduced k{false, 0, {}, kNoPiece};
  if (filter < g.filters && step < taps.steps(g)) k = Reduced::of(g, taps, step, piece);
  std::int64_t at = group * p.weight.group_stride + filter * p.weight.strides[0];
  for (int d = 0; d < kDims; ++d) at += k.tap(taps, d) * p.weight.strides[2 + d];
#pragma unroll
  for (int e = 0; e < Math::kPieceElements; ++e) {
    const std::int32_t channel = g.channel_of(k.channel, e);
    const bool exists = k.exists && channel < g.channels;
    const float value =
        exists ? load_element<float>(p.data, p.weight.dtype, at + channel * p.weight.strides[1]) : 0.0f;
    elements[e] = Math::element(value);
  }
  return packed;
}

// Of all [phase][group][tile of filters][step]: pieces of rows, then of the PackedStep.
__device__ __forceinline__ void pack_piece(const PackParameters& p, std::int64_t index) {
  const Geometry& g = p.geometry;
  const auto take = [&](std::int32_t extent) {
    const std::int64_t quotient = index / extent;
    const auto rest = static_cast<std::int32_t>(index - quotient * extent);
    index = quotient;
    return rest;
  };
  const std::int32_t number = take(g.step_bytes() / kPieceBytes), step = take(g.most_steps);
  const std::int32_t tile = take(static_cast<std::int32_t>(g.filter_tiles.divisor));
  const std::int32_t group = take(g.groups), phase = take(g.all_phases());
  std::uint8_t* const packed = p.packed + g.packed_step(phase, group, tile, step);
  const std::int32_t row = number / kStepPieces, piece = number % kStepPieces;
  if (row < g.tile_filters) {
    const std::int32_t filter = tile * g.tile_filters + g.filter_of_row(row);
    visit_math(p.math, [&]<typename Math>() {
      *reinterpret_cast<uint4*>(packed + row * kStepBytes + swizzled(row, piece)) =
          packed_piece<Math>(p, phase, group, filter, step, piece);
    });
    return;
  }
  const PhaseTaps taps = taps_of(g, phase);
  auto* const places = reinterpret_cast<PackedStep*>(packed + g.tile_filters * kStepBytes);
  constexpr int kPlaces = kPieceBytes / sizeof(std::int32_t);
  for (int i = piece * kPlaces; i < (piece + 1) * kPlaces; ++i) {
    const bool exists = step < taps.steps(g);
    places->at[PackedStep::place(i)] = exists ? Reduced::of(g, taps, step, i).box_offset : kNoPiece;
  }
}

__global__ void __launch_bounds__(kPackThreads) pack(const __grid_constant__ PackParameters p) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (index < p.phases) {
    const auto phase = static_cast<std::int32_t>(index);
    *reinterpret_cast<PackedPhase*>(p.packed + p.geometry.packed_phase(phase)) =
        taps_of(p.geometry, phase).packed(p.geometry);
  } else if (index - p.phases < p.pieces) {
    pack_piece(p, index - p.phases);
  }
}

}  // namespace

void pack_weights(const Geometry& geometry, ConvMath math, const void* weight, const WeightLayout& layout,
                  void* packed, int device, void* stream) {
  make_current(device);
  const Geometry& g = geometry;
  const std::int64_t steps = std::int64_t{g.all_phases()} * g.groups * g.filter_tiles.divisor * g.most_steps;
  PackParameters p{g,
                   math,
                   layout,
                   weight,
                   static_cast<std::uint8_t*>(packed),
                   g.all_phases(),
                   steps * (g.step_bytes() / kPieceBytes)};
  void* arguments[] = {&p};
  const auto blocks = static_cast<unsigned>((p.phases + p.pieces + kPackThreads - 1) / kPackThreads);
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
