// The portable convolution: implicit GEMM on mma.sync, for any convolution and any card from sm_80 on.
//
// A block computes a tile: a patch of positions (geometry.h) by filters of one group, in one phase; of a
// transposed convolution of stride 2 whose rows are stored as they lie, in both column phases, which are
// stored together; in all phases, where one box of the input serves them all. Eight warps, all alike, each of
// which has some rows and columns of the products' matrix.
//
// First, tables say where the tile's positions lie in the output, and the box's pixels in the input, what the
// block's phases are, and what operands of filters have for the tile's. Then come the products (mainloop.h),
// step by step of gemm_k: all threads bring the next box and the next weights while they multiply. Where
// gemm_k is split sums go to memory, and the last block of a tile to arrive adds them up in the order of
// splits, so that every run gives the same bits. Last (store.h), sums become words of each thread's own, on
// which the program runs, and which are stored; a GroupNorm's statistics are taken of them.
//
// Shared memory: tables, boxes, stages of weights, and words that wait for the program; these lie where boxes
// and weights were, unless another phase needs them again. Then, for statistics only, the staging. Blocks
// wait for nothing but their own threads.
//
// Registers decide how many blocks share an SM, and what is spilled goes to the L2 cache. So what is made of
// the thread's number is made anew where it is used (thread_here), and arrays are written on every path: one
// that a path leaves as it was counts as alive before, through the products.
#pragma once

#include "sm80/conv_kernels.h"
#include "sm80/store.h"

