#include "lowering.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "epiconv/error.h"

namespace epiconv {
namespace {

using Kind = Argument::Kind;

bool is_value_argument(ArgumentKind kind) {
  return kind == ArgumentKind::kTensor || kind == ArgumentKind::kAny || kind == ArgumentKind::kOptional ||
         kind == ArgumentKind::kChannel;
}

double reciprocal_of(double number, bool double_precision) {
  return double_precision ? 1.0 / number : static_cast<double>(1.0f / static_cast<float>(number));
}

class Lowering {
 public:
  Lowering(const Program& program, const LoweringOptions& options) : program_(program), options_(options) {
    const auto& statements = program.statements();
    last_use_.assign(statements.size() + 1, -1);
    for (std::size_t i = 0; i < statements.size(); ++i) {
      for (const Argument& argument : statements[i].arguments) {
        if (argument.kind == Kind::kValue) last_use_[argument.index] = static_cast<int>(i);
      }
    }
    slot_of_.assign(statements.size() + 1, -1);
  }

  LoweredProgram run() {
    if (options_.has_bias) {
      Step<double> add = make_step(Opcode::kAdd, 2);
      add.source[1] = Source::kOperand;
      add.index[1] = kBiasOperand;
      add.p = 1.0;
      result_.steps.push_back(add);
    }
    const int slot = save(0);
    if (!result_.steps.empty()) {
      result_.steps.back().save = static_cast<std::int8_t>(slot);
    } else {
      result_.save_input = slot;
    }
    const auto& statements = program_.statements();
    for (int i = 0; i < static_cast<int>(statements.size()); ++i) {
      if (statements[i].op == Opcode::kGroupNorm) {
        push_group_norm(statements[i], i);
      } else {
        push(statements[i], i);
      }
      release(statements[i], i);
      result_.steps.back().save = static_cast<std::int8_t>(save(i + 1));
    }
    return std::move(result_);
  }

 private:
  static Step<double> make_step(Opcode op, int num_values) {
    Step<double> step{};
    step.op = op;
    step.save = -1;
    step.num_values = static_cast<std::uint8_t>(num_values);
    for (int i = 0; i < 3; ++i) step.source[i] = Source::kNumber;
    step.source[0] = Source::kAccumulator;
    return step;
  }

  // The slot for a value that is read later than by the next statement, or -1.
  int save(int value) {
    if (last_use_[value] <= value) return -1;
    int slot = 0;
    while (used_[slot]) ++slot;
    used_[slot] = true;
    slot_of_[value] = slot;
    result_.num_slots = std::max(result_.num_slots, slot + 1);
    return slot;
  }

  // Frees the slots of values that statement i was the last to read.
  void release(const Statement& statement, int i) {
    for (const Argument& argument : statement.arguments) {
      if (argument.kind != Kind::kValue || last_use_[argument.index] != i) continue;
      if (const int slot = slot_of_[argument.index]; slot >= 0) used_[slot] = false;
    }
  }

  void set_source(Step<double>& step, int place, const Argument& argument, int i) {
    switch (argument.kind) {
      case Kind::kValue:
        if (argument.index == i) {
          step.source[place] = Source::kAccumulator;
        } else {
          step.source[place] = Source::kSlot;
          step.index[place] = static_cast<std::uint8_t>(slot_of_[argument.index]);
        }
        break;
      case Kind::kOperand:
        if (options_.operand_is_number.at(argument.index)) {
          step.source[place] = Source::kNumber;
          result_.late_numbers.push_back(
              {static_cast<int>(result_.steps.size()), place, argument.index, false});
        } else {
          step.source[place] = Source::kOperand;
          step.index[place] = static_cast<std::uint8_t>(argument.index);
        }
        break;
      case Kind::kNone:  // a bound of clamp that does not bound
        step.source[place] = Source::kNumber;
        step.number[place] = (place == 1 ? -1.0 : 1.0) * std::numeric_limits<double>::infinity();
        break;
      default:
        step.source[place] = Source::kNumber;
        step.number[place] = argument.number;
    }
  }

