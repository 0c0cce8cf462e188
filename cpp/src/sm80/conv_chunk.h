// The chunk of the portable kernel's epilogue: words of four elements of a tile, each pixels of a filter or
// filters of a pixel. What the evaluators of device/evaluators.h run on.
#pragma once

#include "device/evaluators.h"
#include "sm80/parameters.h"

namespace epiconv {

namespace sm80 {

template <int kTheWords>
struct ConvShape {
  using T = float;
  using Index = std::int64_t;
  using Parameters = EpilogueParameters;
  static constexpr int kWord = 4;
  static constexpr int kWords = kTheWords;
  static constexpr int kCount = kWord * kWords;
};

// Of the columns of a tile, in shared memory: pixels, of which those with n = -1 do not exist, and where
// filter 0 of them lies in the output.
struct Columns {
  const Pixel* pixels;
  const std::int64_t* offsets;
};

}  // namespace sm80

template <int kTheWords>
struct Chunk<sm80::ConvShape<kTheWords>> {
  static constexpr int kWord = 4;
  static constexpr int kWords = kTheWords;
  static constexpr int kCount = kWord * kWords;
  using Tensor = sm80::OutputTensor;
  using Values = float[kCount];

  const sm80::EpilogueParameters& pass;
  const sm80::Columns& columns;
  // Of the first element of the first word, and from a word to the next.
  std::int32_t filter, column, filter_step, column_step;
  std::int32_t words;    // that exist
  std::int32_t in_word;  // elements of each that exist, if their pixels do
  bool is_in_rows;       // each word is whole, of one image, and consecutive in the output

  // Whether the tensor has one element for each word; `ones` are they.
  __device__ __forceinline__ bool load_ones(const Tensor& tensor, float (&ones)[kWords]) const {
    if (tensor.pattern != Pattern::kOne || !is_in_rows) return false;
    visit_floating<float>(tensor.dtype, [&]<typename Stored>() {
      const Stored* const data = static_cast<const Stored*>(tensor.data);
#pragma unroll
      for (int w = 0; w < kWords; ++w) ones[w] = from_stored<float>(data[find(tensor, w)]);
    });
    return true;
  }

  __device__ __forceinline__ void load(const Tensor& tensor, Values& values) const {
    float ones[kWords];
    if (load_ones(tensor, ones)) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = ones[j / kWord];
    } else if (tensor.pattern == Pattern::kWords && is_in_rows) {
      visit_floating<float>(tensor.dtype, [&]<typename Stored>() {
        load_words(tensor, static_cast<const Stored*>(tensor.data), values);
      });
    } else {
      load_scattered(tensor, values);
    }
  }

  __device__ __forceinline__ void store(const Values& values) const {
    visit_floating<float>(pass.output.dtype, [&]<typename Stored>() {
      Stored* const data = static_cast<Stored*>(const_cast<void*>(pass.output.data));
      std::int64_t offsets[kWords];
      find_all(pass.output, offsets);
      if (is_in_rows && are_aligned(data, offsets)) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          if (w < words) store_packed<Stored, kWord>(values + w * kWord, data + offsets[w]);
        }
        return;
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int w = j / kWord, e = j % kWord;
        if (exists(w, e)) data[offset(pass.output, w, e)] = to_stored<Stored>(values[j]);
      }
    });
  }

  // Whether a word from a column on, all of it, lies in a row of the output.
  __device__ __forceinline__ static bool lies_in_row(const sm80::EpilogueParameters& pass,
                                                     const sm80::Columns& columns, std::int32_t column) {
    const sm80::Pixel* const pixels = columns.pixels + column;
    if (pixels[0].n < 0) return false;
    if (pass.words_are_filters) return pass.output.strides[1] == 1;
    const std::int64_t* const offsets = columns.offsets + column;
    return pixels[kWord - 1].n == pixels[0].n && offsets[kWord - 1] - offsets[0] == kWord - 1;
  }

  // Of a pixel's filter 0 in a tensor.
  __device__ __forceinline__ static std::int64_t pixel_offset(const Tensor& tensor,
                                                              const sm80::Pixel& pixel) {
    return pixel.n * tensor.strides[0] + pixel.d * tensor.strides[2] + pixel.h * tensor.strides[3] +
           pixel.w * tensor.strides[4];
  }

 private:
  // Of word w, or the first one where there is none.
  __device__ __forceinline__ std::int32_t filter_of(int w) const {
    return filter + (w < words ? w : 0) * filter_step;
  }
  __device__ __forceinline__ std::int32_t column_of(int w) const {
    return column + (w < words ? w : 0) * column_step;
  }

  template <typename Stored>
  __device__ __forceinline__ static bool are_aligned(const Stored* data,
                                                     const std::int64_t (&offsets)[kWords]) {
    auto bits = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(data) / sizeof(Stored));
#pragma unroll
    for (int w = 0; w < kWords; ++w) bits |= static_cast<std::uint32_t>(offsets[w]);
    return bits % kWord == 0;
  }

  // Of the first element of word w in a tensor.
  __device__ __forceinline__ std::int64_t find(const Tensor& tensor, int w) const {
    const std::int64_t of_filter = filter_of(w) * tensor.strides[1];
    if (tensor.is_of_filters) return of_filter;
    if (tensor.is_like_output) return columns.offsets[column_of(w)] + of_filter;
    return pixel_offset(tensor, columns.pixels[column_of(w)]) + of_filter;
  }
  __device__ __forceinline__ void find_all(const Tensor& tensor, std::int64_t (&offsets)[kWords]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) offsets[w] = find(tensor, w);
  }

  template <typename Stored>
  __device__ __forceinline__ void load_words(const Tensor& tensor, const Stored* data, Values& values) const {
    std::int64_t offsets[kWords];
    find_all(tensor, offsets);
    if (tensor.is_of_filters && are_aligned(data, offsets)) {  // all words are of the same filters
      load_packed<float, Stored, kWord>(values, data + offsets[0]);
#pragma unroll
      for (int j = kWord; j < kCount; ++j) values[j] = values[j % kWord];
    } else if (are_aligned(data, offsets)) {
#pragma unroll
      for (int w = 0; w < kWords; ++w)
        load_packed<float, Stored, kWord>(values + w * kWord, data + offsets[w]);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = from_stored<float>(data[offsets[j / kWord] + j % kWord]);
    }
  }

  __device__ __forceinline__ bool exists(int w, int e) const {
    return w < words && e < in_word && columns.pixels[column_of(w) + (pass.words_are_filters ? 0 : e)].n >= 0;
  }
  __device__ __forceinline__ std::int64_t offset(const Tensor& tensor, int w, int e) const {
    const sm80::Pixel pixel = columns.pixels[column_of(w) + (pass.words_are_filters ? 0 : e)];
    return pixel_offset(tensor, pixel) +
           (filter_of(w) + (pass.words_are_filters ? e : 0)) * tensor.strides[1];
  }

  // Elements that do not exist are read as the tensor's first.
  __device__ __forceinline__ void load_scattered(const Tensor& tensor, Values& values) const {
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {
      const int w = i / kWord, e = i % kWord;
      const float value =
          load_element<float>(tensor.data, tensor.dtype, exists(w, e) ? offset(tensor, w, e) : 0);
      // Registers cannot be indexed.
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = i == j ? value : values[j];
    }
  }
};

}  // namespace epiconv
