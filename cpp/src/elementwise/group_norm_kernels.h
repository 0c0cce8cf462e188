// GroupNorm's statistics of a program's intermediate value, which is computed anew and not stored.
//
// A tile of the tensor is one block's work; its partial results go to memory and are merged in a fixed order
// by `finish_group_norm`, so that the result depends on the shape alone. Two ways to cut tiles:
//   gather_range_moments    pixels innermost: a group is one range of the walk, and a tile a piece of it;
//   gather_channel_moments  channels innermost: a tile is some pixels of a sample. Threads in a row take
//                           neighbouring channels of one pixel, rows take pixels in turn, and moments are
//                           kept for each channel.
#pragma once

#include "device/evaluators.h"
#include "device/input_reader.h"
#include "elementwise/moments.h"

namespace epiconv {

template <typename T>
struct StatisticsParameters {
  std::int64_t pixels;          // of a sample and channel
  std::int32_t channels;        // of a sample
  std::int32_t group_channels;  // of a group
  std::int32_t tiles;           // of a group's range; of a sample
  std::int32_t tile;            // elements of a range's tile; pixels
  std::int32_t lanes;           // of gather_channel_moments: threads in a row, a power of 2
  T* means;                     // partial results, (sample, tile, group or channel)
  T* squares;
};

template <typename T>
__device__ __forceinline__ Moments<T> merge_warp(Moments<T> moments) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    moments.merge({__shfl_down_sync(~0u, moments.count, distance),
                   __shfl_down_sync(~0u, moments.mean, distance),
                   __shfl_down_sync(~0u, moments.squares, distance)});
  }
  return moments;
}

// The moments of all threads of a block of kBlockThreads, in thread 0.
template <typename T>
__device__ __forceinline__ Moments<T> merge_block(const Moments<T>& of_thread) {
  constexpr int kWarps = kBlockThreads / 32;
  __shared__ Moments<T> of_warps[kWarps];
  Moments<T> merged = merge_warp(of_thread);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = merged;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) merged.merge(of_warps[warp]);
  }
  return merged;
}

template <typename Evaluator>
__global__ void __launch_bounds__(kBlockThreads, 1)
    gather_range_moments(const __grid_constant__ typename Evaluator::Shape::Parameters pass,
                         const __grid_constant__ StatisticsParameters<typename Evaluator::T> statistics) {
  using Shape = typename Evaluator::Shape;
  using T = typename Shape::T;
  using Index = typename Shape::Index;
  constexpr int kWord = Shape::kWord;
  const Index range = blockIdx.x / statistics.tiles;  // sample * groups + group
  const Index tile = blockIdx.x % statistics.tiles;
  const Index length = statistics.group_channels * static_cast<Index>(statistics.pixels);
  const Index begin = range * length + tile * statistics.tile;
  const Index end = min(begin + statistics.tile, (range + 1) * length);
  // Words lie where they are aligned; elements outside the tile are left out of the sums.
  const Index aligned = begin / kWord * kWord;
  constexpr Index kBlock = kBlockThreads * Shape::kCount;
  const Index warp = threadIdx.x / 32;
  const Index lane = threadIdx.x % 32;
  const Index mine = aligned + warp * (32 * Shape::kCount) + lane * kWord;
  const int chunks = mine < end ? static_cast<int>((end - mine + kBlock - 1) / kBlock) : 0;
  const auto all = static_cast<Index>(pass.count);
  const bool all_whole = aligned + (end - aligned + kBlock - 1) / kBlock * kBlock <= all;
  const ChunkSequence<Index> sequence{mine, kBlock, 32 * kWord, chunks};
  InputReader<Shape> input(pass, sequence, all_whole);

  ShiftedSums<T> sums[kWord];  // of one pivot
  int count = 0;
#pragma unroll 1
  for (int i = 0; i < chunks; ++i) {
    const Chunk<Shape> chunk(pass, sequence.first(i), sequence.word_distance, all);
    typename Evaluator::Values values;
    input.next(chunk, i, values);
    Evaluator::run(Part::kBeforeNorm, chunk, values);
    if (i == 0) {
      const Index from =
          begin - mine;  // of lane 0 of warp 0 more than 0, where the first elements are not the tile's
      T pivot = values[0];
#pragma unroll
      for (int j = 1; j < kWord; ++j) pivot = j == from ? values[j] : pivot;
#pragma unroll
      for (int j = 0; j < kWord; ++j) sums[j].pivot = pivot;
    }
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w) {
      const Index first = chunk.element(w, 0);
      if (first >= begin && first + kWord <= end) {
#pragma unroll
        for (int j = 0; j < kWord; ++j) sums[j].add(values[w * kWord + j]);
        count += kWord;
      } else {
#pragma unroll
        for (int j = 0; j < kWord; ++j) {
          if (first + j < begin || first + j >= end) continue;
          sums[j].add(values[w * kWord + j]);
          ++count;
        }
      }
    }
  }