  void push(const Statement& statement, int i) {
    const OperationInfo& info = operation_info(statement.op);
    Step<double> step = make_step(statement.op, 0);
    int num_parameters = 0;
    for (int k = 0; k < info.num_arguments(); ++k) {
      const Argument& argument = statement.arguments[k];
      if (is_value_argument(info.arguments[k].kind)) {
        set_source(step, step.num_values++, argument, i);
      } else {
        const bool is_word = argument.kind == Kind::kChoice || argument.kind == Kind::kDType;
        (num_parameters++ == 0 ? step.p : step.q) = is_word ? argument.index : argument.number;
      }
    }
    if (options_.divide_by_reciprocal && step.op == Opcode::kDiv && step.source[1] == Source::kNumber) {
      step.op = Opcode::kMul;
      step.number[1] = reciprocal_of(step.number[1], options_.double_precision);
      for (LateNumber& late : result_.late_numbers) {
        if (late.step == static_cast<int>(result_.steps.size()) && late.argument == 1) late.reciprocal = true;
      }
    }
    result_.steps.push_back(step);
  }

  void push_group_norm(const Statement& statement, int i) {
    result_.has_group_norm = true;
    result_.num_groups = static_cast<std::int64_t>(statement.arguments[1].number);
    result_.weight_operand =
        statement.arguments[2].kind == Kind::kOperand ? statement.arguments[2].index : -1;
    result_.shift_operand = statement.arguments[3].kind == Kind::kOperand ? statement.arguments[3].index : -1;
    result_.epsilon = statement.arguments[4].number;
    result_.num_before_norm = static_cast<int>(result_.steps.size());
    const struct {
      Opcode op;
      int operand;
    } parts[] = {{Opcode::kAdd, kMeanOperand}, {Opcode::kMul, kScaleOperand}, {Opcode::kAdd, kShiftOperand}};
    for (const auto& part : parts) {
      Step<double> step = make_step(part.op, 2);
      step.source[1] = Source::kOperand;
      step.index[1] = static_cast<std::uint8_t>(part.operand);
      step.p = 1.0;
      if (part.operand == kMeanOperand) set_source(step, 0, statement.arguments[0], i);
      result_.steps.push_back(step);
    }
  }

  const Program& program_;
  const LoweringOptions& options_;
  LoweredProgram result_;
  std::vector<int> last_use_;  // statement that reads a value last
  std::vector<int> slot_of_;
  bool used_[kMaxLiveValues + 1] = {};
};

}  // namespace

bool LoweredProgram::is_chain() const {
  return num_slots == 0 && std::all_of(steps.begin(), steps.end(), [](const Step<double>& step) {
           return (fetches_of(step) & ~kFetchB) == 0 && step.source[1] != Source::kAccumulator;
         });
}

LoweredProgram LoweredProgram::before_norm() const {
  LoweredProgram part = *this;
  part.has_group_norm = false;
  part.steps.resize(static_cast<std::size_t>(num_before_norm));
  std::erase_if(part.late_numbers, [&](const LateNumber& late) { return late.step >= num_before_norm; });
  return part;
}

LoweredProgram LoweredProgram::behind_statistics() const {
  LoweredProgram part = *this;
  part.has_group_norm = false;
  part.num_before_norm = 0;
  part.save_input = -1;
  part.steps.erase(part.steps.begin(), part.steps.begin() + num_before_norm);
  std::erase_if(part.late_numbers, [&](const LateNumber& late) { return late.step < num_before_norm; });
  for (LateNumber& late : part.late_numbers) late.step -= num_before_norm;
  return part;
}

bool LoweredProgram::restarts_at_norm() const {
  bool is_new[kMaxLiveValues + 1] = {};
  for (std::size_t i = static_cast<std::size_t>(num_before_norm); i < steps.size(); ++i) {
    const Step<double>& step = steps[i];
    for (int k = 0; k < std::max<int>(1, step.num_values); ++k) {
      if (step.source[k] == Source::kSlot && !is_new[step.index[k]]) return false;
    }
    if (step.save >= 0) is_new[step.save] = true;
  }
  return true;
}

bool LoweredProgram::reads(int operand) const {
  return std::any_of(steps.begin(), steps.end(), [&](const Step<double>& step) {
    for (int k = 0; k < step.num_values; ++k) {
      if (step.source[k] == Source::kOperand && step.index[k] == operand) return true;
    }
    return false;
  });
}

LoweredProgram lower(const Program& program, const LoweringOptions& options) {
  return Lowering(program, options).run();
}

}  // namespace epiconv
