#include <cuda_runtime_api.h>

#include <algorithm>
#include <numeric>

#include "device/overlapping_launch.h"
#include "device/ptx/dependent_launch.h"
#include "epiconv/error.h"
#include "sm80/math.h"
#include "sm80/turn_input.h"

namespace epiconv::sm80 {
namespace {

constexpr int kTurnThreads = 256;
constexpr int kTileElements = 4096, kMostTileChannels = 64, kLeastTileChannels = 32;
constexpr int kBankBytes = 4, kLineBytes = 128;

struct TurnParameters {
  const void* input;
  void* turned;
  std::int64_t strides[2 + kDims];
  std::int64_t pixels;  // of all images
  std::int32_t channels, turned_channels, channel_tiles;
  Divisor width, plane, image;  // pixels of a row, …
  bool is_one_row;              // pixels of an image lie side by side

  // Of channel 0.
  __device__ __forceinline__ std::int64_t offset(std::int64_t pixel) const {
    const auto number = static_cast<std::int32_t>(pixel);
    const std::int32_t n = image.quotient(number);
    std::int32_t rest = number - n * static_cast<std::int32_t>(image.divisor);
    if (is_one_row) return n * strides[0] + rest;
    const std::int32_t d = plane.quotient(rest);
    rest -= d * static_cast<std::int32_t>(plane.divisor);
    const std::int32_t h = width.quotient(rest);
    rest -= h * static_cast<std::int32_t>(width.divisor);
    return n * strides[0] + d * strides[2] + h * strides[3] + rest * strides[4];
  }
};

template <typename Stored, typename Element>
__device__ __forceinline__ Element turned_element(Stored value) {
  if constexpr (std::is_same_v<Stored, Element>) {
    return value;
  } else {
    return Element(from_stored<float>(value));
  }
}

// Words of a bank, each of one channel of a pixel or of two, in rows of pixels. Rows that are written at
// once, kPixels apart, have their pieces in different banks.
template <typename Element, int kPixels, int kTileChannels>
struct TurnTile {
  static constexpr int kTilePixels = kTileElements / kTileChannels;
  static constexpr int kPieces = kTileChannels * sizeof(Element) / kPieceBytes;
  static constexpr int kWordsOfPiece = kPieceBytes / kBankBytes, kWords = kPieces * kWordsOfPiece;

  union {
    std::uint32_t words[kTilePixels * kWords];
    uint4 pieces[kTilePixels * kPieces];
  };

