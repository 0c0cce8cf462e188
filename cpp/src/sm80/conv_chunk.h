// The chunk of the portable kernel's epilogue: words of four sums of a thread, each pixels of a filter or
// filters of a pixel. What the evaluators of device/evaluators.h run on.
#pragma once

#include "device/evaluators.h"
#include "device/ptx/load_shared.h"
#include "device/ptx/store_global.h"
#include "device/ptx/store_shared.h"
#include "sm80/im2col_geometry.h"
#include "sm80/parameters.h"

namespace epiconv {

namespace sm80 {

// A row of the products has kRowWords words of a thread, kWordColumns columns apart; a thread's next row is
// kRowDistance behind.
inline constexpr int kRowWords = 2;
inline constexpr int kWordColumns = 16;
inline constexpr int kRowDistance = 8;

template <int kTheWords>
struct ConvShape {
  using T = float;
  using Index = std::int64_t;
  using Parameters = EpilogueParameters;
  static constexpr int kWord = 4;
  static constexpr int kWords = kTheWords;
  static constexpr int kCount = kWord * kWords;
};

// What all chunks of a tile and a phase share.
struct TilePlace {
  const Geometry& g;
  const Tile& tile;
  const Column* columns;
  const float* filter_operands;  // [operand][filter of the tile]
  const PhasePlace& phase;

  // Columns of the output from a position on, up to the end of its row; none where it lies outside.
  __device__ __forceinline__ std::int32_t room(const Column& column) const {
    if (kIsCompiled && g.has_whole_tiles() && !has_linear_rows(g)) return g.tile_columns();
    return column.outside & phase.outside ? 0 : phase.columns - column.number * g.interleave;
  }
  __device__ __forceinline__ std::int32_t filters() const {
    if (kIsCompiled && g.filters % g.tile_filters == 0) return g.tile_filters;
    return min(g.filters - tile.filter, g.tile_filters);
  }
  // Where a tensor has a position's pixel; of positions outside one that lies inside.
  __device__ __forceinline__ std::int64_t pixel_offset(const OutputTensor& tensor, std::int32_t position,
                                                       std::int32_t column_phase) const {
    const Position at = Position::in_grid(g, tile, position);
    const auto image = static_cast<std::int32_t>(g.batch - 1);
    std::int64_t offset = min(at.at[0], image) * tensor.strides[0];
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      const std::int32_t added = phase.phase.of[d] + (d == kDims - 1 ? column_phase : 0);
      const std::int32_t pixel = at.at[1 + d] * g.phases[d] + added;
      offset += min(pixel, g.output[d] - 1) * tensor.strides[2 + d];
    }
    return offset;
  }
};

}  // namespace sm80

template <int kTheWords>
inline constexpr bool kHasShortcuts<sm80::ConvShape<kTheWords>> = true;

template <int kTheWords>
struct Chunk<sm80::ConvShape<kTheWords>> {
  static constexpr int kWord = 4;
  static constexpr int kWords = kTheWords;
  static constexpr int kCount = kWord * kWords;
  using Tensor = sm80::OutputTensor;
  using Values = float[kCount];

  const sm80::EpilogueParameters& pass;
  const sm80::ConvLaunch& launch;
  const sm80::TilePlace& place;
  std::int32_t row, column;  // of the first word, in the tile
  // Of a slice (im2col_conv.h), in which the chunk has rows from `slice_row` and bytes from `slice_byte` on.
  std::uint32_t slice = 0;
  std::int32_t slice_row = 0, slice_byte = 0;

  // Whether the tensor has one element for each word; `ones` are they.
  __device__ __forceinline__ bool load_ones(const Tensor& tensor, float (&ones)[kWords]) const {
    if (tensor.is_of_filters) {
      const bool filters_are_rows = place.g.filters_are_rows;
      if (!filters_are_rows && tensor.strides[1] != 0) return false;
#pragma unroll
      for (int w = 0; w < kWords; w += sm80::kRowWords) {
        ones[w] = filter_operand(tensor)[filters_are_rows ? row_of(w) : 0];
#pragma unroll
        for (int c = 1; c < sm80::kRowWords; ++c) {
          ones[w + c] = has_lines() ? filter_operand(tensor)[row_of(w + c)] : ones[w];
        }
      }
      return true;
    }
    if (tensor.pattern != Pattern::kOne || !pass.in_rows) return false;
    // A word of pixels may lie in two images.
    if (tensor.strides[0] != 0 && sm80::has_linear_rows(place.g) && !has_whole_rooms()) return false;
    visit_floating<float>(tensor.dtype, [&]<typename Stored>() {
      const Stored* const data = static_cast<const Stored*>(data_of(tensor));
#pragma unroll
      for (int w = 0; w < kWords; ++w) ones[w] = from_stored<float>(data[find(tensor, w, 0)]);
    });
    return true;
  }

