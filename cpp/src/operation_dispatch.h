// From an opcode to its functor.
#pragma once

#include "epiconv/opcode.h"

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

// The same for an opcode that is a constant.
template <Opcode kOpcode, typename Visitor>
EPICONV_HOST_DEVICE void visit_operation_of(Visitor&& visitor) {
#define EPICONV_VISIT(Operation)                   \
  if constexpr (kOpcode == Opcode::k##Operation) { \
    visitor.template operator()<ops::Operation>(); \
  }
  EPICONV_OPERATIONS(EPICONV_VISIT)
#undef EPICONV_VISIT
}

}  // namespace epiconv
