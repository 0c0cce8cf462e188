// Turns a value that is multiplied by a clamped multiple of itself, x * clamp((x + 3) / 6, 0, 1), into one
// step, so that a program with such gates is a chain.
#pragma once

#include "epiconv/epilogue_ops/math.h"
#include "lowering.h"

namespace epiconv {

// Behind all opcodes of the table: v = min(max((v + b) * c, p), q) * v, with the bits of the steps it stands
// for. Parts that they lack are identities that change no bit: b = -0.0, c = 1, p = -inf, q = inf.
inline constexpr Opcode kGate = static_cast<Opcode>(kNumOperations + 1);

struct Gated {
  template <typename T>
  static EPICONV_HOST_DEVICE T forward(const ops::Inputs<T>& in) {
    return ops::math::minimum(ops::math::maximum((in.a + in.b) * in.c, in.p), in.q) * in.a;
  }
};
template <typename T>
EPICONV_HOST_DEVICE T gated(const Step<T>& step, T v) {
  return Gated::forward(ops::Inputs<T>{v, step.number[1], step.number[2], step.p, step.q});
}

// Which gates an interpreter knows: those above, or also values that are multiplied by what any operation
// without tensors makes of them, x * hardswish(x), as steps of that operation that are `times_itself`.
enum class Gates { kClamped, kAll };

// With the gates that there are; those of numbers that are known when the program runs stay as they are.
LoweredProgram with_gates(const LoweredProgram& program, Gates gates = Gates::kClamped);

}  // namespace epiconv
