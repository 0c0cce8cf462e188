// What the functors are made of: their inputs, their derivatives, and scalar functions that mean the same
// on host and device, for float and double.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "epiconv/dtype.h"
#include "epiconv/export.h"
#include "epiconv/operation_info.h"
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#include "epiconv/epilogue_ops/ptx/max_nan.h"
#endif
#if defined(__CUDA_ARCH__)
#include "epiconv/epilogue_ops/ptx/reciprocal.h"
#endif

namespace epiconv::ops {

// What an operation is computed from. a, b, c are its value-like arguments (kTensor, kAny,
// kOptional, kChannel) in signature order; p, q its written parameters (kNumber, kChoice, kDType)
// in signature order. An optional argument that is None arrives as the value named in the functor.
template <typename T>
struct Inputs {
  T a, b, c;
  T p, q;
};

// Derivatives of the result with respect to a, b and c.
template <typename T>
struct Gradients {
  T a, b, c;
};

namespace math {

template <typename T>
EPICONV_HOST_DEVICE T exp(T x) {
  return std::exp(x);
}
template <typename T>
EPICONV_HOST_DEVICE T expm1(T x) {
  return std::expm1(x);
}
template <typename T>
EPICONV_HOST_DEVICE T log(T x) {
  return std::log(x);
}
template <typename T>
EPICONV_HOST_DEVICE T log1p(T x) {
  return std::log1p(x);
}
template <typename T>
EPICONV_HOST_DEVICE T tanh(T x) {
  return std::tanh(x);
}
template <typename T>
EPICONV_HOST_DEVICE T erf(T x) {
  return std::erf(x);
}
template <typename T>
EPICONV_HOST_DEVICE T sqrt(T x) {
  return std::sqrt(x);
}
template <typename T>
EPICONV_HOST_DEVICE T abs(T x) {
  return std::abs(x);
}

template <typename T>
EPICONV_HOST_DEVICE T rsqrt(T x) {
#if defined(__CUDA_ARCH__)
  return ::rsqrt(x);
#else
  return T(1) / std::sqrt(x);
#endif
}

// a + b * scale, rounded once: torch's kernels are contracted to this on both of its backends.
template <typename T>
EPICONV_HOST_DEVICE T add_scaled(T a, T b, T scale) {
#if defined(__CUDA_ARCH__)
  return std::fma(b, scale, a);
#else
  // std::fma is a library call where the compiler may not assume the instruction.
  if (scale == T(1)) return a + b;
  if (scale == T(-1)) return a - b;
  return std::fma(b, scale, a);
#endif
}

// The larger (smaller) of two, NaN if either is NaN; +0.0 counts as larger than -0.0.
#if defined(__CUDA_ARCH__)
template <typename T>
EPICONV_HOST_DEVICE T maximum(T a, T b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) == sizeof(float)) {
    return ptx::max_nan(a, b);
  }
#endif
  if (a != a) return a;
  if (b != b) return b;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <typename T>
EPICONV_HOST_DEVICE T minimum(T a, T b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) == sizeof(float)) {
    return ptx::min_nan(a, b);
  }
#endif
  if (a != a) return a;
  if (b != b) return b;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
#else
// Without branches, so that loops become vector instructions. Equal numbers have the same bits, but for
// zeros.
template <typename T>
using Bits = std::conditional_t<sizeof(T) == sizeof(std::uint32_t), std::uint32_t, std::uint64_t>;
template <typename T>
EPICONV_HOST_DEVICE T maximum(T a, T b) {
  const T both = __builtin_bit_cast(T, __builtin_bit_cast(Bits<T>, a) & __builtin_bit_cast(Bits<T>, b));
  const T larger = a > b ? a : b;  // b if either is NaN
  const T result = a == b ? both : larger;
  return a != a ? a : result;
}
template <typename T>
EPICONV_HOST_DEVICE T minimum(T a, T b) {
  const T either = __builtin_bit_cast(T, __builtin_bit_cast(Bits<T>, a) | __builtin_bit_cast(Bits<T>, b));
  const T smaller = a < b ? a : b;  // b if either is NaN
  const T result = a == b ? either : smaller;
  return a != a ? a : result;
}
#endif

// -1, 0 or 1; 0 for NaN.
template <typename T>
EPICONV_HOST_DEVICE T sign(T x) {
  return T(T(0) < x) - T(x < T(0));
}

// 1 / (1 + exp(-x))
template <typename T>
EPICONV_HOST_DEVICE T sigmoid(T x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) {
    // A correctly rounded division branches, element by element, for denormal and huge operands; this
    // denominator lies in [1, 2]. Below the bound exp(-x) overflows.
    const float z = math::exp(x < -88.72284f ? -INFINITY : -fabsf(x));
    return (x < 0.0f ? z : 1.0f) * ptx::reciprocal_approx(1.0f + z);
  }
#endif
  return T(1) / (T(1) + math::exp(-x));
}

// x / (1 + exp(-x))
template <typename T>
EPICONV_HOST_DEVICE T silu(T x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) return x * math::sigmoid(x);
#endif
  return x / (T(1) + math::exp(-x));
}

// x to the power of a number. The exponents that torch computes without its power function differ from
// it in more than rounding: (-inf) ** 0.5 is NaN.
template <typename T>
EPICONV_HOST_DEVICE T pow_number(T x, T exponent) {
  if (exponent == T(0)) return T(1);
  if (exponent == T(1)) return x;
  if (exponent == T(2)) return x * x;
  if (exponent == T(3)) return x * x * x;
  if (exponent == T(0.5)) return math::sqrt(x);
  if (exponent == T(-0.5)) return math::rsqrt(x);
  if (exponent == T(-1)) return T(1) / x;
  if (exponent == T(-2)) return T(1) / (x * x);
  return std::pow(x, exponent);
}

// To the nearest float16, ties to even.
EPICONV_HOST_DEVICE float round_to_float16(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t sign = bits & 0x80000000u;
  const std::uint32_t magnitude = bits ^ sign;
  std::uint32_t rounded;
  if (magnitude >= 0x7f800000u) {  // inf, NaN
    rounded = magnitude;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 float16 has a fixed spacing of 2^-24, which is float's spacing in [0.5, 1).
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    rounded = __builtin_bit_cast(std::uint32_t, shifted - 0.5f);
  } else {
    rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & ~0x1fffu;
    if (rounded >= 0x47800000u) rounded = 0x7f800000u;  // 2^16 is past the largest float16
  }
  return __builtin_bit_cast(float, rounded | sign);
}

// To the nearest bfloat16, ties to even.
EPICONV_HOST_DEVICE float round_to_bfloat16(float x) {
  if (x != x) return x;
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  return __builtin_bit_cast(float, (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

}  // namespace math

}  // namespace epiconv::ops
