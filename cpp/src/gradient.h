// The gradient of an operation's argument, from the gradient of its result.
#pragma once

#include <type_traits>

#include "epiconv/epilogue_ops.h"

namespace epiconv {

template <typename Operation, typename... Others>
inline constexpr bool kIsOneOf = (std::is_same_v<Operation, Others> || ...);

// Whether torch selects by the derivative, where it is 0, instead of multiplying by it: no gradient passes
// then, not even a NaN or an infinity.
template <typename Operation, int kArgument, typename T>
EPICONV_HOST_DEVICE bool selects(const ops::Inputs<T>& x) {
  if constexpr (std::is_same_v<Operation, ops::Pow>) return x.p == T(0);
  if constexpr (std::is_same_v<Operation, ops::Hardswish>) return x.a <= T(-3);
  if constexpr (std::is_same_v<Operation, ops::PRelu>) return kArgument == 1 && x.a > T(0);
  return kIsOneOf<Operation, ops::Minimum, ops::Maximum, ops::Clamp, ops::Where, ops::Relu, ops::Relu6,
                  ops::Hardtanh, ops::Hardsigmoid, ops::Hardshrink, ops::Softshrink, ops::Threshold>;
}

// Of argument a, b or c, which is kArgument.
template <typename Operation, int kArgument, typename T>
EPICONV_HOST_DEVICE T gradient_of_argument(const ops::Inputs<T>& x, T gradient) {
  const ops::Gradients<T> derivatives = Operation::derivative(x);
  const T derivative = kArgument == 0 ? derivatives.a : kArgument == 1 ? derivatives.b : derivatives.c;
  const bool passes = derivative != T(0) || !selects<Operation, kArgument>(x);
  return passes ? gradient * derivative : T(0);
}

}  // namespace epiconv
