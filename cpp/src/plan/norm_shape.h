// What a GroupNorm needs of an output and of its affine.
#pragma once

#include <cstdint>
#include <vector>

#include "epiconv/epilogue_plan.h"
#include "pass.h"

namespace epiconv {

// For contiguous outputs. Throws InvalidArgument where the groups do not divide the channels, or the affine
// has another shape.
GroupNormShape norm_shape(const LoweredProgram& program, const std::vector<std::int64_t>& extents,
                          const std::vector<OperandLayout>& operands);

}  // namespace epiconv
