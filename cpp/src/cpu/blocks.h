// How the CPU's passes walk elements, in blocks, and read and write them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <thread>
#include <vector>

#include "epiconv/epilogue_ops/math.h"
#include "pass.h"

namespace epiconv {

inline constexpr int kBlock = 256;  // elements; a block of every slot stays in the first cache
inline constexpr std::int64_t kMinPerThread = 32768;  // elements that pay for starting a thread

// Calls body(begin, end) over pieces of [0, count), on several threads where it pays.
template <typename Body>
void parallel_for(std::int64_t count, std::int64_t min_per_thread, int threads, const Body& body) {
  const std::int64_t useful = (count + min_per_thread - 1) / min_per_thread;
  const auto workers = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
  const auto begin_of = [&](int worker) { return count * worker / workers; };
  std::vector<std::jthread> others;
  for (int worker = 1; worker < workers; ++worker) {
    others.emplace_back([&, worker] { body(begin_of(worker), begin_of(worker + 1)); });
  }
  if (workers > 0) body(begin_of(0), begin_of(1));
}

inline float from_bfloat16(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

// By way of a float whose exponent is 112 too small, so that float16's denormals come out as floats.
inline float from_float16(std::uint16_t bits) {
  const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return __builtin_bit_cast(float, sign | magnitude | 0x7f800000u);  // inf, NaN
  const float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) | sign);
}

inline std::uint16_t to_bfloat16(float value) {
  if (value != value) return 0x7fc0u;
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, ops::math::round_to_bfloat16(value)) >>
                                    16);
}

inline std::uint16_t to_float16(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, ops::math::round_to_float16(value));
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude == 0x7f800000u) return sign | 0x7c00u;
  // Exact: the value is a float16 already.
  const float scaled = __builtin_bit_cast(float, magnitude) * 0x1p-112f;
  return sign | static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, scaled) >> 13);
}

// Calls visitor(read) with a function from (address, element) to T for a dtype.
template <typename T, typename Visitor>
void visit_reader(DType dtype, const Visitor& visitor) {
  const auto plain = [&]<typename Stored>(Stored) {
    visitor(
        [](const void* data, std::int64_t i) { return static_cast<T>(static_cast<const Stored*>(data)[i]); });
  };
  switch (dtype) {
    case DType::kFloat32:
      return plain(float{});
    case DType::kFloat64:
      return plain(double{});
    case DType::kFloat16:
      return visitor([](const void* data, std::int64_t i) {
        return static_cast<T>(from_float16(static_cast<const std::uint16_t*>(data)[i]));
      });
    case DType::kBFloat16:
      return visitor([](const void* data, std::int64_t i) {
        return static_cast<T>(from_bfloat16(static_cast<const std::uint16_t*>(data)[i]));
      });
    case DType::kBool:
    case DType::kUInt8:
      return plain(std::uint8_t{});
    case DType::kInt8:
      return plain(std::int8_t{});
    case DType::kInt16:
      return plain(std::int16_t{});
    case DType::kInt32:
      return plain(std::int32_t{});
    case DType::kInt64:
      return plain(std::int64_t{});
  }
}

// Where a block of the walk begins, and the offsets of its elements in a tensor.
struct BlockPosition {
  std::int64_t first;
  int count;
  std::array<std::int64_t, kMaxDims> coordinates;
};

inline BlockPosition locate(const Walk& walk, std::int64_t first, std::int64_t end) {
  BlockPosition position{first, static_cast<int>(std::min<std::int64_t>(kBlock, end - first)), {}};
  for (int d = walk.rank - 1; d >= 0; --d) {
    position.coordinates[d] = first % walk.extents[d];
    first /= walk.extents[d];
  }
  return position;
}

// Calls body(offset, begin, end) for the runs of a block that lie in one innermost row: elements begin…end
// of the block are at offset, offset + stride, …
template <typename Body>
void for_each_row(const Walk& walk, const Access& access, const BlockPosition& position, const Body& body) {
  std::array<std::int64_t, kMaxDims> coordinates = position.coordinates;
  const int inner = walk.rank - 1;
  for (int begin = 0; begin < position.count;) {
    std::int64_t offset = 0;
    for (int d = 0; d < walk.rank; ++d) offset += coordinates[d] * access.strides[d];
    const auto run = static_cast<int>(
        std::min<std::int64_t>(position.count - begin, walk.extents[inner] - coordinates[inner]));
    body(offset, begin, begin + run);
    begin += run;
    coordinates[inner] = 0;
    for (int d = inner - 1; d >= 0 && ++coordinates[d] == walk.extents[d]; --d) coordinates[d] = 0;
  }
}

template <typename T>
void read_block(const Walk& walk, const Access& access, const void* data, const BlockPosition& position,
                T* values) {
  const std::int64_t stride = access.strides[walk.rank - 1];
  visit_reader<T>(access.dtype, [&](auto read) {
    for_each_row(walk, access, position, [&](std::int64_t offset, int begin, int end) {
      if (stride == 0) {
        std::fill(values + begin, values + end, read(data, offset));
      } else if (stride == 1) {  // apart, since this loop becomes vector instructions
        for (int i = begin; i < end; ++i) values[i] = read(data, offset + (i - begin));
      } else {
        for (int i = begin; i < end; ++i) values[i] = read(data, offset + (i - begin) * stride);
      }
    });
  });
}

template <typename T>
void write_block(const Walk& walk, const Access& access, void* data, const BlockPosition& position,
                 const T* values) {
  const std::int64_t stride = access.strides[walk.rank - 1];
  const auto write = [&](auto* typed, auto convert) {
    for_each_row(walk, access, position, [&](std::int64_t offset, int begin, int end) {
      if (stride == 1) {
        for (int i = begin; i < end; ++i) typed[offset + (i - begin)] = convert(values[i]);
      } else {
        for (int i = begin; i < end; ++i) typed[offset + (i - begin) * stride] = convert(values[i]);
      }
    });
  };
  switch (access.dtype) {
    case DType::kFloat16:
      return write(static_cast<std::uint16_t*>(data),
                   [](T value) { return to_float16(static_cast<float>(value)); });
    case DType::kBFloat16:
      return write(static_cast<std::uint16_t*>(data),
                   [](T value) { return to_bfloat16(static_cast<float>(value)); });
    case DType::kFloat64:
      return write(static_cast<double*>(data), [](T value) { return static_cast<double>(value); });
    default:
      return write(static_cast<float*>(data), [](T value) { return static_cast<float>(value); });
  }
}

}  // namespace epiconv
