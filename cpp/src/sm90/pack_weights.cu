#include "device/current_device.h"
#include "device/elements.h"
#include "sm90/halo_conv.h"
#include "sm90/math.h"

namespace epiconv::sm90 {
namespace {

constexpr int kPackThreads = 256;

struct PackParameters {
  HaloGeometry geometry;
  ConvMath math;
  TensorLayout weight;
  const void* data;
  uint4* packed;
  std::int64_t pieces;
};

// kPieceChannels channels of a filter's tap, from `channel` on; `from` is where channel 0 lies.
template <typename Math>
__device__ __forceinline__ uint4 packed_piece(const PackParameters& p, std::int64_t from, int channel,
                                              bool filter_exists) {
  float values[Math::kPieceChannels];
#pragma unroll
  for (int e = 0; e < Math::kPieceChannels; ++e, ++channel) {
    values[e] = filter_exists && channel < p.geometry.channels
                    ? load_element<float>(p.data, p.weight.dtype, from + channel * p.weight.strides[1])
                    : 0.0f;
  }
  return Math::pack(values);
}

// One piece of 16 bytes per thread: consecutive channels of one tap of one filter.
__global__ void __launch_bounds__(kPackThreads) pack(const __grid_constant__ PackParameters p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (index >= p.pieces) return;
  const HaloGeometry& g = p.geometry;
  const int row_pieces = g.row_bytes / 16;
  const int stage_pieces = g.stage_bytes / 16;
  const std::int64_t stage = index / stage_pieces;
  const int in_stage = static_cast<int>(index - stage * stage_pieces);
  const int group = static_cast<int>(stage / g.taps);
  int in_share = static_cast<int>(stage - static_cast<std::int64_t>(group) * g.taps);
  Share share{group, 0};
  for (int taps; in_share >= (taps = share.taps(g)); ++share.row_phase) in_share -= taps;
  const PackedTap tap = PackedTap::of(g, share.row_phase, in_share);
  const PackedRow row = PackedRow::of(g, group, in_stage / row_pieces, tap.r);
  const int piece = in_stage % row_pieces;
  const std::int64_t from =
      row.filter * p.weight.strides[0] + row.r * p.weight.strides[2] + tap.s * p.weight.strides[3];
  uint4 packed;
  AnyMath::visit(p.math, [&]<typename Math>() {
    const int channel = (tap.channel_block * row_pieces + piece) * Math::kPieceChannels;
    packed = packed_piece<Math>(p, from, channel, row.filter < g.filters && row.r >= 0);
  });
  const std::uint32_t to = swizzled(in_stage * 16, g.row_bytes) / 16;
  p.packed[stage * stage_pieces + to] = packed;
#endif
}

}  // namespace

void pack_weights(const HaloGeometry& geometry, ConvMath math, const void* weight, const TensorLayout& layout,
                  void* packed, int device, void* stream) {
  make_current(device);
  PackParameters p{geometry,
                   math,
                   layout,
                   weight,
                   static_cast<uint4*>(packed),
                   geometry.filter_groups() * packed_group_bytes(geometry) / 16};
  void* arguments[] = {&p};
  const auto blocks = static_cast<unsigned>((p.pieces + kPackThreads - 1) / kPackThreads);
  const cudaError_t status =
      cudaLaunchKernel(reinterpret_cast<const void*>(&pack), dim3(blocks), dim3(kPackThreads), arguments, 0,
                       static_cast<cudaStream_t>(stream));
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat("the packing of ", geometry.filters, " x ", geometry.channels, " x ",
                         geometry.taps_r, " x ", geometry.taps_s,
                         " weights failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace epiconv::sm90
