// What the tensor cores multiply, and how tensors' elements become that.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "device/ptx/convert.h"
#include "device/ptx/wgmma.h"
#include "epiconv/conv_plan.h"

namespace epiconv::sm90 {

// Eight channels of two 16-bit pixels side by side -> those of the first (0) or second (1) one.
__device__ __forceinline__ uint4 pack_of_pair(const std::uint32_t* pairs, int pixel) {
  const std::uint32_t halves = pixel == 0 ? 0x5410 : 0x7632;
  return {__byte_perm(pairs[0], pairs[1], halves), __byte_perm(pairs[2], pairs[3], halves),
          __byte_perm(pairs[4], pairs[5], halves), __byte_perm(pairs[6], pairs[7], halves)};
}

struct Tf32 {
  using Element = float;
  static constexpr int kPieceChannels = 4;  // of 16 bytes
  // d[kFirst …] of kColumns positions.
  template <int kColumns, int kFirst>
  __device__ __forceinline__ static void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b,
                                                  int accumulate) {
    ptx::wgmma_tf32<kColumns, kFirst>(d, a, b, accumulate);
  }
  __device__ __forceinline__ static uint4 pack(const float (&values)[kPieceChannels]) {
    return {ptx::round_to_tf32(values[0]), ptx::round_to_tf32(values[1]), ptx::round_to_tf32(values[2]),
            ptx::round_to_tf32(values[3])};
  }
};

struct Bf16 {
  using Element = __nv_bfloat16;
  static constexpr int kPieceChannels = 8;
  template <int kColumns, int kFirst>
  __device__ __forceinline__ static void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b,
                                                  int accumulate) {
    ptx::wgmma_bf16<kColumns, kFirst>(d, a, b, accumulate);
  }
  __device__ __forceinline__ static uint4 pack(const float (&values)[kPieceChannels]) {
    const auto two = [&](int j) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(values[j], values[j + 1]);
      return *reinterpret_cast<const std::uint32_t*>(&pair);
    };
    return {two(0), two(2), two(4), two(6)};
  }
  __device__ __forceinline__ static uint4 pack(const __nv_bfloat16 (&values)[kPieceChannels]) {
    uint4 packed;
    memcpy(&packed, values, sizeof(packed));
    return packed;
  }
};

struct Fp16 {
  using Element = __half;
  static constexpr int kPieceChannels = 8;
  template <int kColumns, int kFirst>
  __device__ __forceinline__ static void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b,
                                                  int accumulate) {
    ptx::wgmma_fp16<kColumns, kFirst>(d, a, b, accumulate);
  }
  __device__ __forceinline__ static uint4 pack(const float (&values)[kPieceChannels]) {
    const auto two = [&](int j) {
      const __half2 pair = __floats2half2_rn(values[j], values[j + 1]);
      return *reinterpret_cast<const std::uint32_t*>(&pair);
    };
    return {two(0), two(2), two(4), two(6)};
  }
  __device__ __forceinline__ static uint4 pack(const __half (&values)[kPieceChannels]) {
    uint4 packed;
    memcpy(&packed, values, sizeof(packed));
    return packed;
  }
};

// Which of them a kernel is for: one, or all of them, of which it is then asked at run time.
template <typename OnlyMath>
struct OneMath {
  // Calls visitor.operator()<Math>().
  template <typename Visitor>
  __device__ __forceinline__ static void visit(ConvMath, Visitor&& visitor) {
    visitor.template operator()<OnlyMath>();
  }
};
struct AnyMath {
  template <typename Visitor>
  __device__ __forceinline__ static void visit(ConvMath math, Visitor&& visitor) {
    if (math == ConvMath::kTf32) {
      visitor.template operator()<Tf32>();
    } else if (math == ConvMath::kBf16) {
      visitor.template operator()<Bf16>();
    } else {
      visitor.template operator()<Fp16>();
    }
  }
};

// Calls visitor.operator()<In>(): the input is float32, or what is multiplied.
template <typename Math, typename Visitor>
__device__ __forceinline__ void visit_input(int input_bytes, Visitor&& visitor) {
  using Own = typename Math::Element;
  if constexpr (sizeof(Own) < sizeof(float)) {
    if (input_bytes == sizeof(Own)) {
      visitor.template operator()<Own>();
      return;
    }
  }
  visitor.template operator()<float>();
}

}  // namespace epiconv::sm90
