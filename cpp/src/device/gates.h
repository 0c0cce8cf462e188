// Turns a value that is multiplied by a clamped multiple of itself, x * clamp((x + 3) / 6, 0, 1), into one
// step, so that a program with such gates is a chain.
#pragma once

#include "lowering.h"

namespace epiconv {

// Which gates an interpreter knows: those above, or also values that are multiplied by what any operation
// without tensors makes of them, x * hardswish(x), as steps of that operation that are `times_itself`.
enum class Gates { kClamped, kAll };

// With the gates that there are; those of numbers that are known when the program runs stay as they are.
LoweredProgram with_gates(const LoweredProgram& program, Gates gates = Gates::kClamped);

}  // namespace epiconv
