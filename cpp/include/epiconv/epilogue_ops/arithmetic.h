// Arithmetic, bounds, selection and conversion.
#pragma once

#include "epiconv/epilogue_ops/math.h"

namespace epiconv::ops {

struct Add {
  static constexpr OperationInfo kInfo{
      "add", "add", {any_argument("input"), any_argument("other"), number_argument("alpha", 1.0)},
      0,     false, "input + alpha * other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::add_scaled(x.a, x.b, x.p);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(1), x.p, T(0)};
  }
};

struct Sub {
  static constexpr OperationInfo kInfo{
      "sub", "sub", {any_argument("input"), any_argument("other"), number_argument("alpha", 1.0)},
      0,     false, "input - alpha * other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::add_scaled(x.a, x.b, -x.p);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(1), -x.p, T(0)};
  }
};

struct Mul {
  static constexpr OperationInfo kInfo{
      "mul", "mul", {any_argument("input"), any_argument("other")}, 0, false, "input * other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a * x.b;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.b, x.a, T(0)};
  }
};

struct Div {
  static constexpr OperationInfo kInfo{
      "div", "div", {any_argument("input"), any_argument("other")}, 0, false, "input / other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a / x.b;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(1) / x.b, -((x.a / x.b) / x.b), T(0)};
  }
};

struct Neg {
  static constexpr OperationInfo kInfo{
      "neg", "neg", {tensor_argument("input")}, 0, false, "-input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return -x.a;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(-1), T(0), T(0)};
  }
};

struct Abs {
  static constexpr OperationInfo kInfo{
      "abs", "abs", {tensor_argument("input")}, 0, false, "the magnitude of input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::abs(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {math::sign(x.a), T(0), T(0)};
  }
};

struct Square {
  static constexpr OperationInfo kInfo{
      "square", "square", {tensor_argument("input")}, 0, false, "input * input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a * x.a;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(2) * x.a, T(0), T(0)};
  }
};

struct Sqrt {
  static constexpr OperationInfo kInfo{
      "sqrt", "sqrt", {tensor_argument("input")}, 1, false, "the square root of input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::sqrt(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(1) / (T(2) * math::sqrt(x.a)), T(0), T(0)};
  }
};

struct Rsqrt {
  static constexpr OperationInfo kInfo{
      "rsqrt", "rsqrt", {tensor_argument("input")}, 2, false, "1 / sqrt(input)",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::rsqrt(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T y = math::rsqrt(x.a);
    return {T(-0.5) * (y * y * y), T(0), T(0)};
  }
};

struct Exp {
  static constexpr OperationInfo kInfo{
      "exp", "exp", {tensor_argument("input")}, 2, false, "e to the power of input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::exp(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {math::exp(x.a), T(0), T(0)};
  }
};

struct Log {
  static constexpr OperationInfo kInfo{
      "log", "log", {tensor_argument("input")}, 2, false, "the natural logarithm of input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::log(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(1) / x.a, T(0), T(0)};
  }
};

struct Pow {
  static constexpr OperationInfo kInfo{
      "pow", "pow", {tensor_argument("input"), number_argument("exponent")},
      2,     false, "input to the power of a number",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::pow_number(x.a, x.p);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    if (x.p == T(0)) return {T(0), T(0), T(0)};
    return {x.p * math::pow_number(x.a, x.p - T(1)), T(0), T(0)};
  }
};

struct Minimum {
  static constexpr OperationInfo kInfo{
      "minimum", "minimum", {any_argument("input"), any_argument("other")},
      0,         false,     "the smaller of input and other; NaN if either is NaN",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::minimum(x.a, x.b);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T tie = x.a == x.b ? T(0.5) : T(1);
    return {x.a > x.b ? T(0) : tie, x.b > x.a ? T(0) : tie, T(0)};
  }
};

struct Maximum {
  static constexpr OperationInfo kInfo{
      "maximum", "maximum", {any_argument("input"), any_argument("other")},
      0,         false,     "the larger of input and other; NaN if either is NaN",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::maximum(x.a, x.b);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T tie = x.a == x.b ? T(0.5) : T(1);
    return {x.a < x.b ? T(0) : tie, x.b < x.a ? T(0) : tie, T(0)};
  }
};

// None arrives as b = -inf, c = +inf.
struct Clamp {
  static constexpr OperationInfo kInfo{
      "clamp", "clamp", {tensor_argument("input"), optional_argument("min"), optional_argument("max")},
      0,       false,   "input held between min and max; max where min > max",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::minimum(math::maximum(x.a, x.b), x.c);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const bool bounded_above = x.c != T(INFINITY);
    const bool below = x.a < x.b && (x.b < x.c || !bounded_above);
    const bool above = x.a > x.c || x.c < x.b;
    return {x.a >= x.b && x.a <= x.c ? T(1) : T(0), below ? T(1) : T(0), above ? T(1) : T(0)};
  }
};

struct Where {
  static constexpr OperationInfo kInfo{
      "where", "where", {tensor_argument("condition"), any_argument("input"), any_argument("other")},
      0,       false,   "input where condition is not zero, else other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a != T(0) ? x.b : x.c;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {T(0), x.a != T(0) ? T(1) : T(0), x.a != T(0) ? T(0) : T(1)};
  }
};

// p is the number of a DType.
struct Cast {
  static constexpr OperationInfo kInfo{
      "cast", "Tensor.to", {tensor_argument("input"), ArgumentInfo{"dtype", ArgumentKind::kDType}},
      0,      false,       "input rounded to dtype, nearest even",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    const auto dtype = static_cast<DType>(static_cast<int>(x.p));
    if (dtype == DType::kFloat64) return x.a;
    // By way of float also from double, as torch does.
    const float value = static_cast<float>(x.a);
    if (dtype == DType::kFloat16) return static_cast<T>(math::round_to_float16(value));
    if (dtype == DType::kBFloat16) return static_cast<T>(math::round_to_bfloat16(value));
    return static_cast<T>(value);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(1), T(0), T(0)};
  }
};

}  // namespace epiconv::ops
