// The store stage: a thread's sums, as words in the order of the output, run through the program and are
// stored, chunk by chunk. It waits for no other thread, so that warps store while others multiply.
#pragma once

#include "sm80/conv_chunk.h"
#include "sm80/mainloop.h"

namespace epiconv::sm80 {

// The words of a thread: sums row by row, from a row and a column of the tile on. Those of the first chunk
// stay in registers; the others wait in shared memory, where no other thread reads or writes them, since the
// program has the registers. Sums of two column phases, that follow each other in turn, wait as halves of
// words, the first phase's all, until the second's are there.
template <int kChunkWords>
struct Words {
  static constexpr int kChunkElements = kChunkWords * kWordElements;

  std::int32_t thread;
  std::uint32_t first;       // address of all threads' first ones
  std::int32_t row, column;  // of the first word
  std::int32_t count;
  bool in_turn;

  template <typename Sums>
  __device__ __forceinline__ static Words of(const Geometry& g, const TileMemory& memory, int thread) {
    const WarpPlace warp = WarpPlace::of<Sums>(g, thread);
    const bool in_turn = g.interleave > 1;
    const std::int32_t column = in_turn ? kMostInterleave * warp.column + thread % 4 * 4
                                        : warp.column + thread % 2 * 8 + thread % 4 / 2 * 4;
    return {thread,
            memory.words(),
            warp.row + thread % kWarpThreads / 4,
            column,
            Sums::kCount / kWordElements * g.interleave,
            in_turn};
  }

  // Of each row and each two tiles of 16 x 8 a lane has two sums side by side in either tile. It exchanges
  // two with its neighbour, so that it has four of one.
  template <typename Sums>
  __device__ __forceinline__ void take(const Sums& from, float* chunk) const {
    const bool is_odd = thread % 2 == 1;
#pragma unroll
    for (int row = 0; row < 2 * Sums::kRowTiles; ++row) {
#pragma unroll
      for (int j = 0; j < Sums::kColumnTiles; j += 2) {
        const int number = (row * Sums::kColumnTiles + j) / 2;
        const float* const even = from.sums[row / 2][j] + row % 2 * 2;
        const float* const odd = from.sums[row / 2][j + 1] + row % 2 * 2;
        float word[kWordElements];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float got = __shfl_xor_sync(0xFFFFFFFF, is_odd ? even[e] : odd[e], 1);
          word[e] = is_odd ? got : even[e];
          word[2 + e] = is_odd ? odd[e] : got;
        }
        if (number >= kChunkWords) {
          ptx::store_shared(word_at(number), __float_as_uint(word[0]), __float_as_uint(word[1]),
                            __float_as_uint(word[2]), __float_as_uint(word[3]));
          continue;
        }
#pragma unroll
        for (int e = 0; e < kWordElements; ++e) chunk[number * kWordElements + e] = word[e];
      }
    }
  }
  // Of the first column phase, and then of the second.
  template <typename Sums>
  __device__ __forceinline__ void take_first_phase(const Sums& from) const {
    static_assert(Sums::kCount / 2 == kHalves);
#pragma unroll
    for (int n = 0; n < kHalves; ++n) ptx::store_shared(half_at(n), half(from, n)[0], half(from, n)[1]);
  }
  template <typename Sums>
  __device__ __forceinline__ void take_second_phase(const Sums& from, float* chunk) const {
#pragma unroll
    for (int n = 0; n < kChunkWords; ++n) {
      join(n, half(from, n)[0], half(from, n)[1], chunk + n * kWordElements);
    }
#pragma unroll
    for (int n = kChunkWords; n < kHalves; ++n) {
      ptx::store_shared(half_at(second_place(n)), half(from, n)[0], half(from, n)[1]);
    }
  }
  // The chunk from a word behind the first chunk on.
  __device__ __forceinline__ void get(int number, float* chunk) const {
#pragma unroll
    for (int w = 0; w < kChunkWords; ++w) {
      float* const word = chunk + w * kWordElements;
      if (in_turn) {
        const int2 second = ptx::load_shared_2(half_at(second_place(number + w)));
        join(number + w, __int_as_float(second.x), __int_as_float(second.y), word);
      } else {
        const uint4 bits = ptx::load_shared(word_at(number + w));
        word[0] = __uint_as_float(bits.x);
        word[1] = __uint_as_float(bits.y);
        word[2] = __uint_as_float(bits.z);
        word[3] = __uint_as_float(bits.w);
      }
    }
  }

 private:
  static constexpr int kHalves = kThreadSums / kWordElements;  // of a phase

