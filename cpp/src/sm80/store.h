// The store stage: sums go to shared memory, from which words are taken in the order of the output, run
// through the program and stored. So operands and output are read and written side by side, and the program
// has all registers.
#pragma once

#include "sm80/conv_chunk.h"
#include "sm80/mainloop.h"

namespace epiconv::sm80 {

// Where the sums of a tile lie in shared memory: lines of `pitch` floats.
struct Staging {
  float* data;
  std::int32_t pitch;
  bool lines_are_pixels;  // of filters; else lines are filters, of pixels

  __device__ __forceinline__ float& at(std::int32_t column, std::int32_t filter) const {
    return lines_are_pixels ? data[column * pitch + filter] : data[filter * pitch + column];
  }

  // A thread's sums. Position i is column i * interleave + column_phase.
  template <int kTileFilters>
  __device__ __forceinline__ void put(const Accumulators<kTileFilters>& from, std::int32_t interleave,
                                      std::int32_t column_phase, int thread) const {
    const WarpPlace place = WarpPlace::of<kTileFilters>(thread);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Accumulators<kTileFilters>::kColumnTiles; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::int32_t column = (place.position + 16 * i + 8 * h) * interleave + column_phase;
          const std::int32_t filter = place.filter + 8 * j;
          const float* const sums = from.sums[i][j] + 2 * h;
          if (lines_are_pixels) {
            *reinterpret_cast<float2*>(&at(column, filter)) = {sums[0], sums[1]};
          } else {
            at(column, filter) = sums[0];
            at(column, filter + 1) = sums[1];
          }
        }
      }
    }
  }
};

// Where a thread's words lie in the tile: of pixels it has a word of columns, of one filter after another; of
// filters a word of those, of one pixel after another.
struct WordPath {
  std::int32_t column, filter, column_step, filter_step;

  __device__ __forceinline__ static WordPath of(const Geometry& g, bool words_are_filters, int thread) {
    const int line_words = (words_are_filters ? g.tile_filters : g.tile_columns()) / 4;
    const int lines = kThreads / line_words, line = thread / line_words, in_line = thread % line_words * 4;
    return words_are_filters ? WordPath{line, in_line, lines, 0} : WordPath{in_line, line, 0, lines};
  }
};

// By all threads: runs the program on the tile's sums and stores what it makes, in the staging too where a
// GroupNorm's statistics are taken of it.
template <typename Evaluator>
__device__ __forceinline__ void store_tile(const ConvParameters& p, const Tile& tile, const Staging& staging,
                                           const Columns& columns, int thread) {
  using Shape = typename Evaluator::Shape;
  constexpr int kWord = Shape::kWord, kWords = Shape::kWords;
  const Geometry& g = p.geometry;
  const bool of_filters = p.epilogue.words_are_filters;
  const std::int32_t filters = min(g.tile_filters, g.filters - tile.filter);  // that exist
  const std::int32_t first_filter = tile.group * g.filters + tile.filter;
  const WordPath path = WordPath::of(g, of_filters, thread);
  const std::int32_t step = of_filters ? path.column_step : path.filter_step;
  const std::int32_t begin = of_filters ? path.column : path.filter,
                     end = of_filters ? g.tile_columns() : filters;
  // Filters of a word that exist, and whether a word of pixels lies in a row, are the same for all of a
  // thread's.
  const std::int32_t in_word = of_filters ? filters - path.filter : kWord;
  if (in_word <= 0) return;
  const bool column_in_row = !of_filters && Chunk<Shape>::lies_in_row(p.epilogue, columns, path.column);
#pragma unroll 1
  for (std::int32_t at = begin; at < end; at += kWords * step) {
    const std::int32_t words = min(kWords, (end - at + step - 1) / step);
    const std::int32_t column = of_filters ? at : path.column, filter = of_filters ? path.filter : at;
    float* const from = &staging.at(column, filter);
    const std::int32_t distance = step * staging.pitch;
    bool in_rows = in_word >= kWord && (of_filters || column_in_row);
    typename Chunk<Shape>::Values values;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int there = w < words ? w : 0;
      if (of_filters) {
        in_rows = in_rows && Chunk<Shape>::lies_in_row(p.epilogue, columns, column + there * step);
      }
      const float4 word = *reinterpret_cast<const float4*>(from + there * distance);
      values[w * kWord] = word.x;
      values[w * kWord + 1] = word.y;
      values[w * kWord + 2] = word.z;
      values[w * kWord + 3] = word.w;
    }
    const Chunk<Shape> chunk{p.epilogue, columns,          first_filter + filter,
                             column,     path.filter_step, path.column_step,
                             words,      in_word,          in_rows};
    Evaluator::run(Part::kAll, chunk, values);
    chunk.store(values);
    if (p.statistics.means == nullptr) continue;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (w >= words) break;
      const float* const value = values + w * kWord;
      *reinterpret_cast<float4*>(from + w * distance) = {value[0], value[1], value[2], value[3]};
    }
  }
}

// By all threads, of what they have left in the staging: each filter's mean over the tile's pixels, and the
// sum of squared distances from it. They are taken of distances from the first pixel, so that nothing is lost
// where a mean is far from zero, and equal values have that mean.
__device__ __forceinline__ void take_statistics(const ConvParameters& p, const Tile& tile,
                                                const Staging& staging, const Pixel* pixels, float* scratch,
                                                int thread) {
  const Geometry& g = p.geometry;
  const int filters = g.tile_filters, shares = kThreads / filters;
  const int filter = thread % filters, share = thread / filters;
  const int columns = g.tile_columns() / shares, begin = share * columns;
  const auto sum_of = [&](auto&& term) {
    float sum = 0.0f;
    for (int i = begin; i < begin + columns; ++i) {
      if (pixels[i].n >= 0) sum += term(staging.at(i, filter));
    }
    scratch[thread] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int s = 0; s < shares; ++s) sum += scratch[s * filters + filter];
    __syncthreads();
    return sum;
  };
  int first = 0;
  while (first < g.tile_columns() - 1 && pixels[first].n < 0) ++first;
  const float pivot = staging.at(first, filter);
  const float count = sum_of([](float) { return 1.0f; });
  const float distance = count > 0.0f ? sum_of([&](float value) { return value - pivot; }) / count : 0.0f;
  const float squares = sum_of([&](float value) {
    const float rest = value - pivot - distance;
    return rest * rest;
  });
  if (share != 0 || tile.filter + filter >= g.filters) return;
  const auto tile_phases = static_cast<std::int32_t>(g.tile_phases.divisor);
  const std::int32_t phase = tile.phase_number(g, tile.phase[2]) / g.interleave;
  const std::int64_t row = std::int64_t{tile.position} * tile_phases + phase;
  const std::int64_t to = row * g.groups * g.filters + tile.group * g.filters + tile.filter + filter;
  p.statistics.means[to] = pivot + distance;
  p.statistics.squares[to] = squares;
  if (tile.group == 0 && tile.filter + filter == 0) p.statistics.counts[row] = count;
}

}  // namespace epiconv::sm80
