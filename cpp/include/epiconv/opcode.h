// Numbers of the operations, and the limits of a program.
#pragma once

#include <cstdint>

#include "epiconv/epilogue_ops.h"

namespace epiconv {

// Limits of a program. They bound what a kernel takes as a parameter and keeps in registers.
inline constexpr int kMaxStatements = 48;
inline constexpr int kMaxOperands = 12;
inline constexpr int kMaxLiveValues = 4;

enum class Opcode : std::uint8_t {
#define EPICONV_OPCODE(Operation) k##Operation,
  EPICONV_OPERATIONS(EPICONV_OPCODE)
#undef EPICONV_OPCODE
      kGroupNorm,  // looks across a sample, so it has no per-value functor
};

inline constexpr int kNumOperations = static_cast<int>(Opcode::kGroupNorm) + 1;

}  // namespace epiconv