  __device__ __forceinline__ static int piece(int pixel, int number) {
    return pixel * kPieces + (number ^ (pixel / kPixels & (kPieces < 8 ? kPieces - 1 : 7)));
  }
  __device__ __forceinline__ static int word(int pixel, int number) {
    return piece(pixel, number / kWordsOfPiece) * kWordsOfPiece + number % kWordsOfPiece;
  }
};

// A block has a tile of pixels and kTileChannels channels. Pixels are read side by side, kPixels at once,
// which lie in one image; channels are written side by side.
template <typename Stored, typename Element, int kPixels, int kTileChannels>
__global__ void __launch_bounds__(kTurnThreads) turn(const __grid_constant__ TurnParameters p) {
  using Tile = TurnTile<Element, kPixels, kTileChannels>;
  using Read = Packed<Stored, kPixels>;
  constexpr int kTilePixels = Tile::kTilePixels;
  constexpr int kWordChannels = kBankBytes / sizeof(Element);
  // A line of memory for as many threads as read it, then channels, then the tile's next lines.
  constexpr int kGroups = kTilePixels / kPixels, kLineGroups = kLineBytes / sizeof(Read);
  constexpr int kNeighbours = kGroups < kLineGroups ? kGroups : kLineGroups;
  constexpr int kItems = kGroups * Tile::kWords / kTurnThreads;
  __shared__ Tile tile;
  ptx::let_next_kernel_begin();
  ptx::wait_for_earlier_kernels();
  const std::int64_t pixel_tile = blockIdx.x / p.channel_tiles;
  const std::int32_t channel_tile = blockIdx.x - pixel_tile * p.channel_tiles;
  const std::int64_t first_pixel = pixel_tile * kTilePixels;
  const std::int32_t first_channel = channel_tile * kTileChannels;
  const auto pixel_of = [&](int i) {
    const int item = threadIdx.x + i * kTurnThreads;
    return (item % kNeighbours + item / kNeighbours / Tile::kWords * kNeighbours) * kPixels;
  };
  const auto word_of = [&](int i) {
    return (static_cast<int>(threadIdx.x) + i * kTurnThreads) / kNeighbours % Tile::kWords;
  };
  Read read[kItems][kWordChannels];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const std::int64_t pixel = first_pixel + pixel_of(i);
    const Stored* const from = static_cast<const Stored*>(p.input) + p.offset(pixel);
#pragma unroll
    for (int w = 0; w < kWordChannels; ++w) {
      const std::int32_t c = first_channel + word_of(i) * kWordChannels + w;
      if (pixel < p.pixels && c < p.channels) {
        read[i][w] = *reinterpret_cast<const Read*>(from + c * p.strides[1]);
      } else {
#pragma unroll
        for (int e = 0; e < kPixels; ++e) read[i][w].values[e] = Stored(0.0f);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
#pragma unroll
    for (int e = 0; e < kPixels; ++e) {
      union {
        Element elements[kWordChannels];
        std::uint32_t word;
      };
#pragma unroll
      for (int w = 0; w < kWordChannels; ++w) {
        elements[w] = turned_element<Stored, Element>(read[i][w].values[e]);
      }
      tile.words[Tile::word(pixel_of(i) + e, word_of(i))] = word;
    }
  }
  __syncthreads();
#pragma unroll
  for (int item = threadIdx.x; item < kTilePixels * Tile::kPieces; item += kTurnThreads) {
    const int row = item / Tile::kPieces, piece = item % Tile::kPieces;
    const std::int32_t to = first_channel + piece * (kPieceBytes / static_cast<int>(sizeof(Element)));
    if (first_pixel + row >= p.pixels || to >= p.turned_channels) continue;
    Element* const pixel = static_cast<Element*>(p.turned) + (first_pixel + row) * p.turned_channels;
    *reinterpret_cast<uint4*>(pixel + to) = tile.pieces[Tile::piece(row, piece)];
  }
}

template <int kTileChannels, typename Stored, typename Element>
const void* turn_of(std::int64_t at_once) {
  constexpr int kMost = kPieceBytes / sizeof(Stored);
  if (at_once % kMost == 0)
    return reinterpret_cast<const void*>(&turn<Stored, Element, kMost, kTileChannels>);
  if (at_once % (kMost / 2) == 0) {
    return reinterpret_cast<const void*>(&turn<Stored, Element, kMost / 2, kTileChannels>);
  }
  return reinterpret_cast<const void*>(&turn<Stored, Element, 1, kTileChannels>);
}

// Pixels that are read at once are some that divide `at_once`.
template <int kTileChannels>
const void* turn_of(DType dtype, ConvMath math, std::int64_t at_once) {
  if (dtype == DType::kBFloat16) return turn_of<kTileChannels, __nv_bfloat16, __nv_bfloat16>(at_once);
  if (dtype == DType::kFloat16) return turn_of<kTileChannels, __half, __half>(at_once);
  switch (math) {
    case ConvMath::kBf16:
      return turn_of<kTileChannels, float, __nv_bfloat16>(at_once);
    case ConvMath::kFp16:
      return turn_of<kTileChannels, float, __half>(at_once);
    default:
      return turn_of<kTileChannels, float, float>(at_once);
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
  // What divides all distances from which pixels are read, and so all addresses.
  std::int64_t at_once = 1;
  if (p.is_one_row) {
    const auto address = reinterpret_cast<std::uintptr_t>(input) / dtype_size(problem.input.dtype);
    at_once = std::gcd(std::gcd(image, strides[1]), std::gcd(strides[0], static_cast<std::int64_t>(address)));
  }
  const bool has_few = p.turned_channels <= kLeastTileChannels;
  const std::int32_t tile_channels = has_few ? kLeastTileChannels : kMostTileChannels;
  const std::int32_t tile_pixels = kTileElements / tile_channels;
  p.channel_tiles = (p.turned_channels + tile_channels - 1) / tile_channels;
  const std::int64_t blocks = (p.pixels + tile_pixels - 1) / tile_pixels * p.channel_tiles;
  const void* const kernel = has_few ? turn_of<kLeastTileChannels>(problem.input.dtype, problem.math, at_once)
                                     : turn_of<kMostTileChannels>(problem.input.dtype, problem.math, at_once);
  void* arguments[] = {&p};
  const cudaError_t status =
      launch_overlapping(kernel, static_cast<unsigned>(blocks), kTurnThreads, arguments, 0, stream);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat("the copy of an input of ", problem.batch, " x ", problem.channels, " x ",
                         extents[0], " x ", extents[1], " x ", extents[2],
                         " failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace epiconv::sm80
