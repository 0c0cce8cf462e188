#include "plan/operand_strides.h"

#include "epiconv/error.h"

namespace epiconv {

using Extents = std::vector<std::int64_t>;

std::string shape_text(const Extents& extents) {
  std::string text = "(";
  for (std::size_t i = 0; i < extents.size(); ++i) text += concat(i ? ", " : "", extents[i]);
  return text + (extents.size() == 1 ? ",)" : ")");
}

namespace {

// Strides of an operand for every dimension of the output, 0 where it is broadcast.
Extents broadcast_strides(const OperandLayout& operand, const Extents& output, const std::string& name) {
  const std::size_t rank = operand.extents.size();
  require(rank == operand.strides.size() && rank <= output.size(), name, " of shape ",
          shape_text(operand.extents), " does not broadcast against the output ", shape_text(output));
  Extents strides(output.size(), 0);
  for (std::size_t i = 0; i < rank; ++i) {
    const std::size_t d = output.size() - rank + i;
    require(operand.extents[i] == 1 || operand.extents[i] == output[d], name, " of shape ",
            shape_text(operand.extents), " does not broadcast against the output ", shape_text(output));
    if (operand.extents[i] != 1) strides[d] = operand.strides[i];
  }
  return strides;
}

// Strides of a (K,) operand, which runs along the channels.
Extents channel_strides(const OperandLayout& operand, const Extents& output, const std::string& name) {
  require(operand.extents.size() == 1 && operand.strides.size() == 1 &&
              (operand.extents[0] == output[1] || operand.extents[0] == 1),
          name, " has shape ", shape_text(operand.extents), "; it takes one value per channel, shape (",
          output[1], ",)");
  Extents strides(output.size(), 0);
  if (operand.extents[0] != 1) strides[1] = operand.strides[0];
  return strides;
}

}  // namespace

std::vector<PlacedOperand> place_operands(const Program& program, const Extents& output,
                                          const std::optional<OperandLayout>& bias,
                                          const std::vector<OperandLayout>& operands) {
  require(static_cast<int>(operands.size()) == program.num_operands(), "the program '", program.text(),
          "' needs ", program.num_operands(), " operands, got ", operands.size());
  std::vector<PlacedOperand> placed;
  for (int i = 0; i < program.num_operands(); ++i) {
    const OperandLayout& operand = operands[i];
    if (operand.is_number) {
      require(!program.operand_is_channel(i), "operand b", i, " takes one value per channel, shape (",
              output[1], ",), not a 0-d tensor");
      continue;
    }
    const std::string name = concat("operand b", i);
    placed.push_back({i, operand.dtype,
                      program.operand_is_channel(i) ? channel_strides(operand, output, name)
                                                    : broadcast_strides(operand, output, name)});
  }
  if (bias) placed.push_back({kBiasOperand, bias->dtype, channel_strides(*bias, output, "bias")});
  return placed;
}

bool computes_in_double(const Program& program, DType input, DType output,
                        const std::vector<OperandLayout>& operands) {
  if (input == DType::kFloat64 || output == DType::kFloat64) return true;
  for (const OperandLayout& operand : operands) {
    if (operand.dtype == DType::kFloat64 && !operand.extents.empty()) return true;
  }
  for (const Statement& statement : program.statements()) {
    if (statement.op == Opcode::kCast && statement.arguments[1].index == static_cast<int>(DType::kFloat64))
      return true;
  }
  return false;
}

}  // namespace epiconv
