// The pass: output = program(input), element by element.
//
// Every thread computes `chunks_per_thread` chunks, a block's width apart, and reads its input ahead of them.
// Nothing is shared between threads. Input and output may be the same memory: each element is read and
// written by the same thread.
#pragma once

#include "device/evaluators.h"
#include "device/input_reader.h"

namespace epiconv {

template <typename Evaluator>
__global__ void __launch_bounds__(kBlockThreads, Evaluator::kBlocks)
    epilogue_pass(const __grid_constant__ typename Evaluator::Shape::Parameters pass,
                  const int chunks_per_thread) {
  using Shape = typename Evaluator::Shape;
  using Index = typename Shape::Index;
  constexpr Index kBlock = kBlockThreads * Shape::kCount;  // elements between a thread's chunks
  constexpr Index kWordDistance = 32 * Shape::kWord;
  const auto count = static_cast<Index>(pass.count);
  const Index begin = static_cast<Index>(blockIdx.x) * (kBlock * chunks_per_thread);
  const bool all_whole = count - begin >= kBlock * chunks_per_thread;
  const Index warp = threadIdx.x / 32;
  const Index lane = threadIdx.x % 32;
  const Index mine = begin + warp * (32 * Shape::kCount) + lane * Shape::kWord;
  const ChunkSequence<Index> sequence{mine, kBlock, kWordDistance, chunks_per_thread};
  InputReader<Shape> input(pass, sequence, all_whole);
#pragma unroll 1
  for (int i = 0; i < chunks_per_thread; ++i) {
    const Index first = sequence.first(i);
    if (first >= count) break;
    const Chunk<Shape> chunk(pass, first, kWordDistance, count);
    typename Evaluator::Values values;
    input.next(chunk, i, values);
    Evaluator::run(Part::kAll, chunk, values);
    chunk.store(pass.output, values);
  }
}

}  // namespace epiconv