#pragma unroll
  for (int j = 1; j < kWord; ++j) {
    sums[0].sum += sums[j].sum;
    sums[0].squares += sums[j].squares;
  }
  const Moments<T> merged = merge_block(sums[0].moments(count));
  if (threadIdx.x == 0) {
    const Index groups = statistics.channels / statistics.group_channels;
    const Index entry = (range / groups * statistics.tiles + tile) * groups + range % groups;
    statistics.means[entry] = merged.mean;
    statistics.squares[entry] = merged.squares;
  }
}

// Merges the moments of all rows into row 0; `moments` are of a word's channels.
template <typename T, int kWord>
__device__ __forceinline__ void merge_rows(Moments<T> (&moments)[kWord], int row, int rows) {
  // Of half the rows at most, which give theirs to the other half.
  __shared__ T counts[kBlockThreads / 2];
  __shared__ T means[kWord][kBlockThreads / 2];
  __shared__ T squares[kWord][kBlockThreads / 2];
  const int lanes = kBlockThreads / rows;
  for (int distance = rows / 2; distance > 0; distance /= 2) {
    const int place = static_cast<int>(threadIdx.x) % (distance * lanes);
    if (row >= distance && row < 2 * distance) {
      counts[place] = moments[0].count;
#pragma unroll
      for (int j = 0; j < kWord; ++j) {
        means[j][place] = moments[j].mean;
        squares[j][place] = moments[j].squares;
      }
    }
    __syncthreads();
    if (row < distance) {
      const T count = counts[place];
#pragma unroll
      for (int j = 0; j < kWord; ++j) moments[j].merge({count, means[j][place], squares[j][place]});
    }
    __syncthreads();
  }
}

template <typename Evaluator>
__global__ void __launch_bounds__(kBlockThreads, 1)
    gather_channel_moments(const __grid_constant__ typename Evaluator::Shape::Parameters pass,
                           const __grid_constant__ StatisticsParameters<typename Evaluator::T> statistics) {
  using Shape = typename Evaluator::Shape;
  using T = typename Shape::T;
  using Index = typename Shape::Index;
  constexpr int kWord = Shape::kWord;
  const int lanes = statistics.lanes;
  const int rows = kBlockThreads / lanes;
  const int row = threadIdx.x / lanes;
  const Index channels = statistics.channels;
  const int parts = (statistics.channels + lanes * kWord - 1) / (lanes * kWord);
  const int part = blockIdx.x % parts;
  const Index tile = blockIdx.x / parts % statistics.tiles;
  const Index sample = blockIdx.x / parts / statistics.tiles;
  const Index channel = (part * lanes + static_cast<int>(threadIdx.x) % lanes) * kWord;
  const auto all_pixels = static_cast<Index>(statistics.pixels);
  const Index tile_begin = tile * statistics.tile;
  const Index tile_end = min(tile_begin + statistics.tile, all_pixels);
  const Index pixel = tile_begin + row;
  const bool is_idle = channel >= channels || pixel >= tile_end;
  const int pixels = is_idle ? 0 : static_cast<int>((tile_end - pixel + rows - 1) / rows);  // of this thread
  // A chunk's words are a word of channels of pixels that are `rows` apart. Words behind the tile's end are
  // read, inside the tensor, and left out of the sums.
  const int pixels_of_block = rows * Shape::kWords;
  const Index rounded =
      tile_begin + (tile_end - tile_begin + pixels_of_block - 1) / pixels_of_block * pixels_of_block;
  const auto all = static_cast<Index>(pass.count);
  const bool all_whole = channels % kWord == 0 && (sample * all_pixels + rounded) * channels <= all;
  const ChunkSequence<Index> sequence{(sample * all_pixels + pixel) * channels + channel,
                                      pixels_of_block * channels, rows * channels,
                                      (pixels + Shape::kWords - 1) / Shape::kWords};
  InputReader<Shape> input(pass, sequence, all_whole);

  ShiftedSums<T> sums[kWord];
#pragma unroll 1
  for (int i = 0; i < sequence.count; ++i) {
    const Chunk<Shape> chunk(pass, sequence.first(i), sequence.word_distance, all);
    typename Evaluator::Values values;
    input.next(chunk, i, values);
    Evaluator::run(Part::kBeforeNorm, chunk, values);
    if (i == 0) {
#pragma unroll
      for (int j = 0; j < kWord; ++j) sums[j].pivot = values[j];
    }
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w) {
      if (i * Shape::kWords + w >= pixels) break;
#pragma unroll
      for (int j = 0; j < kWord; ++j) sums[j].add(values[w * kWord + j]);
    }
  }
  Moments<T> moments[kWord];
#pragma unroll
  for (int j = 0; j < kWord; ++j) moments[j] = sums[j].moments(pixels);
  merge_rows(moments, row, rows);
  if (row != 0) return;
  const Index entry = (sample * statistics.tiles + tile) * channels + channel;
#pragma unroll
  for (int j = 0; j < kWord; ++j) {
    if (channel + j >= channels) break;
    statistics.means[entry + j] = moments[j].mean;
    statistics.squares[entry + j] = moments[j].squares;
  }
}

}  // namespace epiconv
