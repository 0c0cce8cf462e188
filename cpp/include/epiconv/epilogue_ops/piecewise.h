// Activations made of straight pieces.
#pragma once

#include "epiconv/epilogue_ops/math.h"

namespace epiconv::ops {

struct Relu {
  static constexpr OperationInfo kInfo{
      "relu", "nn.functional.relu", {tensor_argument("input")}, 0, false, "the larger of input and 0",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::maximum(x.a, T(0));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= T(0) ? T(0) : T(1), T(0), T(0)};
  }
};

struct Relu6 {
  static constexpr OperationInfo kInfo{
      "relu6", "nn.functional.relu6", {tensor_argument("input")}, 0, false, "input held between 0 and 6",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::minimum(math::maximum(x.a, T(0)), T(6));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= T(0) || x.a >= T(6) ? T(0) : T(1), T(0), T(0)};
  }
};

struct LeakyRelu {
  static constexpr OperationInfo kInfo{
      "leaky_relu",
      "nn.functional.leaky_relu",
      {tensor_argument("input"), number_argument("negative_slope", 0.01)},
      0,
      false,
      "input where it is positive, else input * negative_slope",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a > T(0) ? x.a : x.a * x.p;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a > T(0) ? T(1) : x.p, T(0), T(0)};
  }
};

struct PRelu {
  static constexpr OperationInfo kInfo{
      "prelu",
      "nn.functional.prelu",
      {tensor_argument("input"), ArgumentInfo{"weight", ArgumentKind::kChannel}},
      0,
      false,
      "input where it is positive, else input * weight of the channel",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a > T(0) ? x.a : x.a * x.b;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a > T(0) ? T(1) : x.b, x.a > T(0) ? T(0) : x.a, T(0)};
  }
};

struct Hardtanh {
  static constexpr OperationInfo kInfo{
      "hardtanh",
      "nn.functional.hardtanh",
      {tensor_argument("input"), number_argument("min_val", -1.0), number_argument("max_val", 1.0)},
      0,
      false,
      "input held between min_val and max_val",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::minimum(math::maximum(x.a, x.p), x.q);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= x.p || x.a >= x.q ? T(0) : T(1), T(0), T(0)};
  }
};

struct Hardswish {
  static constexpr OperationInfo kInfo{
      "hardswish", "nn.functional.hardswish",      {tensor_argument("input")}, 1,
      false,       "input * relu6(input + 3) / 6",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    // A product with 1/6, as in torch on CUDA.
    return x.a * math::minimum(math::maximum(x.a + T(3), T(0)), T(6)) * (T(1) / T(6));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    if (x.a <= T(-3)) return {T(0), T(0), T(0)};
    return {x.a < T(3) ? x.a / T(3) + T(0.5) : T(1), T(0), T(0)};
  }
};

struct Hardsigmoid {
  static constexpr OperationInfo kInfo{
      "hardsigmoid", "nn.functional.hardsigmoid", {tensor_argument("input")}, 1,
      false,         "relu6(input + 3) / 6",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return math::minimum(math::maximum(x.a + T(3), T(0)), T(6)) * (T(1) / T(6));
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a > T(-3) && x.a < T(3) ? T(1) / T(6) : T(0), T(0), T(0)};
  }
};

struct Hardshrink {
  static constexpr OperationInfo kInfo{
      "hardshrink",
      "nn.functional.hardshrink",
      {tensor_argument("input"), number_argument("lambd", 0.5)},
      0,
      false,
      "0 where input lies within [-lambd, lambd], else input",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a >= -x.p && x.a <= x.p ? T(0) : x.a;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a >= -x.p && x.a <= x.p ? T(0) : T(1), T(0), T(0)};
  }
};

struct Softshrink {
  static constexpr OperationInfo kInfo{
      "softshrink",
      "nn.functional.softshrink",
      {tensor_argument("input"), number_argument("lambd", 0.5)},
      0,
      false,
      "input moved towards 0 by lambd, 0 within [-lambd, lambd]",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    if (x.a > x.p) return x.a - x.p;
    if (x.a < -x.p) return x.a + x.p;
    return x.a * T(0);  // keeps NaN and the sign
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a >= -x.p && x.a <= x.p ? T(0) : T(1), T(0), T(0)};
  }
};

struct Threshold {
  static constexpr OperationInfo kInfo{
      "threshold",
      "nn.functional.threshold",
      {tensor_argument("input"), number_argument("threshold"), number_argument("value")},
      0,
      false,
      "input where it exceeds threshold, else value",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a <= x.p ? x.q : x.a;
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>& x) {
    return {x.a <= x.p ? T(0) : T(1), T(0), T(0)};
  }
};

}  // namespace epiconv::ops
