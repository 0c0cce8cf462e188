// Probe: how fast does mma.sync multiply, alone, and when its fragments come from shared memory as those of
// the portable kernel do (four ldmatrix.x4 for eight products)? sm_80.
//
// Every SM has three blocks of eight warps; each warp has 16 x 8 sums in two rows and four columns of tiles.
// Data are random, since a card that is limited by power multiplies zeros faster. Best of ten launches.
//
// Build: nvcc -std=c++20 -O3 -arch=sm_80 -o mma_sync_rate tests/probes/mma_sync_rate.cu
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../../cpp/src/device/ptx/ldmatrix.h"
#include "../../cpp/src/device/ptx/mma_sync.h"
#include "check.h"

namespace {

using namespace epiconv::ptx;

constexpr int kThreads = 256, kRowTiles = 2, kColumnTiles = 4;
constexpr int kPieces = 16;  // pairs of pieces in shared memory: 64 rows of 32 bytes each
constexpr int kSharedWords = kPieces * 64 * 8;
constexpr int kSteps = 4000;

struct Tf32 {
  static constexpr const char* kName = "TF32";
  static constexpr int kDepth = 8;
  __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t* b) {
    mma_tf32(d, a, b);
  }
};
struct Bf16 {
  static constexpr const char* kName = "bf16";
  static constexpr int kDepth = 16;
  __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t* b) {
    mma_bf16(d, a, b);
  }
};

template <typename Math, bool kLoads>
__global__ void __launch_bounds__(kThreads, 3) run(const std::uint32_t* data, float* result) {
  __shared__ __align__(128) std::uint32_t shared[kSharedWords];
  for (int i = threadIdx.x; i < kSharedWords; i += kThreads) shared[i] = data[i];
  __syncthreads();
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)) + threadIdx.x % 32 * 16;
  float sums[kRowTiles][kColumnTiles][4] = {};
  std::uint32_t rows[kRowTiles][4], columns[kColumnTiles / 2][4];
  const auto load = [&](int piece) {
    const std::uint32_t from = base + piece * (64 * 32);
    for (int i = 0; i < kRowTiles; ++i) ldmatrix_4(from + i * 512, rows[i]);
    for (int j = 0; j < kColumnTiles / 2; ++j) ldmatrix_4(from + 1024 + j * 512, columns[j]);
  };
  load(0);
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    if (kLoads) load(step % kPieces);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        Math::multiply(sums[i][j], rows[i], columns[j / 2] + j % 2 * 2);
      }
    }
  }
  float sum = 0.0f;
  for (int i = 0; i < kRowTiles; ++i) {
    for (int j = 0; j < kColumnTiles; ++j)
      sum += sums[i][j][0] + sums[i][j][1] + sums[i][j][2] + sums[i][j][3];
  }
  result[blockIdx.x * kThreads + threadIdx.x] = sum;
}

template <typename Math, bool kLoads>
double rate(const std::uint32_t* data, float* result, int blocks) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  float best = 1e9f;
  for (int i = 0; i < 11; ++i) {
    CHECK(cudaEventRecord(begin));
    run<Math, kLoads><<<blocks, kThreads>>>(data, result);
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float milliseconds;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i > 0) best = std::min(best, milliseconds);
  }
  const double products =
      1.0 * blocks * (kThreads / 32) * kSteps * kRowTiles * kColumnTiles * 16 * 8 * Math::kDepth;
  return 2e-9 * products / best;
}

template <typename Math>
void report(const std::uint32_t* data, float* result, int blocks) {
  const double alone = rate<Math, false>(data, result, blocks),
               loading = rate<Math, true>(data, result, blocks);
  std::printf("%s: %.0f TFLOP/s alone, %.0f with fragments from shared memory\n", Math::kName, alone,
              loading);
}

}  // namespace

int main() {
  int multiprocessors;
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  const int blocks = 3 * multiprocessors;
  // Words whose halves are bf16 of magnitudes from 0.5 to 2, which are numbers of TF32 of that size, too.
  std::vector<std::uint32_t> words(kSharedWords);
  std::uint32_t random = 1;
  for (std::uint32_t& word : words) {
    random = random * 1664525u + 1013904223u;
    word = (random & 0x80FF80FFu) | 0x3F003F00u;
  }
  std::uint32_t* data;
  float* result;
  CHECK(cudaMalloc(&data, kSharedWords * sizeof(std::uint32_t)));
  CHECK(cudaMalloc(&result, blocks * kThreads * sizeof(float)));
  CHECK(cudaMemcpy(data, words.data(), kSharedWords * sizeof(std::uint32_t), cudaMemcpyHostToDevice));
  report<Tf32>(data, result, blocks);
  report<Bf16>(data, result, blocks);
}
