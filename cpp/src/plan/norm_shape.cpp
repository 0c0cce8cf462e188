#include "plan/norm_shape.h"

#include <numeric>

#include "epiconv/error.h"
#include "plan/operand_strides.h"

namespace epiconv {

GroupNormShape norm_shape(const LoweredProgram& program, const std::vector<std::int64_t>& extents,
                          const std::vector<OperandLayout>& operands) {
  GroupNormShape norm;
  norm.samples = extents[0];
  norm.channels = extents[1];
  norm.pixels = std::accumulate(extents.begin() + 2, extents.end(), std::int64_t{1},
                                [](std::int64_t a, std::int64_t b) { return a * b; });
  norm.groups = program.num_groups;
  norm.epsilon = program.epsilon;
  require(norm.channels % norm.groups == 0, "group_norm with num_groups = ", norm.groups, " over ",
          norm.channels, " channels: the number of channels must be a multiple of num_groups");
  const auto affine = [&](int operand, int& place, DType& dtype, std::int64_t& stride) {
    if (operand < 0) return;
    const OperandLayout& layout = operands[operand];
    require(layout.extents.size() == 1 && layout.extents[0] == norm.channels, "operand b", operand,
            " has shape ", shape_text(layout.extents), "; group_norm takes one value per channel, shape (",
            norm.channels, ",)");
    place = operand;
    dtype = layout.dtype;
    stride = layout.strides[0];
  };
  affine(program.weight_operand, norm.weight_operand, norm.weight_dtype, norm.weight_stride);
  affine(program.shift_operand, norm.shift_operand, norm.shift_dtype, norm.shift_stride);
  return norm;
}

}  // namespace epiconv
