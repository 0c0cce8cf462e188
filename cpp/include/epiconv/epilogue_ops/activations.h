// Smooth activations. The formulas are torch's on CUDA, also where another would lose less: infinities become
// NaN in the same places and cancellation strikes the same arguments.
#pragma once

#include "epiconv/epilogue_ops/math.h"

namespace epiconv::ops {

struct Elu {
  static constexpr OperationInfo kInfo{
      "elu",
      "nn.functional.elu",
      {tensor_argument("input"), number_argument("alpha", 1.0)},
      2,
      false,
      "input where it is positive, else alpha * (exp(input) - 1)",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a > T(0) ? x.a : math::expm1(x.a) * x.p;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= T(0) ? x.p * math::exp(x.a) : T(1), T(0), T(0)};
  }
};

struct Selu {
  static constexpr OperationInfo kInfo{
      "selu",
      "nn.functional.selu",
      {tensor_argument("input")},
      3,
      false,
      "elu with the scales that normalise itself",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static constexpr T scale() {
    return T(1.0507009873554804934193349852946);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static constexpr T negative_scale() {
    return T(1.6732632423543772848170429916717) * scale<T>();
  }
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a > T(0) ? x.a * scale<T>() : math::expm1(x.a) * negative_scale<T>();
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= T(0) ? negative_scale<T>() * math::exp(x.a) : scale<T>(), T(0), T(0)};
  }
};

struct Celu {
  static constexpr OperationInfo kInfo{
      "celu",
      "nn.functional.celu",
      {tensor_argument("input"), number_argument("alpha", 1.0)},
      3,
      false,
      "input where it is positive, else alpha * (exp(input / alpha) - 1)",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a > T(0) ? x.a : math::expm1(x.a * (T(1) / x.p)) * x.p;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= T(0) ? math::exp(x.a * (T(1) / x.p)) : T(1), T(0), T(0)};
  }
};

// p is 0 for "none", 1 for "tanh". max_ulp counts in ulps of input, the larger: where the second factor
// cancels, an ulp of erf or tanh is many of the small result.
struct Gelu {
  static constexpr OperationInfo kInfo{
      "gelu",
      "nn.functional.gelu",
      {tensor_argument("input"), choice_argument("approximate", "none|tanh")},
      6,
      false,
      "input times the normal distribution function of input, or its tanh approximation",
  };
  static constexpr double kSqrtHalf = 0.70710678118654752440;
  static constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
  static constexpr double kKappa = 0.044715;

  template <typename T>
  EPICONV_HOST_DEVICE static T tanh_argument(T x) {
    return T(kSqrtTwoOverPi) * (x + T(kKappa) * (x * x * x));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    if (x.p == T(0)) return x.a * T(0.5) * (T(1) + math::erf(x.a * T(kSqrtHalf)));
    return T(0.5) * x.a * (T(1) + math::tanh(tanh_argument(x.a)));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    if (x.p == T(0)) {
      const T cdf = T(0.5) * (T(1) + math::erf(x.a * T(kSqrtHalf)));
      const T pdf = math::exp(T(-0.5) * x.a * x.a) * T(kSqrtTwoOverPi * 0.5);
      return {cdf + x.a * pdf, T(0), T(0)};
    }
    const T t = math::tanh(tanh_argument(x.a));
    const T slope = T(kSqrtTwoOverPi) * (T(1) + T(3) * T(kKappa) * (x.a * x.a));
    return {T(0.5) * (T(1) + t) + T(0.5) * x.a * (T(1) - t * t) * slope, T(0), T(0)};
  }
};

struct Silu {
  static constexpr OperationInfo kInfo{
      "silu", "nn.functional.silu", {tensor_argument("input")}, 5, false, "input * sigmoid(input)",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::silu(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T s = math::sigmoid(x.a);
    return {s * (T(1) + x.a * (T(1) - s)), T(0), T(0)};
  }
};

struct Mish {
  static constexpr OperationInfo kInfo{
      "mish", "nn.functional.mish", {tensor_argument("input")}, 4, false, "input * tanh(softplus(input))",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a * math::tanh(math::log1p(math::exp(x.a)));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T s = math::sigmoid(x.a);
    const T t = math::tanh(math::log1p(math::exp(x.a)));
    return {t + x.a * s * (T(1) - t * t), T(0), T(0)};
  }
};

struct Sigmoid {
  static constexpr OperationInfo kInfo{
      "sigmoid", "sigmoid", {tensor_argument("input")}, 5, false, "1 / (1 + exp(-input))",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::sigmoid(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T s = math::sigmoid(x.a);
    return {(T(1) - s) * s, T(0), T(0)};
  }
};

struct LogSigmoid {
  static constexpr OperationInfo kInfo{
      "logsigmoid", "nn.functional.logsigmoid", {tensor_argument("input")}, 3, false, "log(sigmoid(input))",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::minimum(T(0), x.a) - math::log1p(math::exp(-math::abs(x.a)));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T z = math::exp(-math::abs(x.a));
    const T s = z / (T(1) + z);
    return {x.a < T(0) ? T(1) - s : s, T(0), T(0)};
  }
};

struct Tanh {
  static constexpr OperationInfo kInfo{
      "tanh", "tanh", {tensor_argument("input")}, 3, false, "the hyperbolic tangent of input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::tanh(x.a);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T t = math::tanh(x.a);
    return {T(1) - t * t, T(0), T(0)};
  }
};

struct Softplus {
  static constexpr OperationInfo kInfo{
      "softplus",
      "nn.functional.softplus",
      {tensor_argument("input"), number_argument("beta", 1.0), number_argument("threshold", 20.0)},
      3,
      false,
      "log(1 + exp(beta * input)) / beta; input where beta * input > threshold",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a * x.p > x.q ? x.a : math::log1p(math::exp(x.a * x.p)) / x.p;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    if (x.a * x.p > x.q) return {T(1), T(0), T(0)};
    const T z = math::exp(x.a * x.p);
    return {z / (z + T(1)), T(0), T(0)};
  }
};

struct Softsign {
  static constexpr OperationInfo kInfo{
      "softsign", "nn.functional.softsign", {tensor_argument("input")}, 0, false, "input / (1 + abs(input))",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a / (T(1) + math::abs(x.a));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    const T r = T(1) / (T(1) + math::abs(x.a));
    const T y = x.a * r;
    // torch's is NaN where the result is; y - y is that NaN or 0.
    return {r * r + (y - y), T(0), T(0)};
  }
};

}  // namespace epiconv::ops
