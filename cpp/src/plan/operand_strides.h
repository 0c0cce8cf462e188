// How operands broadcast against an output.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "epiconv/epilogue_plan.h"
#include "lowering.h"

namespace epiconv {

// "(2, 3)"
std::string shape_text(const std::vector<std::int64_t>& extents);

struct PlacedOperand {
  int place;  // its index, or kBiasOperand
  DType dtype;
  std::vector<std::int64_t> strides;  // for every dimension of the output, 0 where it is broadcast
};

// The operands of a program that are no numbers, and the bias. Throws InvalidArgument where one does not
// broadcast.
std::vector<PlacedOperand> place_operands(const Program& program, const std::vector<std::int64_t>& output,
                                          const std::optional<OperandLayout>& bias,
                                          const std::vector<OperandLayout>& operands);

// Whether intermediates are float64.
bool computes_in_double(const Program& program, DType input, DType output,
                        const std::vector<OperandLayout>& operands);

}  // namespace epiconv
