// The portable convolution: implicit GEMM on mma.sync, for any convolution and any card from sm_80 on.
//
// A block computes a tile, 128 positions (geometry.h) of 32, 64 or 128 filters of one group, in one phase; of
// a transposed convolution of stride 2 whose rows are stored as they lie, in both column phases, one after
// the other. Eight warps, all alike: four share the positions and two the filters.
//
// First, what the tile's positions read is worked out, into a table. Then come the products (mainloop.h),
// step by step of gemm_k: all threads gather the input of the next step and copy its weights while they
// multiply. Sums are put into the staging; where gemm_k is split they go to memory instead, and the last
// block of a tile to arrive adds them up in the order of splits, so that every run gives the same bits. Last
// (store.h), the program runs word by word and the output is stored; a GroupNorm's statistics are taken of
// it.
//
// Shared memory: tables of taps, and of rows or pixels, then staging and pipeline. These two lie on each
// other unless there are several column phases. Blocks wait for nothing but their own threads.
#pragma once

#include "sm80/conv_kernels.h"
#include "sm80/store.h"

namespace epiconv::sm80 {

static_assert(sizeof(InputRow) * kTilePositions <= kRowTableBytes);

struct TileMemory {
  TapTable* taps_of_steps;
  std::int64_t* offsets;  // in their place
  InputRow* rows;
  Pixel* pixels;  // in their place
  std::uint32_t* flag;
  std::uint8_t* staging;
  std::uint8_t* pipeline;

  __device__ __forceinline__ static TileMemory of(const ConvParameters& p, std::uint8_t* shared) {
    std::uint8_t* const rows = shared + kTapTables * sizeof(TapTable);
    std::uint8_t* const flag = rows + kRowTableBytes;
    std::uint8_t* const behind = shared + kTableBytes;
    return {reinterpret_cast<TapTable*>(shared),
            reinterpret_cast<std::int64_t*>(shared),
            reinterpret_cast<InputRow*>(rows),
            reinterpret_cast<Pixel*>(rows),
            reinterpret_cast<std::uint32_t*>(flag),
            behind,
            behind + p.pipeline_offset};
  }
};

// Whether this block is the one that stores the tile; then its sums are those of all splits.
template <int kTileFilters>
__device__ __forceinline__ bool merge_splits(const ConvParameters& p, Accumulators<kTileFilters>& sums,
                                             std::uint32_t* flag, int thread) {
  constexpr int kCount = Accumulators<kTileFilters>::kCount;
  const std::uint32_t splits = p.geometry.splits.divisor, tile = blockIdx.x / splits;
  const auto place = [&](std::uint32_t split, int i) -> float& {
    return p.partial_sums[(std::int64_t{tile * splits + split} * kCount + i) * kThreads + thread];
  };
  sums.visit([&](float& sum, int i) { place(blockIdx.x % splits, i) = sum; });
  __threadfence();
  __syncthreads();
  if (thread == 0) *flag = atomicAdd(p.arrivals + tile, 1u);
  __syncthreads();
  if (*flag != splits - 1) return false;
  __threadfence();
  sums.clear();
  for (std::uint32_t split = 0; split < splits; ++split) {
    sums.visit([&](float& sum, int i) { sum += __ldcg(&place(split, i)); });
  }
  return true;
}

// False where another block stores the tile.
template <int kTileFilters>
__device__ __forceinline__ bool multiply_tile(const ConvParameters& p, const Tile& tile,
                                              const TileMemory& memory, const Staging& staging, int thread) {
  const Geometry& g = p.geometry;
  const auto splits = static_cast<std::int32_t>(g.splits.divisor);
  const std::int32_t steps = (g.most_steps + splits - 1) / splits;  // of a split
  const std::int32_t first = tile.split * steps;
#pragma unroll 1
  for (std::int32_t column = 0; column < g.interleave; ++column) {
    const std::int32_t phase = tile.phase_number(g, tile.phase[2] + column);
    const PackedPhase taps = *reinterpret_cast<const PackedPhase*>(
        static_cast<const std::uint8_t*>(p.weights) + g.packed_phase(phase));
    Accumulators<kTileFilters> sums;
    sums.clear();
    visit_math(p.math, [&]<typename Math>() {
      visit_gather<Math>(p.input, [&]<typename Gather>() {
        Mainloop<Math, Gather, kTileFilters>(p, tile, memory.rows, taps, phase, memory.pipeline,
                                             memory.taps_of_steps, thread)
            .run(first, min(taps.steps, first + steps), sums);
      });
    });
    if (splits > 1 && !merge_splits(p, sums, memory.flag, thread)) return false;
    __syncthreads();  // the pipeline may lie where the staging does
    staging.put(sums, g.interleave, column, thread);
    __syncthreads();
  }
  return true;
}

// By all threads: what the store stage reads, in the place of what the mainloop did.
__device__ __forceinline__ Columns fill_columns(const ConvParameters& p, const Tile& tile,
                                                const TileMemory& memory, int thread) {
  const Geometry& g = p.geometry;
  if (thread < g.tile_columns()) {
    const Position position = Position::of(g, tile.position, thread / g.interleave);
    const Pixel pixel = Pixel::of(g, tile, position, tile.phase[2] + thread % g.interleave);
    const OutputTensor& output = p.epilogue.output;
    memory.pixels[thread] = pixel;
    memory.offsets[thread] = pixel.n * output.strides[0] + pixel.d * output.strides[2] +
                             pixel.h * output.strides[3] + pixel.w * output.strides[4];
  }
  return {memory.pixels, memory.offsets};
}

// kIsWide: for tiles of 128 filters; else for those of 64 and 32, whose fewer sums let more blocks share an
// SM.
template <typename Evaluator, bool kIsWide>
__global__ void __launch_bounds__(kThreads, kIsWide || !Evaluator::kIsChain ? 2 : 3)
    implicit_conv(const __grid_constant__ ConvParameters p) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int thread = threadIdx.x;
  const Geometry& g = p.geometry;
  const TileMemory memory = TileMemory::of(p, shared);
  const Tile tile = Tile::of(g, static_cast<std::int32_t>(blockIdx.x), p.first_position_tile);
  if (thread < kTilePositions) memory.rows[thread] = InputRow::of(p, tile, thread);
  const bool of_filters = p.epilogue.words_are_filters;
  const Staging staging{reinterpret_cast<float*>(memory.staging), staging_pitch(g, of_filters), of_filters};
  bool stores;
  if constexpr (kIsWide) {
    stores = multiply_tile<128>(p, tile, memory, staging, thread);
  } else if (g.tile_filters == 64) {
    stores = multiply_tile<64>(p, tile, memory, staging, thread);
  } else {
    stores = multiply_tile<32>(p, tile, memory, staging, thread);
  }
  if (!stores) return;
  const Columns columns = fill_columns(p, tile, memory, thread);
  __syncthreads();
  store_tile<Evaluator>(p, tile, staging, columns, thread);
  if (p.statistics.means == nullptr) return;
  __syncthreads();
  take_statistics(p, tile, staging, memory.pixels, reinterpret_cast<float*>(memory.taps_of_steps), thread);
}

template <typename Evaluator>
ConvKernel conv_kernel(const char* evaluator, bool is_wide) {
  return {evaluator, is_wide ? reinterpret_cast<const void*>(&implicit_conv<Evaluator, true>)
                             : reinterpret_cast<const void*>(&implicit_conv<Evaluator, false>)};
}

}  // namespace epiconv::sm80
