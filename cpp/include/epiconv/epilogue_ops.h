// The table of operations: one functor per operation, its derivative beside it, for host and
// device, float and double. CUDA kernels, the CPU path, the backward pass and the tests are all
// served from here. Rows are listed once, in EPICONV_OPERATIONS at the foot.
//
// Each means what torch's operation of that name means, NaN, infinities and ties included; where torch's
// backends differ, what it means on CUDA.
#pragma once

#include "epiconv/epilogue_ops/activations.h"
#include "epiconv/epilogue_ops/arithmetic.h"
#include "epiconv/epilogue_ops/comparisons.h"
#include "epiconv/epilogue_ops/piecewise.h"

// Every operation, in the order of their opcodes.
#define EPICONV_OPERATIONS(X) \
  X(Add)                      \
  X(Sub)                      \
  X(Mul)                      \
  X(Div)                      \
  X(Neg)                      \
  X(Abs)                      \
  X(Square)                   \
  X(Sqrt)                     \
  X(Rsqrt)                    \
  X(Exp)                      \
  X(Log)                      \
  X(Pow)                      \
  X(Minimum)                  \
  X(Maximum)                  \
  X(Clamp)                    \
  X(Relu)                     \
  X(Relu6)                    \
  X(LeakyRelu)                \
  X(PRelu)                    \
  X(Elu)                      \
  X(Selu)                     \
  X(Celu)                     \
  X(Gelu)                     \
  X(Silu)                     \
  X(Mish)                     \
  X(Sigmoid)                  \
  X(LogSigmoid)               \
  X(Tanh)                     \
  X(Softplus)                 \
  X(Softsign)                 \
  X(Hardtanh)                 \
  X(Hardswish)                \
  X(Hardsigmoid)              \
  X(Hardshrink)               \
  X(Softshrink)               \
  X(Threshold)                \
  X(Where)                    \
  X(Gt)                       \
  X(Ge)                       \
  X(Lt)                       \
  X(Le)                       \
  X(Eq)                       \
  X(Ne)                       \
  X(Cast)
