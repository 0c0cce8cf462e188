// Comparisons: 1 or 0, and no derivative.
#pragma once

#include "epiconv/epilogue_ops/math.h"

namespace epiconv::ops {

struct Gt {
  static constexpr OperationInfo kInfo{
      "gt", "gt", {any_argument("input"), any_argument("other")}, 0, true, "input > other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a > x.b ? T(1) : T(0);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(0), T(0), T(0)};
  }
};

struct Ge {
  static constexpr OperationInfo kInfo{
      "ge", "ge", {any_argument("input"), any_argument("other")}, 0, true, "input >= other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a >= x.b ? T(1) : T(0);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(0), T(0), T(0)};
  }
};

struct Lt {
  static constexpr OperationInfo kInfo{
      "lt", "lt", {any_argument("input"), any_argument("other")}, 0, true, "input < other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a < x.b ? T(1) : T(0);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(0), T(0), T(0)};
  }
};

struct Le {
  static constexpr OperationInfo kInfo{
      "le", "le", {any_argument("input"), any_argument("other")}, 0, true, "input <= other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a <= x.b ? T(1) : T(0);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(0), T(0), T(0)};
  }
};

struct Eq {
  static constexpr OperationInfo kInfo{
      "eq", "eq", {any_argument("input"), any_argument("other")}, 0, true, "input == other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a == x.b ? T(1) : T(0);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(0), T(0), T(0)};
  }
};

struct Ne {
  static constexpr OperationInfo kInfo{
      "ne", "ne", {any_argument("input"), any_argument("other")}, 0, true, "input != other",
  };
  template <typename T>
  EPICONV_HOST_DEVICE static T forward(const Inputs<T>& x) {
    return x.a != x.b ? T(1) : T(0);
  }
  template <typename T>
  EPICONV_HOST_DEVICE static Gradients<T> derivative(const Inputs<T>&) {
    return {T(0), T(0), T(0)};
  }
};

}  // namespace epiconv::ops
