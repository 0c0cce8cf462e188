// The convolution of conv_kernel.h with products of warpgroups (warpgroup_mainloop.h).
//
// All sums of a tile go to the staging; from there each warp takes chunks of words in the order of the
// output, runs the program on them and stores them. Two blocks share a multiprocessor: one stores while the
// other multiplies.
#pragma once

#include "device/ptx/prefetch.h"
#include "sm80/conv_kernel.h"
#include "sm80/warpgroup_mainloop.h"

namespace epiconv::sm80 {

// The sums of a column phase, to their places in the staging.
template <typename Sums>
__device__ __forceinline__ void stage_sums(const Geometry& g, const TileMemory& memory, const Sums& sums,
                                           int column_phase, int thread) {
  const int lane = thread % kWarpThreads, pitch = staging_pitch(g);
  const int position = first_position(Sums::kRowTiles, thread) + lane / 4, filter = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Sums::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumns / 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* const two = sums.sums[i] + j * 4 + r * 2;
        const int row = position + i * kProductRows + r * 8, column = filter + j * 8;
        if (g.filters_are_rows) {
          float* const to = memory.staging() + column * pitch + row * g.interleave + column_phase;
          to[0] = two[0];
          to[pitch] = two[1];
        } else {
          *reinterpret_cast<float2*>(memory.staging() + row * pitch + column) = {two[0], two[1]};
        }
      }
    }
  }
}

// Chunk by chunk of the staging: some rows of 32 columns.
template <typename Evaluator>
__device__ __forceinline__ void store_chunks(const ConvParameters& p, const ConvLaunch& launch,
                                             const TilePlace& place, const TileMemory& memory, int thread) {
  using Shape = typename Evaluator::Shape;
  constexpr int kWarps = kThreads / kWarpThreads;
  constexpr int kChunkRows = Shape::kWords / kRowWords * kRowDistance,
                kChunkColumns = kRowWords * kWordColumns;
  const Geometry& g = p.geometry;
  const int rows = g.filters_are_rows ? g.tile_filters : g.tile_positions;
  const int across = (g.filters_are_rows ? g.tile_columns() : g.tile_filters) / kChunkColumns;
  const int chunks = rows / kChunkRows * across, pitch = staging_pitch(g);
  const int row = thread % kWarpThreads / 4, column = thread % 4 * kWordElements;
#pragma unroll 1
  for (int number = thread / kWarpThreads; number < chunks; number += kWarps) {
    const Chunk<Shape> chunk{p.epilogue, launch, place, number / across * kChunkRows + row,
                             number % across * kChunkColumns + column};
    float* const staged = memory.staging() + chunk.row * pitch + chunk.column;
    const auto word_at = [&](int w) {
      return reinterpret_cast<float4*>(staged + w / kRowWords * kRowDistance * pitch +
                                       w % kRowWords * kWordColumns);
    };
    typename Evaluator::Values values;
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w) {
      const float4 four = *word_at(w);
      float* const word = values + w * kWordElements;
      word[0] = four.x, word[1] = four.y, word[2] = four.z, word[3] = four.w;
    }
    Evaluator::run(Part::kAll, chunk, values);
    chunk.store(values);
    if (!p.takes_statistics) continue;
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w) {
      const float* const word = values + w * kWordElements;
      *word_at(w) = {word[0], word[1], word[2], word[3]};
    }
  }
}

// Asks for what operands that are laid out like the output have for the tile, while its sums are computed.
__device__ __forceinline__ void prefetch_operands(const ConvParameters& p, const ConvLaunch& launch,
                                                  const TilePlace& place, int thread) {
  constexpr int kLineBytes = 128;
  const Geometry& g = p.geometry;
  const int rows = g.filters_are_rows ? g.tile_filters : g.tile_positions;
  const int columns = g.filters_are_rows ? g.tile_columns() : g.tile_filters;
#pragma unroll
  for (int i = 0; i < kNumOperandPlaces; ++i) {
    const OutputTensor& operand = p.epilogue.operands[i];
    if (!operand.is_like_output || operand.is_of_filters || operand.pattern != Pattern::kWords) continue;
    const int size = dtype_size(operand.dtype), lines = columns * size / kLineBytes;
#pragma unroll 1
    for (int item = thread; item < rows * lines; item += kThreads) {
      const int row = item / lines, column = item % lines * (kLineBytes / size);
      const int filter = g.filters_are_rows ? row : column;
      const Column& at = place.columns[g.filters_are_rows ? column / g.interleave : row];
      if (filter >= place.filters() || place.room(at) <= 0) continue;
      const std::int64_t offset = at.offset + place.phase.offset + filter * operand.strides[1];
      ptx::prefetch_to_l2(static_cast<const std::uint8_t*>(launch.operands[operand.place]) + offset * size);
    }
  }
}

// `p` is a constant.
template <typename Evaluator, int kRowTiles, int kColumns, int kInterleave>
__device__ __forceinline__ void run_warpgroup_block(const ConvParameters& p, const ConvLaunch& launch) {
  using Sums = WarpgroupSums<kRowTiles, kColumns>;
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const int thread = threadIdx.x;
  const Geometry& g = p.geometry;
  const TileMemory memory{p.shared, shared};
  WarpgroupPipeline pipeline(p, launch, memory, thread);
  begin_block(pipeline);
  if (g.is_resident) {
    ptx::cp_async_wait_all();
    __syncthreads();
  }
#pragma unroll 1
  for (std::int32_t phase = 0; phase < g.block_phases; phase += kInterleave) {
    const TilePlace place{g, memory.tile(), memory.columns(), memory.filter_operands(),
                          memory.phases()[phase].place};
    prefetch_operands(p, launch, place, thread);
    Sums sums[kInterleave];
#pragma unroll
    for (int i = 0; i < kInterleave; ++i) {
      visit_math(p.math, [&]<typename Math>() {
        if constexpr (!std::is_same_v<Math, Ieee>) {
          WarpgroupMainloop<Math, Sums>(pipeline).run(phase + i, sums[i]);
        }
      });
    }
    if (g.splits.divisor > 1 && !merge_splits(p, launch, sums[0], memory.flag(), thread)) return;
    __syncthreads();  // what lies where the staging is has been read
#pragma unroll
    for (int i = 0; i < kInterleave; ++i) stage_sums(g, memory, sums[i], i, thread);
    __syncthreads();
    store_chunks<Evaluator>(p, launch, place, memory, thread);
    if (!p.takes_statistics) continue;
    __syncthreads();
    take_statistics(p, launch.statistics, place, memory, thread);
  }
}

}  // namespace epiconv::sm80
