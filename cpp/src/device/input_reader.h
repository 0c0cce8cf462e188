// Reads a pass's input at the chunks of one thread, several chunks ahead of their use: a program's steps
// would otherwise wait for memory with too few bytes on their way. What is under way is held in shared
// memory, of which every thread has its own part, so that it takes no registers and threads need not wait for
// each other.
#pragma once

#include <cstdint>

#include "device/chunk.h"
#include "device/ptx/cp_async.h"

namespace epiconv {

inline constexpr int kBlockThreads = 256;

// Where the chunks of a thread lie: number c begins at element begin + c * distance.
template <typename Index>
struct ChunkSequence {
  Index begin;
  Index distance;
  Index word_distance;
  int count;

  __device__ __forceinline__ Index first(int chunk) const { return begin + chunk * distance; }
};

template <typename Shape>
class InputReader {
 public:
  using T = typename Shape::T;
  using Index = typename Shape::Index;

  // `all_whole`: every chunk of the sequence lies inside the walk. All threads of a warp agree on it.
  __device__ __forceinline__ InputReader(const typename Shape::Parameters& pass,
                                         const ChunkSequence<Index>& sequence, bool all_whole)
      : pass_(pass), sequence_(sequence) {
    const int size = dtype_size(pass.input.dtype);
    ahead_ = all_whole && pass.input.pattern == Pattern::kLinear && size * Shape::kWord == sizeof(uint4);
    if (!ahead_) return;
#pragma unroll
    for (int chunk = 0; chunk < kAhead; ++chunk) fetch(chunk);
  }

  // The values of the sequence's chunk `index`, for each in turn.
  __device__ __forceinline__ void next(const Chunk<Shape>& chunk, int index, T (&values)[Shape::kCount]) {
    if (!ahead_) {
      chunk.load(pass_.input, values);
      return;
    }
    ptx::cp_async_wait<kAhead - 1>();
    visit_floating<T>(pass_.input.dtype, [&]<typename Stored>() {
      if constexpr (sizeof(Stored) * Shape::kWord == sizeof(uint4)) {
#pragma unroll
        for (int w = 0; w < Shape::kWords; ++w) {
          load_packed<T, Stored, Shape::kWord>(values + w * Shape::kWord,
                                               reinterpret_cast<const Stored*>(place(index, w)));
        }
      }
    });
    fetch(index + kAhead);
  }

 private:
  // A power of 2. More would leave too little of the 48 KB for the statistics kernels.
  static constexpr int kAhead = Shape::kWords <= 2 ? 4 : 2;

  // Where word w of a chunk waits for its use.
  __device__ __forceinline__ static uint4* place(int index, int w) {
    __shared__ uint4 words[kAhead][Shape::kWords][kBlockThreads];
    return &words[index % kAhead][w][threadIdx.x];
  }

  __device__ __forceinline__ void fetch(int index) {
    if (index < sequence_.count) {
      const uint4* const words = static_cast<const uint4*>(pass_.input.data);
      const Index first = sequence_.first(index);
#pragma unroll
      for (int w = 0; w < Shape::kWords; ++w) {
        ptx::cp_async_16(place(index, w), words + (first + w * sequence_.word_distance) / Shape::kWord);
      }
    }
    ptx::cp_async_commit();  // of nothing, too, so that the number of groups tells which has arrived
  }

  const typename Shape::Parameters& pass_;
  const ChunkSequence<Index>& sequence_;
  bool ahead_;
};

}  // namespace epiconv
