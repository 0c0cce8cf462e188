// Probe: what does it cost to store rows of an image that begin anywhere within a sector of 32 bytes? sm_90a.
//
// Stores and nothing else, by the tiles of the convolution kernel: two rows of Q pixels of 64 filters in
// NCHW, 16 filters to a warp, two warpgroups to a block. A lane stores two pixels at a time. The ways to cut
// a tile:
//   32 px       16 lanes store 32 pixels of a filter, the other 16 those of the next
//   64 px       a warp stores 64 pixels of one filter
//   sectors     as 32 px, but cut where sectors begin, within each row
//   two rows    the same over both rows, which lie one behind the other
//
// Build: nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -o row_stores tests/probes/row_stores.cu
// Run:   row_stores                  about 1 s
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "check.h"

namespace {

constexpr int kFilters = 64, kRows = 126;
constexpr int kTileRows = 2, kWarpFilters = 16, kPitch = 128;

enum class Cut { k32Pixels, k64Pixels, kSectors, kTwoRows };

template <typename Element, Cut kCut>
__global__ void __launch_bounds__(256) store_rows(Element* output, int columns, int images) {
  using Pair = std::conditional_t<sizeof(Element) == 4, uint2, std::uint32_t>;
  constexpr int kSectorPairs = 32 / (2 * sizeof(Element));
  constexpr int kSegment = kCut == Cut::kTwoRows ? kTileRows : 1;  // rows that are cut as one
  constexpr int kLanes = kCut == Cut::k64Pixels ? 32 : 16;         // that share a filter
  constexpr int kAtOnce = 32 / kLanes;                             // filters
  constexpr bool kIsAligned = kCut == Cut::kSectors || kCut == Cut::kTwoRows;
  const int image_tiles = kRows / kTileRows, tiles = images * image_tiles;
  const std::int64_t plane = std::int64_t{kRows} * columns;
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const auto begin = [&](std::int64_t block) { return static_cast<int>(block * tiles / gridDim.x); };
  for (int tile = begin(blockIdx.x) + warpgroup; tile < begin(blockIdx.x + 1); tile += 2) {
    Element* const first = output + tile / image_tiles * kFilters * plane + warp * kWarpFilters * plane +
                           tile % image_tiles * kTileRows * columns;
    for (int row = 0; row < kTileRows; row += kSegment) {
      const int pieces = kSegment * kPitch / (2 * kLanes) + (kIsAligned ? 1 : 0);
      for (int piece = 0; piece < pieces; ++piece) {
#pragma unroll
        for (int filter = 0; filter < kWarpFilters; filter += kAtOnce) {
          Element* const to = first + (filter + lane / kLanes) * plane + row * columns;
          const auto number = reinterpret_cast<std::uintptr_t>(to) / (2 * sizeof(Element));
          const int shift = kIsAligned ? static_cast<int>(number % kSectorPairs) : 0;
          const int pixel = (piece * kLanes - shift + lane % kLanes) * 2;
          if (pixel >= 0 && pixel < kSegment * columns) *reinterpret_cast<Pair*>(to + pixel) = Pair{};
        }
      }
    }
  }
}

template <typename Element, Cut kCut>
float milliseconds(void* output, int columns) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  float least = 1e9f;
  for (int i = 0; i < 6; ++i) {
    CHECK(cudaEventRecord(begin));
    store_rows<Element, kCut>
        <<<132, 256>>>(static_cast<Element*>(output), columns, sizeof(Element) == 4 ? 128 : 256);
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float taken;
    CHECK(cudaEventElapsedTime(&taken, begin, end));
    least = std::min(least, taken);
  }
  return least;
}

template <typename Element>
void measure(void* output, int columns) {
  std::printf("%7d %6zu %9.3f %9.3f %9.3f %9.3f\n", columns, sizeof(Element),
              milliseconds<Element, Cut::k32Pixels>(output, columns),
              milliseconds<Element, Cut::k64Pixels>(output, columns),
              milliseconds<Element, Cut::kSectors>(output, columns),
              milliseconds<Element, Cut::kTwoRows>(output, columns));
}

}  // namespace

int main() {
  void* output;
  CHECK(cudaMalloc(&output, std::size_t{128} * kFilters * kRows * kPitch * 4));
  std::printf("columns  bytes     32 px     64 px   sectors  two rows   (ms)\n");
  for (const int columns : {126, 128, 124, 122}) {
    measure<float>(output, columns);
    measure<std::uint16_t>(output, columns);
  }
  return 0;
}
