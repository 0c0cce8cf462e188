// Reads a pass's input at the chunks of one thread, one chunk ahead of its use: a program's steps would
// otherwise wait for memory with too few bytes on their way.
#pragma once

#include <cstdint>

#include "device/chunk.h"

namespace epiconv {

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
  __device__ __forceinline__ InputReader(const PassParameters<T>& pass, const ChunkSequence<Index>& sequence,
                                         bool all_whole)
      : pass_(pass), sequence_(sequence) {
    const int size = dtype_size(pass.input.dtype);
    ahead_ = all_whole && pass.input.pattern == Pattern::kLinear && size * Shape::kWord == sizeof(uint4);
    if (ahead_ && sequence.count > 0) fetch(0);
  }

  // The values of the sequence's chunk `index`, for each in turn.
  __device__ __forceinline__ void next(const Chunk<Shape>& chunk, int index, T (&values)[Shape::kCount]) {
    if (!ahead_) {
      chunk.load(pass_.input, values);
      return;
    }
    visit_floating<T>(pass_.input.dtype, [&]<typename Stored>() {
      if constexpr (sizeof(Stored) * Shape::kWord == sizeof(uint4)) {
#pragma unroll
        for (int w = 0; w < Shape::kWords; ++w) {
          Packed<Stored, Shape::kWord> packed;
          __builtin_memcpy(&packed, &words_[w], sizeof(packed));
#pragma unroll
          for (int j = 0; j < Shape::kWord; ++j)
            values[w * Shape::kWord + j] = from_stored<T>(packed.values[j]);
        }
      }
    });
    if (index + 1 < sequence_.count) fetch(index + 1);
  }

 private:
  __device__ __forceinline__ void fetch(int index) {
    const uint4* const words = static_cast<const uint4*>(pass_.input.data);
    const Index first = sequence_.first(index);
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w)
      words_[w] = words[(first + w * sequence_.word_distance) / Shape::kWord];
  }

  const PassParameters<T>& pass_;
  const ChunkSequence<Index>& sequence_;
  uint4 words_[Shape::kWords] = {};  // of the next chunk
  bool ahead_;
};

}  // namespace epiconv
