// A chunk: the elements of a walk that one thread computes at a time, and how tensors are read and written
// at them.
//
// A chunk is kWords words, each 16 bytes of the output. The words of a warp's threads lie side by side, so
// that every 16-byte access of the warp is consecutive: 32 first words, then 32 second ones.
#pragma once

#include <cstdint>

#include "device/divisor.h"
#include "device/elements.h"
#include "step.h"

namespace epiconv {

// How a tensor's elements lie along a word that is in one row, an innermost dimension of the walk.
enum class Pattern : std::uint8_t {
  kLinear,     // the tensor's memory runs along the walk, in aligned words
  kOne,        // one element for the whole row
  kWords,      // consecutive, in aligned words
  kScattered,  // anything else
};

template <typename Index, int kDims>
struct TensorRef {
  const void* data;
  Index strides[kDims];
  DType dtype;
  Pattern pattern;
};

// What a kernel is launched with; small, since the host writes it out in every launch. Dimensions are aligned
// to the right: the innermost is the last.
template <typename TheT, typename TheIndex, int kTheDims, int kTheSteps>
struct PassParameters {
  using T = TheT;
  using Index = TheIndex;
  using Tensor = TensorRef<Index, kTheDims>;
  static constexpr int kDims = kTheDims;
  static constexpr int kSteps = kTheSteps;

  std::int64_t count;  // elements
  Divisor extents[kDims];
  Tensor input, output;
  Tensor operands[kNumOperandPlaces];
  std::int32_t num_steps;
  std::int32_t num_before_norm;
  std::int32_t save_input;  // slot for v0, or -1
  std::uint8_t fetches[kSteps];
  Step<T> steps[kSteps];
};

// What kernels are compiled for. Index is the type of element numbers and offsets; kDims is the most
// dimensions that the walk may have, and kSteps the most steps that the program may.
template <typename TheT, int kTheWord, int kTheWords, typename TheIndex, int kTheDims, int kTheSteps>
struct ChunkShape {
  using T = TheT;
  using Index = TheIndex;
  using Parameters = PassParameters<T, Index, kTheDims, kTheSteps>;
  static constexpr int kWord = kTheWord;  // elements
  static constexpr int kWords = kTheWords;
  static constexpr int kCount = kWord * kWords;
  static constexpr int kDims = kTheDims;
};
inline constexpr int kNarrowDims = 3;
template <int kWords, int kSteps = kMaxSteps>
using ShapeOf32Bit = ChunkShape<float, 4, kWords, std::int32_t, kNarrowDims, kSteps>;
template <int kWords, int kSteps = kMaxSteps>
using ShapeOf16Bit = ChunkShape<float, 8, kWords, std::int32_t, kNarrowDims, kSteps>;
// For walks of more dimensions, and for element numbers or offsets of 2^31 and more.
using ShapeOfLarge = ChunkShape<float, 4, 2, std::int64_t, kMaxDims, kMaxSteps>;
using ShapeOfDouble = ChunkShape<double, 2, 2, std::int64_t, kMaxDims, kMaxSteps>;

inline constexpr int kStaticSteps = 7;  // of a static program, at most
using StaticParameters = PassParameters<float, std::int32_t, kNarrowDims, kStaticSteps>;
using InterpretedParameters = PassParameters<float, std::int32_t, kNarrowDims, kMaxSteps>;
using LargeParameters = ShapeOfLarge::Parameters;
using DoubleParameters = ShapeOfDouble::Parameters;

// Coordinates of one element in the walk.
template <typename Shape>
struct Coordinates {
  using Index = typename Shape::Index;
  static constexpr int kDims = Shape::kDims;
  Index at[kDims];

  __device__ __forceinline__ static Coordinates of(const typename Shape::Parameters& pass, Index index) {
    Coordinates result;
#pragma unroll
    for (int d = kDims - 1; d > 0; --d) {
      const Divisor& extent = pass.extents[d];
      const Index quotient = extent.quotient(index);
      result.at[d] = index - quotient * static_cast<Index>(extent.divisor);
      index = quotient;
    }
    result.at[0] = index;
    return result;
  }

  __device__ __forceinline__ Index offset(const TensorRef<Index, kDims>& tensor) const {
    Index sum = 0;
#pragma unroll
    for (int d = 0; d < kDims; ++d) sum += at[d] * tensor.strides[d];
    return sum;
  }
};

template <typename Shape>
struct Chunk {
  using T = typename Shape::T;
  using Index = typename Shape::Index;
  using Parameters = typename Shape::Parameters;
  using Tensor = typename Parameters::Tensor;
  using Values = T[Shape::kCount];
  static constexpr int kWord = Shape::kWord;
  static constexpr int kWords = Shape::kWords;

