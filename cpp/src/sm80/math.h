// What is multiplied, and how tensors' elements become that.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "device/elements.h"
#include "device/ptx/convert.h"
#include "device/ptx/mma_sync.h"
#include "epiconv/conv_types.h"

namespace epiconv::sm80 {

__device__ __forceinline__ float as_float(std::uint32_t bits) { return __uint_as_float(bits); }

// Two numbers of 16 bits side by side.
__device__ __forceinline__ std::uint32_t pair_of(std::uint32_t low, std::uint32_t high) {
  return __byte_perm(low, high, 0x5410);
}

struct Tf32 {
  using Element = float;
  static constexpr int kPieceElements = 4;
  struct OfRows {
    std::uint32_t a[4];
    __device__ __forceinline__ void take(const std::uint32_t (&loaded)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = loaded[i];
    }
  };
  struct OfColumns {
    std::uint32_t b[2];
    __device__ __forceinline__ void take(std::uint32_t first, std::uint32_t second) {
      b[0] = first;
      b[1] = second;
    }
  };
  __device__ __forceinline__ static void multiply(float (&d)[4], const OfRows& a, const OfColumns& b) {
    ptx::mma_tf32(d, a.a, b.b);
  }
  // A piece, of elements of float32.
  __device__ __forceinline__ static uint4 pack(const std::uint32_t (&values)[kPieceElements]) {
    return {rounded(values[0]), rounded(values[1]), rounded(values[2]), rounded(values[3])};
  }
  __device__ __forceinline__ static std::uint32_t rounded(std::uint32_t bits) {
    return ptx::round_to_nearest_tf32(as_float(bits));
  }
  __device__ __forceinline__ static float element(float value) {
    return as_float(ptx::round_to_nearest_tf32(value));
  }
};

// A product of float32 as three of TF32: x = high + low, each rounded, and x y = high high + (high low + low
// high), without low low, which is below the last bit. An x that would be rounded to infinity is cut off
// instead. Low of an infinity is NaN, and so is what it makes of sums: where a sum is, it is that of the high
// parts alone, which is right beside an infinity, and NaN where an x is.
struct Ieee {
  using Element = float;
  static constexpr int kPieceElements = 4;

  __device__ __forceinline__ static void part(std::uint32_t bits, std::uint32_t& high, std::uint32_t& low) {
    constexpr std::uint32_t kHighBits = 0xFFFFE000, kInfinity = 0x7F800000;
    const std::uint32_t rounded = ptx::round_to_nearest_tf32(as_float(bits));
    const bool is_huge = (rounded & 0x7FFFFFFF) == kInfinity;
    high = is_huge ? bits & kHighBits : rounded;
    const float rest = as_float(bits) - as_float(high);
    low = is_huge ? __float_as_uint(rest) & kHighBits : ptx::round_to_nearest_tf32(rest);
  }
  struct OfRows {
    std::uint32_t high[4], low[4];
    __device__ __forceinline__ void take(const std::uint32_t (&loaded)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part(loaded[i], high[i], low[i]);
    }
  };
  struct OfColumns {
    std::uint32_t high[2], low[2];
    __device__ __forceinline__ void take(std::uint32_t first, std::uint32_t second) {
      part(first, high[0], low[0]);
      part(second, high[1], low[1]);
    }
  };
  // The tensor cores cut what they add; so few products at a time are added by sums that round.
  __device__ __forceinline__ static void multiply(float (&d)[4], const OfRows& a, const OfColumns& b) {
    float of_high[4] = {}, of_low[4] = {};
    ptx::mma_tf32(of_low, a.low, b.high);
    ptx::mma_tf32(of_low, a.high, b.low);
    ptx::mma_tf32(of_high, a.high, b.high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = of_high[i] + of_low[i];
      d[i] += sum == sum ? sum : of_high[i];
    }
  }
  __device__ __forceinline__ static uint4 pack(const std::uint32_t (&values)[kPieceElements]) {
    return {values[0], values[1], values[2], values[3]};
  }
  __device__ __forceinline__ static float element(float value) { return value; }
};

// Of 16 bits, with `multiply` and rounding of two floats as `Type` has them.
template <typename Type>
struct Narrow {
  using Element = typename Type::Element;
  static constexpr int kPieceElements = 8;
  using OfRows = Tf32::OfRows;
  using OfColumns = Tf32::OfColumns;
  __device__ __forceinline__ static void multiply(float (&d)[4], const OfRows& a, const OfColumns& b) {
    Type::multiply(d, a.a, b.b);
  }
  // A piece, of elements of float32.
  __device__ __forceinline__ static uint4 pack(const std::uint32_t (&values)[kPieceElements]) {
    return {two(values[0], values[1]), two(values[2], values[3]), two(values[4], values[5]),
            two(values[6], values[7])};
  }
  __device__ __forceinline__ static std::uint32_t two(std::uint32_t low, std::uint32_t high) {
    return Type::rounded(as_float(low), as_float(high));
  }
  __device__ __forceinline__ static Element element(float value) { return to_stored<Element>(value); }
  // Of elements of 16 bits, each in the low half of a word.
  __device__ __forceinline__ static uint4 pack_own(const std::uint32_t (&values)[kPieceElements]) {
    return {pair_of(values[0], values[1]), pair_of(values[2], values[3]), pair_of(values[4], values[5]),
            pair_of(values[6], values[7])};
  }
};
struct Bf16Type {
  using Element = __nv_bfloat16;
  __device__ __forceinline__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                                  const std::uint32_t* b) {
    ptx::mma_bf16(d, a, b);
  }
  __device__ __forceinline__ static std::uint32_t rounded(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
};
struct Fp16Type {
  using Element = __half;
  __device__ __forceinline__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                                  const std::uint32_t* b) {
    ptx::mma_fp16(d, a, b);
  }
  __device__ __forceinline__ static std::uint32_t rounded(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
};
using Bf16 = Narrow<Bf16Type>;
using Fp16 = Narrow<Fp16Type>;

// Calls visitor.operator()<Math>().
template <typename Visitor>
__device__ __forceinline__ void visit_math(ConvMath math, Visitor&& visitor) {
  const auto visit_if = [&]<typename Math, ConvMath kMath>() {
#ifdef EPICONV_COMPILED_MATH
    constexpr bool kExists = kMath == ConvMath::EPICONV_COMPILED_MATH;  // the plan's
#else
    constexpr bool kExists = true;
#endif
    if constexpr (kExists) {
      if (math == kMath) visitor.template operator()<Math>();
    }
  };
  visit_if.template operator()<Tf32, ConvMath::kTf32>();
  visit_if.template operator()<Bf16, ConvMath::kBf16>();
  visit_if.template operator()<Fp16, ConvMath::kFp16>();
  visit_if.template operator()<Ieee, ConvMath::kIeee>();
}

}  // namespace epiconv::sm80
