// The epilogue program: a straight-line DAG of operations applied to every conv output value.
//
// Text form, one statement per value, separated by ';' or a line end:
//   v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = gelu(v2, approximate=tanh)
// v0 is the conv output (conv bias included), vi an earlier value, bi an operand. Positional
// arguments come first; the canonical form leaves defaults and unused statements out. A trailing
// underscore in a name (add_) is torch's in-place form: same arithmetic, the result has the dtype of
// the first argument. The last statement's value is the result; no statement is the identity.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "epiconv/export.h"
#include "epiconv/opcode.h"
#include "epiconv/operation_info.h"

namespace epiconv {

EPICONV_API const OperationInfo& operation_info(Opcode op);
// Throws InvalidArgument naming close matches when there is no such operation.
EPICONV_API Opcode find_operation(std::string_view name);

struct Argument {
  enum class Kind : std::uint8_t { kNone, kValue, kOperand, kBool, kInt, kFloat, kChoice, kDType };
  Kind kind = Kind::kNone;
  int index = 0;        // of kValue, kOperand, kChoice and kDType
  double number = 0.0;  // of kBool, kInt, kFloat

  bool is_number() const { return kind == Kind::kBool || kind == Kind::kInt || kind == Kind::kFloat; }
};

struct Statement {
  Opcode op;
  bool in_place = false;
  std::array<Argument, kMaxArguments> arguments{};  // in signature order, defaults filled in
};

class EPICONV_API Program {
 public:
  Program() = default;  // the identity

  // Throws InvalidArgument with the statement at fault and what is allowed there.
  static Program parse(std::string_view text);

  // The canonical text: parse(p.text()) == p.
  const std::string& text() const { return text_; }
  const std::vector<Statement>& statements() const { return statements_; }
  int num_operands() const { return static_cast<int>(operand_is_channel_.size()); }
  // Whether an operand is a (K,) vector (PReLU weight, GroupNorm affine) instead of a tensor that
  // broadcasts against the output.
  bool operand_is_channel(int operand) const { return operand_is_channel_.at(operand); }
  // Index of the group_norm statement, or -1.
  int group_norm_statement() const { return group_norm_statement_; }

  bool operator==(const Program& other) const { return text_ == other.text_; }

 private:
  std::vector<Statement> statements_;
  std::vector<bool> operand_is_channel_;
  int group_norm_statement_ = -1;
  std::string text_;
};

}  // namespace epiconv