  template <typename Sums>
  __device__ __forceinline__ static const float* half(const Sums& from, int number) {
    const int row = number / Sums::kColumnTiles;
    return from.sums[row / 2][number % Sums::kColumnTiles] + row % 2 * 2;
  }
  // A word of what the first phase has and these.
  __device__ __forceinline__ void join(int number, float second, float fourth, float* word) const {
    const int2 first_phase = ptx::load_shared_2(half_at(number));
    word[0] = __int_as_float(first_phase.x);
    word[1] = second;
    word[2] = __int_as_float(first_phase.y);
    word[3] = fourth;
  }
  // The second phase's halves are where those of the first chunk were, and behind.
  __device__ __forceinline__ static int second_place(int number) {
    const int waiting = number - kChunkWords;
    return waiting < kChunkWords ? waiting : kHalves - kChunkWords + waiting;
  }
  __device__ __forceinline__ std::uint32_t word_at(int number) const {
    return first + ((number - kChunkWords) * kThreads + thread) * kWordBytes;
  }
  __device__ __forceinline__ std::uint32_t half_at(int place) const {
    return first + (place * kThreads + thread) * (kWordBytes / 2);
  }
};

// Runs the program on a thread's words and stores what it makes, in the staging too where a GroupNorm's
// statistics are taken of it. `values` are the first chunk.
template <typename Evaluator>
__device__ __forceinline__ void store_words(const ConvParameters& p, const ConvLaunch& launch,
                                            const TilePlace& place, const TileMemory& memory,
                                            const Words<Evaluator::Shape::kWords>& words,
                                            typename Evaluator::Values& values) {
  using Shape = typename Evaluator::Shape;
  const Geometry& g = p.geometry;
#pragma unroll 1
  for (int done = 0;;) {
    const Chunk<Shape> chunk{p.epilogue, launch, place, words.row + done / kRowWords * kRowDistance,
                             words.column + done % kRowWords * kWordColumns};
    Evaluator::run(Part::kAll, chunk, values);
    chunk.store(values);
    if (p.takes_statistics) {
#pragma unroll
      for (int w = 0; w < Shape::kWords; ++w) {
        const std::int32_t at_row = chunk.row + w / kRowWords * kRowDistance;
        const std::int32_t at_column = chunk.column + w % kRowWords * kWordColumns;
        const float* const word = values + w * Shape::kWord;
        *reinterpret_cast<float4*>(memory.staging() + at_row * staging_pitch(g) + at_column) = {
            word[0], word[1], word[2], word[3]};
      }
    }
    done += Shape::kWords;
    if (done >= words.count) break;
    words.get(done, values);
  }
}

// By all threads, of what they have left in the staging: each filter's mean over the tile's pixels, and the
// sum of squared distances from it. They are taken of distances from the first pixel, so that nothing is lost
// where a mean is far from zero, and equal values have that mean.
__device__ __forceinline__ void take_statistics(const ConvParameters& p, const TileStatistics& statistics,
                                                const TilePlace& place, const TileMemory& memory,
                                                int thread) {
  const Geometry& g = p.geometry;
  const Tile& tile = place.tile;
  const int filters = g.tile_filters, shares = kThreads / filters;
  const int filter = thread % filters, share = thread / filters;
  const int columns = g.tile_columns() / shares, begin = share * columns;
  const auto exists = [&](int column) {
    return place.room(place.columns[column / g.interleave]) > column % g.interleave;
  };
  const auto at = [&](int column) {
    const int pitch = staging_pitch(g);
    return memory.staging()[g.filters_are_rows ? filter * pitch + column : column * pitch + filter];
  };
  const auto sum_of = [&](auto&& term) {
    float sum = 0.0f;
    for (int i = begin; i < begin + columns; ++i) {
      if (exists(i)) sum += term(at(i));
    }
    memory.scratch()[thread] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int s = 0; s < shares; ++s) sum += memory.scratch()[s * filters + filter];
    __syncthreads();
    return sum;
  };
  int first = 0;
  while (first < g.tile_columns() - 1 && !exists(first)) ++first;
  const float pivot = at(first);
  const float count = sum_of([](float) { return 1.0f; });
  const float distance = count > 0.0f ? sum_of([&](float value) { return value - pivot; }) / count : 0.0f;
  const float squares = sum_of([&](float value) {
    const float rest = value - pivot - distance;
    return rest * rest;
  });
  if (share != 0 || filter >= place.filters()) return;
  const auto tile_phases = static_cast<std::int32_t>(g.tile_phases.divisor);
  const std::int64_t row = std::int64_t{tile.position} * tile_phases + tile.phase / g.interleave;
  const std::int64_t to = row * g.groups * g.filters + tile.group * g.filters + tile.filter + filter;
  statistics.means[to] = pivot + distance;
  statistics.squares[to] = squares;
  if (tile.group == 0 && tile.filter + filter == 0) statistics.counts[row] = count;
}

}  // namespace epiconv::sm80
