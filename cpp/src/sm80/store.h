// The store stage: a thread's sums, as words in the order of the output, run through the program and are
// stored, chunk by chunk. It waits for no other thread, so that warps store while others multiply.
#pragma once

#include "sm80/conv_chunk.h"
#include "sm80/mainloop.h"

namespace epiconv::sm80 {

// The words of a thread, in shared memory, where no other thread reads or writes them: sums row by row, from
// a row and a column of the tile on. The program has the registers.
struct Words {
  std::uint32_t address;     // of the first; kThreads words from one to the next
  std::int32_t row, column;  // of the first
  std::int32_t count;

  template <typename Sums>
  __device__ __forceinline__ static Words of(const Geometry& g, const TileMemory& memory, int thread) {
    const WarpPlace warp = WarpPlace::of<Sums>(g, thread);
    const bool in_turn = g.interleave > 1;
    const std::int32_t column = in_turn ? kMostInterleave * warp.column + thread % 4 * 4
                                        : warp.column + thread % 2 * 8 + thread % 4 / 2 * 4;
    return {memory.words() + thread * kWordBytes, warp.row + thread % 32 / 4, column,
            Sums::kCount / kWordElements * g.interleave};
  }

  __device__ __forceinline__ void put(int number, const float (&word)[4]) const {
    ptx::store_shared(at(number), __float_as_uint(word[0]), __float_as_uint(word[1]),
                      __float_as_uint(word[2]), __float_as_uint(word[3]));
  }
  __device__ __forceinline__ void get(int number, float* word) const {
    const uint4 bits = ptx::load_shared(at(number));
    word[0] = __uint_as_float(bits.x);
    word[1] = __uint_as_float(bits.y);
    word[2] = __uint_as_float(bits.z);
    word[3] = __uint_as_float(bits.w);
  }

  // Of each row and each two tiles of 16 x 8 a lane has two sums side by side in either tile. It exchanges
  // two with its neighbour, so that it has four of one.
  template <typename Sums>
  __device__ __forceinline__ void take(const Sums& from, int thread) const {
    const bool is_odd = thread % 2 == 1;
#pragma unroll
    for (int row = 0; row < 2 * Sums::kRowTiles; ++row) {
#pragma unroll
      for (int j = 0; j < Sums::kColumnTiles; j += 2) {
        const float* const even = from.sums[row / 2][j] + row % 2 * 2;
        const float* const odd = from.sums[row / 2][j + 1] + row % 2 * 2;
        float word[4];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float got = __shfl_xor_sync(0xFFFFFFFF, is_odd ? even[e] : odd[e], 1);
          word[e] = is_odd ? got : even[e];
          word[2 + e] = is_odd ? odd[e] : got;
        }
        put((row * Sums::kColumnTiles + j) / 2, word);
      }
    }
  }
  // Of two column phases, that follow each other in turn.
  template <typename Sums>
  __device__ __forceinline__ void take_in_turn(const Sums& first, const Sums& second) const {
#pragma unroll
    for (int row = 0; row < 2 * Sums::kRowTiles; ++row) {
#pragma unroll
      for (int j = 0; j < Sums::kColumnTiles; ++j) {
        const float* const from = first.sums[row / 2][j] + row % 2 * 2;
        const float* const behind = second.sums[row / 2][j] + row % 2 * 2;
        put(row * Sums::kColumnTiles + j, {from[0], behind[0], from[1], behind[1]});
      }
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t at(int number) const {
    return address + number * (kThreads * kWordBytes);
  }
};

// Runs the program on a thread's words and stores what it makes, in the staging too where a GroupNorm's
// statistics are taken of it.
template <typename Evaluator>
__device__ __forceinline__ void store_words(const ConvParameters& p, const TilePlace& place,
                                            const TileMemory& memory, const Words& words) {
  using Shape = typename Evaluator::Shape;
  const Geometry& g = p.geometry;
#pragma unroll 1
  for (int done = 0; done < words.count; done += Shape::kWords) {
    float values[Shape::kCount];
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w) words.get(done + w, values + w * Shape::kWord);
    const Chunk<Shape> chunk(p.epilogue, place, words.row + done / kRowWords * kRowDistance,
                             words.column + done % kRowWords * kWordColumns);
    Evaluator::run(Part::kAll, chunk, values);
    chunk.store(values);
    if (p.statistics.means == nullptr) continue;
#pragma unroll
    for (int w = 0; w < Shape::kWords; ++w) {
      const std::int32_t at_row = chunk.row + w / kRowWords * kRowDistance;
      const std::int32_t at_column = chunk.column + w % kRowWords * kWordColumns;
      const float* const word = values + w * Shape::kWord;
      *reinterpret_cast<float4*>(memory.staging() + at_row * staging_pitch(g) + at_column) = {
          word[0], word[1], word[2], word[3]};
    }
  }
}

// By all threads, of what they have left in the staging: each filter's mean over the tile's pixels, and the
// sum of squared distances from it. They are taken of distances from the first pixel, so that nothing is lost
// where a mean is far from zero, and equal values have that mean.
__device__ __forceinline__ void take_statistics(const ConvParameters& p, const TilePlace& place,
                                                const TileMemory& memory, int thread) {
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
  p.statistics.means[to] = pivot + distance;
  p.statistics.squares[to] = squares;
  if (tile.group == 0 && tile.filter + filter == 0) p.statistics.counts[row] = count;
}

}  // namespace epiconv::sm80