  const Parameters& pass;
  Index begin;                    // the first element
  Index distance;                 // from a word's first element to the next word's
  Index end;                      // elements from here on are left out
  bool is_whole;                  // none is
  Coordinates<Shape> at[kWords];  // of the first elements
  bool is_in_rows;                // the chunk is whole, and each word lies in one row

  // `begin` lies before `end`.
  __device__ __forceinline__ Chunk(const Parameters& the_pass, Index the_begin, Index the_distance,
                                   Index the_end)
      : pass(the_pass), begin(the_begin), distance(the_distance), end(the_end) {
    is_whole = end - begin >= (kWords - 1) * distance + kWord;
    is_in_rows = is_whole;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      at[w] = Coordinates<Shape>::of(pass, element(w, 0));
      is_in_rows = is_in_rows && row() - at[w].at[Shape::kDims - 1] >= kWord;
    }
  }

  // Whether the tensor has one element for each word; `ones` are they.
  __device__ __forceinline__ bool load_ones(const Tensor& tensor, T (&ones)[kWords]) const {
    if (tensor.pattern != Pattern::kOne || !is_in_rows || !is_floating(tensor.dtype)) return false;
    visit_floating<T>(tensor.dtype, [&]<typename Stored>() {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        ones[w] = from_stored<T>(static_cast<const Stored*>(tensor.data)[at[w].offset(tensor)]);
      }
    });
    return true;
  }

  // Element j of word w.
  __device__ __forceinline__ Index element(int w, int j) const { return begin + w * distance + j; }

  __device__ __forceinline__ void load(const Tensor& tensor, Values& values) const {
    if (tensor.pattern == Pattern::kLinear && is_whole) {
      load_words(tensor, [&](int w) { return element(w, 0); }, values);
    } else if (tensor.pattern == Pattern::kOne && is_whole && row() >= kWord && is_floating(tensor.dtype)) {
      load_ones_of_two_rows(tensor, values);
    } else if (tensor.pattern == Pattern::kWords && is_in_rows) {
      load_words(tensor, [&](int w) { return at[w].offset(tensor); }, values);
    } else {
      load_scattered(tensor, values);
    }
  }

  __device__ __forceinline__ void store(const Tensor& tensor, const Values& values) const {
    void* const data = const_cast<void*>(tensor.data);
    visit_floating<T>(tensor.dtype, [&]<typename Stored>() {
      if (tensor.pattern == Pattern::kLinear && is_whole) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          store_packed<Stored, kWord>(values + w * kWord, static_cast<Stored*>(data) + element(w, 0));
        }
        return;
      }
#pragma unroll
      for (int j = 0; j < Shape::kCount; ++j) {
        const Index index = element(j / kWord, j % kWord);
        if (index >= end) continue;
        static_cast<Stored*>(data)[Coordinates<Shape>::of(pass, index).offset(tensor)] =
            to_stored<Stored>(values[j]);
      }
    });
  }

 private:
  // Elements of a row.
  __device__ __forceinline__ Index row() const {
    return static_cast<Index>(pass.extents[Shape::kDims - 1].divisor);
  }

  // Of words that may end in the next row.
  __device__ __forceinline__ void load_ones_of_two_rows(const Tensor& tensor, Values& values) const {
    visit_floating<T>(tensor.dtype, [&]<typename Stored>() {
      const Stored* const data = static_cast<const Stored*>(tensor.data);
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const Coordinates<Shape> last = Coordinates<Shape>::of(pass, element(w, kWord - 1));
        const T of_first = from_stored<T>(data[at[w].offset(tensor)]);
        const T of_last = from_stored<T>(data[last.offset(tensor)]);
        const Index left = row() - at[w].at[Shape::kDims - 1];
#pragma unroll
        for (int j = 0; j < kWord; ++j) values[w * kWord + j] = j < left ? of_first : of_last;
      }
    });
  }

  // offset(w) is where word w lies in the tensor.
  template <typename Offset>
  __device__ __forceinline__ static void load_words(const Tensor& tensor, Offset&& offset, Values& values) {
    visit_floating<T>(tensor.dtype, [&]<typename Stored>() {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        load_packed<T, Stored, kWord>(values + w * kWord,
                                      static_cast<const Stored*>(tensor.data) + offset(w));
      }
    });
  }

  // Elements from `end` on are read as the last one before it.
  __device__ __forceinline__ void load_scattered(const Tensor& tensor, Values& values) const {
#pragma unroll 1
    for (int i = 0; i < Shape::kCount; ++i) {
      const Index index = element(i / kWord, i % kWord);
      const auto coordinates = Coordinates<Shape>::of(pass, index < end ? index : end - 1);
      const T value = load_element<T>(tensor.data, tensor.dtype, coordinates.offset(tensor));
      // Registers cannot be indexed.
#pragma unroll
      for (int j = 0; j < Shape::kCount; ++j) values[j] = i == j ? value : values[j];
    }
  }
};

}  // namespace epiconv