  __device__ __forceinline__ void load(const Tensor& tensor, Values& values) const {
    if (sm80::kIsCompiled && place.g.im2col_slots > 0 && tensor.place == pass.staged_operand &&
        pass.staged_operand >= 0 && launch.stages_operand)
      return load_slice(values);
    const bool is_narrow = is_floating(tensor.dtype) && tensor.dtype != DType::kFloat64;
    if (words_are_apart() && tensor.is_like_output && !tensor.is_of_filters && is_narrow)
      return load_apart(tensor, values);
    float ones[kWords];
    if (load_ones(tensor, ones)) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = ones[j / kWord];
    } else if (tensor.is_of_filters) {
      // Words of filters: the same in each row.
#pragma unroll
      for (int c = 0; c < sm80::kRowWords; ++c) {
        const auto four = *reinterpret_cast<const float4*>(filter_operand(tensor) + column_of(c, 0));
#pragma unroll
        for (int w = c; w < kWords; w += sm80::kRowWords) {
          float* const word = values + w * kWord;
          word[0] = four.x, word[1] = four.y, word[2] = four.z, word[3] = four.w;
        }
      }
    } else if (tensor.pattern == Pattern::kWords && pass.in_rows) {
      visit_floating<float>(tensor.dtype, [&]<typename Stored>() {
        load_words(tensor, static_cast<const Stored*>(data_of(tensor)), values);
      });
    } else {
      load_scattered(tensor, values);
    }
  }

  __device__ __forceinline__ void store(const Values& values) const {
    if (sm80::kIsCompiled && place.g.im2col_slots > 0) return store_slice(values);
    visit_floating<float>(pass.output.dtype, [&]<typename Stored>() {
      Stored* const data = static_cast<Stored*>(launch.output);
      if (words_are_apart()) {
        for_all_words([&](int w, const std::int64_t& offset, std::int32_t room) {
#pragma unroll
          for (int e = 0; e < kWord; ++e) {
            if (e >= room) continue;
            data[offset + e * pass.output.strides[1]] = to_stored<Stored>(values[w * kWord + e]);
          }
        });
        return;
      }
      if (!pass.in_rows) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const int w = j / kWord, e = j % kWord;
          if (exists(w, e)) data[find(pass.output, w, e)] = to_stored<Stored>(values[j]);
        }
        return;
      }
      for_all_words([&](int w, const std::int64_t& offset, std::int32_t room) {
        Stored* const to = data + offset;
        const float* const word = values + w * kWord;
        if (room >= kWord && is_aligned<kWord>(has_whole_words(pass.output) ? data : to)) {
          ptx::store_global(to, pack_word<Stored>(word));
        } else if (room >= kWord && is_aligned<kWord / 2>(to)) {
          store_packed<Stored, kWord / 2>(word, to);
          store_packed<Stored, kWord / 2>(word + kWord / 2, to + kWord / 2);
        } else if (room < kWord && sm80::has_linear_rows(place.g) && !has_whole_rooms()) {
#pragma unroll
          for (int e = 0; e < kWord; ++e) {
            if (exists(w, e)) data[find(pass.output, w, e)] = to_stored<Stored>(word[e]);
          }
        } else {
#pragma unroll
          for (int e = 0; e < kWord; ++e) {
            if (e < room) to[e] = to_stored<Stored>(word[e]);
          }
        }
      });
    });
  }

 private:
  // Whether words are filters that do not lie side by side in the output; of kernels compiled for one plan.
  __device__ __forceinline__ bool words_are_apart() const {
    return sm80::kIsCompiled && place.g.is_im2col && !place.g.filters_are_rows && pass.output.strides[1] != 1;
  }
  __device__ __forceinline__ void load_apart(const Tensor& tensor, Values& values) const {
    visit_floating<float>(tensor.dtype, [&]<typename Stored>() {
      const Stored* const data = static_cast<const Stored*>(data_of(tensor));
      for_all_words([&](int w, const std::int64_t& offset, std::int32_t room) {
#pragma unroll
        for (int e = 0; e < kWord; ++e) {
          const std::int64_t at = offset + e * tensor.strides[1];
          values[w * kWord + e] = e < room ? from_stored<float>(data[at]) : 0.0f;
        }
      });
    });
  }
  // Of a word of a slice, whose elements are the output's.
  __device__ __forceinline__ std::uint32_t in_slice(int w, int size) const {
    return slice + sm80::slice_offset(place.g.im2col_slice_bytes, slice_row + row_of(w) - row,
                                      slice_byte + (column_of(w, 0) - column) * size);
  }
  __device__ __forceinline__ void load_slice(Values& values) const {
    visit_floating<float>(pass.output.dtype, [&]<typename Stored>() {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const auto word = ptx::load_shared_as<Packed<Stored, kWord>>(in_slice(w, sizeof(Stored)));
#pragma unroll
        for (int e = 0; e < kWord; ++e) values[w * kWord + e] = from_stored<float>(word.values[e]);
      }
    });
  }
  __device__ __forceinline__ void store_slice(const Values& values) const {
    visit_floating<float>(pass.output.dtype, [&]<typename Stored>() {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        ptx::store_shared_as(in_slice(w, sizeof(Stored)), pack_word<Stored>(values + w * kWord));
      }
    });
  }
  __device__ __forceinline__ const void* data_of(const Tensor& operand) const {
    return launch.operands[operand.place];
  }
  __device__ __forceinline__ const float* filter_operand(const Tensor& tensor) const {
    return place.filter_operands + tensor.filter_operand * place.g.tile_filters;
  }
  // Calls visitor(word, its offset in the output, how many of its elements exist, or more). Offsets are sums
  // of a position's and a filter's; they are not kept through the program.
  template <typename Visitor>
  __device__ __forceinline__ void for_all_words(Visitor&& visitor) const {
    const bool filters_are_rows = place.g.filters_are_rows;
    const auto line = [&](bool is_filter, std::int32_t number, std::int64_t& offset) {
      if (is_filter) {
        offset = number * pass.output.strides[1];
        return place.filters() - number;
      }
      const sm80::Column at = place.columns[number];
      offset = at.offset + place.phase.offset;
      return place.room(at);
    };
    std::int64_t of_columns[sm80::kRowWords];
    std::int32_t columns_left[sm80::kRowWords];
#pragma unroll
    for (int c = 0; c < sm80::kRowWords; ++c) {
      columns_left[c] =
          line(!filters_are_rows, filters_are_rows ? position(c, 0) : column_of(c, 0), of_columns[c]);
    }
#pragma unroll
    for (int w = 0; w < kWords; w += sm80::kRowWords) {
      std::int64_t of_row;
      bool exists = line(filters_are_rows, row_of(w), of_row) > 0;
#pragma unroll
      for (int c = 0; c < sm80::kRowWords; ++c) {
        if (c > 0 && has_lines()) exists = line(true, row_of(w + c), of_row) > 0;
        visitor(w + c, of_row + of_columns[c], exists ? columns_left[c] : 0);
      }
    }
  }
  // Words of lines (im2col_lines.h) are of one column, and of two rows that follow each other in turn.
  __device__ __forceinline__ bool has_lines() const { return sm80::kIsCompiled && place.g.im2col_lines; }
  __device__ __forceinline__ std::int32_t row_of(int w) const {
    return row + w / sm80::kRowWords * sm80::kRowDistance + (has_lines() ? w % sm80::kRowWords : 0);
  }
  __device__ __forceinline__ std::int32_t column_of(int w, int e) const {
    return column + (has_lines() ? 0 : w % sm80::kRowWords * sm80::kWordColumns) + e;
  }
  // Of an element: its filter, and its position, in the tile.
  __device__ __forceinline__ std::int32_t filter(int w, int e) const {
    return place.g.filters_are_rows ? row_of(w) : column_of(w, e);
  }
  __device__ __forceinline__ std::int32_t position(int w, int e) const {
    if (!place.g.filters_are_rows) return row_of(w);
    return place.g.interleave > 1 ? column_of(w, e) / sm80::kMostInterleave : column_of(w, e);
  }

  template <typename Stored>
  __device__ __forceinline__ static Packed<Stored, kWord> pack_word(const float* word) {
    Packed<Stored, kWord> packed;
#pragma unroll
    for (int e = 0; e < kWord; ++e) packed.values[e] = to_stored<Stored>(word[e]);
    return packed;
  }
  // Whether it is known that all words of a tensor are aligned where it is itself.
  __device__ __forceinline__ bool has_whole_words(const Tensor& tensor) const {
    if (!sm80::kIsCompiled || place.g.filters * (place.g.groups - 1) % kWord != 0) return false;
    const int along = place.g.filters_are_rows ? sm80::kTensorDims - 1 : 1;  // the dimension of a word
    bool are_whole = true;
#pragma unroll
    for (int d = 0; d < sm80::kTensorDims; ++d) {
      are_whole = are_whole && tensor.strides[d] % kWord == (d == along && tensor.strides[d] == 1 ? 1 : 0);
    }
    return are_whole;
  }
  // Whether it is known that of each word all elements exist, or none.
  __device__ __forceinline__ bool has_whole_rooms() const {
    return sm80::kIsCompiled && sm80::has_linear_rows(place.g) && place.g.image_positions() % kWord == 0;
  }
  template <int kElements, typename Stored>
  __device__ __forceinline__ static bool is_aligned(const Stored* address) {
    return reinterpret_cast<std::uintptr_t>(address) % (kElements * sizeof(Stored)) == 0;
  }

  // Of an element in a tensor; of one that does not exist an element that does.
  __device__ __forceinline__ std::int64_t find(const Tensor& tensor, int w, int e) const {
    const sm80::Tile& tile = place.tile;
    const std::int32_t in_tile = min(filter(w, e), place.filters() - 1);
    const std::int64_t of_filter = (tile.group * place.g.filters + tile.filter + in_tile) * tensor.strides[1];
    const bool is_second = place.g.interleave > 1 && column_of(w, e) % sm80::kMostInterleave == 1;
    return place.pixel_offset(tensor, position(w, e), is_second ? 1 : 0) + of_filter;
  }

  __device__ __forceinline__ bool exists(int w, int e) const {
    if (filter(w, e) >= place.filters()) return false;
    if (!place.g.filters_are_rows) return place.room(place.columns[row_of(w)]) > 0;
    const bool is_second = place.g.interleave > 1 && column_of(w, e) % sm80::kMostInterleave == 1;
    return place.room(place.columns[position(w, e)]) > (is_second ? 1 : 0);
  }

  template <typename Stored>
  __device__ __forceinline__ void load_words(const Tensor& tensor, const Stored* data, Values& values) const {
    for_all_words([&](int w, const std::int64_t& offset, std::int32_t room) {
      const Stored* const from = data + (tensor.is_like_output ? offset : find(tensor, w, 0));
      float* const word = values + w * kWord;
      if (room >= kWord && is_aligned<kWord>(has_whole_words(tensor) ? data : from)) {
        load_packed<float, Stored, kWord>(word, from);
      } else if (room >= kWord && is_aligned<kWord / 2>(from)) {
        load_packed<float, Stored, kWord / 2>(word, from);
        load_packed<float, Stored, kWord / 2>(word + kWord / 2, from + kWord / 2);
      } else if (room < kWord && sm80::has_linear_rows(place.g) && !has_whole_rooms()) {
#pragma unroll
        for (int e = 0; e < kWord; ++e) {
          word[e] = exists(w, e) ? from_stored<float>(data[find(tensor, w, e)]) : 0.0f;
        }
      } else {
#pragma unroll
        for (int e = 0; e < kWord; ++e) word[e] = e < room ? from_stored<float>(from[e]) : 0.0f;
      }
    });
  }

  __device__ __forceinline__ void load_scattered(const Tensor& tensor, Values& values) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) values[j] = 0.0f;  // else what they were would live up to here
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {
      const float value =
          load_element<float>(data_of(tensor), tensor.dtype, find(tensor, i / kWord, i % kWord));
      // Registers cannot be indexed.
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = i == j ? value : values[j];
    }
  }
};

}  // namespace epiconv
