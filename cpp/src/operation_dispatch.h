// From an opcode to its functor.
#pragma once

#include "epiconv/epilogue.h"

namespace epiconv {

// Calls visitor.operator()<ops::Operation>() for the operation of that opcode; nothing for GroupNorm,
// which has no functor.
template <typename Visitor>
EPICONV_HOST_DEVICE void visit_operation(Opcode op, Visitor&& visitor) {
  switch (op) {
#define EPICONV_VISIT(Operation)                   \
  case Opcode::k##Operation:                       \
    visitor.template operator()<ops::Operation>(); \
    break;
    EPICONV_OPERATIONS(EPICONV_VISIT)
#undef EPICONV_VISIT
    case Opcode::kGroupNorm:
      break;
  }
}

}  // namespace epiconv
