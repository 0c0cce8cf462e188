#include <cuda_runtime_api.h>

#include <algorithm>

#include "device/overlapping_launch.h"
#include "device/ptx/dependent_launch.h"
#include "epiconv/error.h"
#include "sm80/math.h"
#include "sm80/turn_input.h"

namespace epiconv::sm80 {
namespace {

constexpr int kTurnThreads = 256;
constexpr int kTilePixels = 64, kTileChannels = 64;

struct TurnParameters {
  const void* input;
  void* turned;
  std::int64_t strides[2 + kDims];
  std::int64_t pixels;  // of all images
  std::int32_t channels, turned_channels, channel_tiles;
  Divisor width, plane, image;  // pixels of a row, …
  bool is_one_row;              // pixels of an image lie side by side
};

template <typename Stored, typename Element>
__device__ __forceinline__ Element turned_element(Stored value) {
  if constexpr (std::is_same_v<Stored, Element>) {
    return value;
  } else {
    return Element(from_stored<float>(value));
  }
}

// A block has kTilePixels pixels and kTileChannels channels. Pixels are read side by side, channels written.
template <typename Stored, typename Element>
__global__ void __launch_bounds__(kTurnThreads) turn(const __grid_constant__ TurnParameters p) {
  constexpr int kPitch = kTileChannels + (sizeof(Element) == 4 ? 1 : 2);  // rows lie in different banks
  constexpr int kPieceElements = kPieceBytes / sizeof(Element);
  __shared__ Element tile[kTilePixels][kPitch];
  ptx::let_next_kernel_begin();
  ptx::wait_for_earlier_kernels();
  const std::int64_t pixel_tile = blockIdx.x / p.channel_tiles;
  const std::int32_t channel_tile = blockIdx.x - pixel_tile * p.channel_tiles;
  const std::int64_t first_pixel = pixel_tile * kTilePixels;
  const std::int32_t first_channel = channel_tile * kTileChannels;
  const int in_row = threadIdx.x % kTilePixels;
  const std::int64_t pixel = first_pixel + in_row;
  const bool has_pixel = pixel < p.pixels;
  std::int64_t at = 0;
  if (has_pixel) {
    const auto number = static_cast<std::int32_t>(pixel);
    const std::int32_t n = p.image.quotient(number);
    std::int32_t rest = number - n * static_cast<std::int32_t>(p.image.divisor);
    at = n * p.strides[0];
    if (p.is_one_row) {
      at += rest;
    } else {
      const std::int32_t d = p.plane.quotient(rest);
      rest -= d * static_cast<std::int32_t>(p.plane.divisor);
      const std::int32_t h = p.width.quotient(rest);
      at += d * p.strides[2] + h * p.strides[3] +
            (rest - h * static_cast<std::int32_t>(p.width.divisor)) * p.strides[4];
    }
  }
  constexpr int kRows = kTurnThreads / kTilePixels, kLoads = kTileChannels / kRows;
  const Stored* const from = static_cast<const Stored*>(p.input) + at;
  const std::int32_t channel = first_channel + threadIdx.x / kTilePixels;
  Stored values[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const std::int32_t c = channel + i * kRows;
    if (has_pixel && c < p.channels) values[i] = from[c * p.strides[1]];
  }
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const std::int32_t c = channel + i * kRows;
    const bool exists = has_pixel && c < p.channels;
    tile[in_row][c - first_channel] = exists ? turned_element<Stored, Element>(values[i]) : Element(0.0f);
  }
  __syncthreads();
  constexpr int kTilePieces = kTileChannels / kPieceElements;
#pragma unroll
  for (int item = threadIdx.x; item < kTilePixels * kTilePieces; item += kTurnThreads) {
    const int row = item / kTilePieces, piece = item % kTilePieces;
    const std::int32_t to = first_channel + piece * kPieceElements;
    if (first_pixel + row >= p.pixels || to >= p.turned_channels) continue;
    union {
      Element elements[kPieceElements];
      uint4 packed;
    };
#pragma unroll
    for (int e = 0; e < kPieceElements; ++e) elements[e] = tile[row][piece * kPieceElements + e];
    Element* const pixel_of = static_cast<Element*>(p.turned) + (first_pixel + row) * p.turned_channels;
    *reinterpret_cast<uint4*>(pixel_of + to) = packed;
  }
}

template <typename Stored>
const void* turn_of(ConvMath math) {
  switch (math) {
    case ConvMath::kBf16:
      return reinterpret_cast<const void*>(&turn<Stored, __nv_bfloat16>);
    case ConvMath::kFp16:
      return reinterpret_cast<const void*>(&turn<Stored, __half>);
    default:
      return reinterpret_cast<const void*>(&turn<Stored, float>);
  }
}

const void* turn_of(DType dtype, ConvMath math) {
  switch (dtype) {
    case DType::kBFloat16:
      return reinterpret_cast<const void*>(&turn<__nv_bfloat16, __nv_bfloat16>);
    case DType::kFloat16:
      return reinterpret_cast<const void*>(&turn<__half, __half>);
    default:
      return turn_of<float>(math);
  }
}

}  // namespace

void turn_input(const TurnProblem& problem, const void* input, void* turned, void* stream) {
  const int element_bytes = problem.math == ConvMath::kTf32 ? 4 : 2;
  const auto& strides = problem.input.strides;
  const auto& extents = problem.extents;
  const std::int64_t plane = extents[1] * extents[2], image = extents[0] * plane;
  TurnParameters p{input,
                   turned,
                   {},
                   problem.batch * image,
                   static_cast<std::int32_t>(problem.channels),
                   static_cast<std::int32_t>(turned_channels(problem.channels, element_bytes)),
                   0,
                   Divisor(static_cast<std::uint32_t>(extents[2])),
                   Divisor(static_cast<std::uint32_t>(plane)),
                   Divisor(static_cast<std::uint32_t>(image)),
                   false};
  std::copy(std::begin(strides), std::end(strides), p.strides);
  p.is_one_row = (extents[2] == 1 || strides[4] == 1) && (extents[1] == 1 || strides[3] == extents[2]) &&
                 (extents[0] == 1 || strides[2] == plane);
  p.channel_tiles = (p.turned_channels + kTileChannels - 1) / kTileChannels;
  const std::int64_t blocks = (p.pixels + kTilePixels - 1) / kTilePixels * p.channel_tiles;
  void* arguments[] = {&p};
  const cudaError_t status =
      launch_overlapping(turn_of(problem.input.dtype, problem.math), static_cast<unsigned>(blocks),
                         kTurnThreads, arguments, 0, stream);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat("the copy of an input of ", problem.batch, " x ", problem.channels, " x ",
                         extents[0], " x ", extents[1], " x ", extents[2],
                         " failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace epiconv::sm80