namespace epiconv::sm80 {

// Whether this block is the one that stores the tile; then its sums are those of all splits.
template <typename Sums>
__device__ __forceinline__ bool merge_splits(const ConvParameters& p, const ConvLaunch& launch, Sums& sums,
                                             std::uint32_t* flag, int thread) {
  const std::uint32_t splits = p.geometry.splits.divisor, tile = blockIdx.x / splits;
  const auto place = [&](std::uint32_t split, int i) -> float& {
    return launch.partial_sums[(std::int64_t{tile * splits + split} * Sums::kCount + i) * kThreads + thread];
  };
  sums.visit([&](float& sum, int i) { place(blockIdx.x % splits, i) = sum; });
  __threadfence();
  __syncthreads();
  if (thread == 0) *flag = atomicAdd(launch.arrivals + tile, 1u);
  __syncthreads();
  if (*flag != splits - 1) return false;
  __threadfence();
  sums.clear();
  for (std::uint32_t split = 0; split < splits; ++split) {
    sums.visit([&](float& sum, int i) { sum += __ldcg(&place(split, i)); });
  }
  return true;
}

// By all threads.
__device__ __forceinline__ void write_columns(const ConvParameters& p, const Tile& tile,
                                              const TileMemory& memory, int thread) {
  const Geometry& g = p.geometry;
  if (thread >= g.tile_positions) return;
  const Position position = Position::in_grid(g, tile, thread);
  memory.columns()[thread] = Column::of(p, position);
  // Of a linear tile behind the last image there may be no box.
  memory.places()[thread] =
      g.has_linear_tiles() && position.at[0] >= g.batch ? 0 : Position::place(g, tile, thread);
}

// By all threads.
__device__ __forceinline__ void write_phases(const ConvParameters& p, const ConvLaunch& launch,
                                             const Tile& tile, const TileMemory& memory, int thread) {
  if (thread >= p.geometry.block_phases) return;
  const std::int32_t phase = tile.phase + thread;
  memory.phases()[thread] = {static_cast<const PackedPhase*>(launch.weights)[phase],
                             PhasePlace::of(p, tile, phase),
                             p.geometry.packed_step(phase, tile.group, tile.filter_tile, 0)};
}

// What operands of filters have for those of the tile: [operand][filter], of which this is the number `item`.
__device__ __forceinline__ float load_filter_operand(const ConvParameters& p, const ConvLaunch& launch,
                                                     const Tile& tile, int item) {
  const Geometry& g = p.geometry;
  const int row = item >> (31 - __clz(g.tile_filters)), in_tile = item - row * g.tile_filters;
  const OutputTensor& operand = p.epilogue.operands[p.epilogue.filter_operands[row]];
  const std::int64_t filter = tile.group * g.filters + min(tile.filter + in_tile, g.filters - 1);
  return load_element<float>(launch.operands[operand.place], operand.dtype, filter * operand.strides[1]);
}

// The products of the pipeline's next phase.
template <typename Sums, bool kLoadsAhead, bool kMayHaveFilterColumns>
__device__ __forceinline__ void multiply_phase(Pipeline& pipeline, std::int32_t phase, Sums& sums) {
  sums.clear();
  visit_math(pipeline.p.math, [&]<typename Math>() {
    if constexpr (kMayHaveFilterColumns) {
      if (!pipeline.p.geometry.filters_are_rows)
        return Mainloop<Math, Sums, kLoadsAhead, false>(pipeline).run(phase, sums);
    }
    Mainloop<Math, Sums, kLoadsAhead, true>(pipeline).run(phase, sums);
  });
}

// The sums of a phase as words, the first of them as `chunk`. False where another block stores the tile.
template <typename Sums, bool kLoadsAhead, bool kMayHaveFilterColumns, typename TheWords>
__device__ __forceinline__ bool compute_words_of(Pipeline& pipeline, std::int32_t phase, TheWords& words,
                                                 float* chunk) {
  const ConvParameters& p = pipeline.p;
  Sums sums;
  multiply_phase<Sums, kLoadsAhead, kMayHaveFilterColumns>(pipeline, phase, sums);
  if (p.geometry.splits.divisor > 1 &&
      !merge_splits(p, pipeline.launch, sums, pipeline.memory.flag(), pipeline.thread)) {
#pragma unroll
    for (int e = 0; e < TheWords::kChunkElements; ++e) chunk[e] = 0.0f;  // else it would count as alive
    return false;
  }
  words = TheWords::template of<Sums>(p.geometry, pipeline.memory, ptx::thread_here());
  if (p.shared.words == p.shared.boxes) __syncthreads();  // other warps may still read the boxes
  words.take(sums, chunk);
  return true;
}

// The same, of two column phases where these are stored together.
template <bool kLoadsAhead, typename TheWords>
__device__ __forceinline__ bool compute_words(Pipeline& pipeline, std::int32_t phase, TheWords& words,
                                              float* chunk) {
  const ConvParameters& p = pipeline.p;
  if (p.geometry.interleave == 1) {
    if (p.geometry.tile_filters == 16) {
      return compute_words_of<Accumulators<1, 4>, kLoadsAhead, false>(pipeline, phase, words, chunk);
    }
    return compute_words_of<Accumulators<2, 4>, kLoadsAhead, true>(pipeline, phase, words, chunk);
  }
  using Sums = Accumulators<2, 2>;
  Sums sums;
#pragma unroll 1
  for (int i = 0;; ++i) {
    multiply_phase<Sums, kLoadsAhead, false>(pipeline, phase + i, sums);
    words = TheWords::template of<Sums>(p.geometry, pipeline.memory, ptx::thread_here());
    if (i == kMostInterleave - 1) break;
    words.take_first_phase(sums);
  }
  words.take_second_phase(sums, chunk);  // behind the loop, in which the chunk would count as alive
  return true;
}

// Blocks of an SM. Chains leave registers for a third one, the warps of which make up for what is not loaded
// ahead.
template <typename Evaluator>
inline constexpr int kBlocksOf = Evaluator::kIsChain ? 3 : 2;

// Tables, the first box, and what filters' operands have, by all threads; the first weights are on their way.
template <typename ThePipeline>
__device__ __forceinline__ void begin_block(ThePipeline& pipeline) {
  const ConvParameters& p = pipeline.p;
  const ConvLaunch& launch = pipeline.launch;
  const TileMemory& memory = pipeline.memory;
  const int thread = pipeline.thread;
  const int filter_operands = p.geometry.filter_operands * p.geometry.tile_filters;
  bool has_steps;
  float of_filter = 0.0f;
  {
    const Tile tile = Tile::of(p.geometry, static_cast<std::int32_t>(blockIdx.x), launch.first_position_tile);
    if (thread == 0) {
      memory.tile() = tile;
      ptx::store_shared(memory.zeros(), 0u, 0u, 0u, 0u);
    }
    if (thread < filter_operands) of_filter = load_filter_operand(p, launch, tile, thread);
    write_phases(p, launch, tile, memory, thread);
    write_columns(p, tile, memory, thread);
    has_steps = pipeline.begin(tile);
  }
  __syncthreads();
  const Tile& tile = memory.tile();
  if (has_steps) {
    pipeline.begin_copies();
    visit_math(p.math, [&]<typename Math>() { load_first_box<Math>(pipeline); });
  }
  if (thread < filter_operands) memory.filter_operands()[thread] = of_filter;
  for (int item = thread + kThreads; item < filter_operands; item += kThreads) {
    memory.filter_operands()[item] = load_filter_operand(p, launch, tile, item);
  }
  __syncthreads();
}

template <typename Evaluator, bool kLoadsAhead>
__device__ __forceinline__ void run_block(const ConvParameters& p, const ConvLaunch& launch) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int thread = threadIdx.x;
  const TileMemory memory{p.shared, shared};
  Pipeline pipeline(p, launch, memory, thread);
  begin_block(pipeline);
  const Tile& tile = memory.tile();
#pragma unroll 1
  for (std::int32_t phase = 0; phase < p.geometry.block_phases; phase += p.geometry.interleave) {
    Words<Evaluator::Shape::kWords> words;
    typename Evaluator::Values values;
    if (!compute_words<kLoadsAhead>(pipeline, phase, words, values)) return;
    const TilePlace place{p.geometry, tile, memory.columns(), memory.filter_operands(),
                          memory.phases()[phase].place};
    store_words<Evaluator>(p, launch, place, memory, words, values);
    if (!p.takes_statistics) continue;
    __syncthreads();
    take_statistics(p, launch.statistics, place, memory, thread);
  }
}

template <typename Evaluator>
__global__ void __launch_bounds__(kThreads, kBlocksOf<Evaluator>)
    implicit_conv(const __grid_constant__ ConvParameters p, const __grid_constant__ ConvLaunch launch) {
  run_block<Evaluator, kBlocksOf<Evaluator> == 2>(p, launch);
}

template <typename Evaluator>
ConvKernel conv_kernel(const char* evaluator) {
  return {evaluator, reinterpret_cast<const void*>(&implicit_conv<Evaluator>)};
}

}  // namespace epiconv::sm80
