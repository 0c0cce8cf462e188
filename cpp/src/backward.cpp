#include "backward.h"

#include <algorithm>

#include "epiconv/error.h"

namespace epiconv {
namespace {

constexpr unsigned kA = 1, kB = 2, kC = 4;

// Which of a, b and c the derivative for one of them reads.
unsigned read_by_derivative(Opcode op, int argument) {
  switch (op) {
    case Opcode::kAdd:
    case Opcode::kSub:
    case Opcode::kNeg:
    case Opcode::kCast:
      return 0;
    case Opcode::kMul:
      return argument == 0 ? kB : kA;
    case Opcode::kDiv:
      return argument == 0 ? kB : kA | kB;
    case Opcode::kPRelu:
      return argument == 0 ? kA | kB : kA;
    case Opcode::kWhere:
      return kA;
    default:
      return kA | kB | kC;
  }
}

bool has_derivative(Opcode op, int argument) {
  return !operation_info(op).is_predicate && !(op == Opcode::kWhere && argument == 0);
}

// Whether the derivative at the operation's result is that at its argument.
bool result_says_as_much(const Step<double>& step) {
  switch (step.op) {
    case Opcode::kRelu:
    case Opcode::kRelu6:
    case Opcode::kHardtanh:
    case Opcode::kHardshrink:
      return true;
    case Opcode::kLeakyRelu:
      return step.p >= 0.0;
    case Opcode::kThreshold:
      return step.q <= step.p;
    default:
      return false;
  }
}

class Differentiation {
 public:
  Differentiation(const LoweredProgram& program, const GradientSet& wanted)
      : program_(program), wanted_(wanted), size_(static_cast<int>(program.steps.size())) {
    resolve_sources();
    find_needs();
  }

  BackwardProgram run(Saved saved) {
    differentiate_steps();
    result_.saved = least_saved();
    if (saved == Saved::kNothing) saved = result_.saved;
    require(saved == Saved::kInput || result_.saved != Saved::kInput,
            "the derivative of this program reads values that its output does not tell");
    std::vector<BackwardStep> reverse = std::move(result_.steps);
    result_.steps.clear();
    if (saved == Saved::kOutput) {
      if (result_.saved == Saved::kOutput) push_read(BackwardStep::Kind::kReadSaved, size_ - 1);
    } else {
      evaluate_values();
    }
    result_.is_used = !result_.steps.empty();
    result_.steps.insert(result_.steps.end(), reverse.begin(), reverse.end());
    give_when_complete();
    note_reads();
    assign_slots();
    return std::move(result_);
  }

 private:
  // Registers, which are given slots at the end: values, their gradients, the gradients of operands.
  int gradient_of(int value) const { return size_ + 1 + value; }
  int gradient_of_operand(int place) const { return 2 * (size_ + 1) + place; }
  int num_registers() const { return 2 * (size_ + 1) + kNumOperandPlaces; }

  // Value i is the result of step i - 1, value 0 is v0.
  void resolve_sources() {
    int in_slot[kMaxLiveValues + 1] = {};
    for (int i = 0; i < size_; ++i) {
      const Step<double>& from = program_.steps[i];
      BackwardStep step;
      step.op = from.op;
      step.num_values = from.num_values;
      step.p = from.p;
      step.q = from.q;
      step.target = i + 1;
      for (int k = 0; k < from.num_values; ++k) {
        step.source[k] = from.source[k];
        step.index[k] = from.index[k];
        step.number[k] = from.number[k];
        if (from.source[k] == Source::kAccumulator) {
          step.source[k] = Source::kSlot;
          step.index[k] = i;
        } else if (from.source[k] == Source::kSlot) {
          step.index[k] = in_slot[from.index[k]];
        }
      }
      forward_.push_back(step);
      if (from.save >= 0) in_slot[from.save] = i + 1;
    }
    for (const LateNumber& late : program_.late_numbers)
      forward_[late.step].late[late.argument] = late.operand;
  }

  // The register of an argument's gradient, or -1 where none is needed.
  int needed_gradient(int i, int k) const {
    const BackwardStep& step = forward_[i];
    if (!has_derivative(step.op, k)) return -1;
    if (step.source[k] == Source::kSlot) return needs_[step.index[k]] ? gradient_of(step.index[k]) : -1;
    const int operand = step.source[k] == Source::kOperand ? step.index[k] : step.late[k];
    return operand >= 0 && wanted_.operands[operand] ? gradient_of_operand(operand) : -1;
  }

  void find_needs() {
    needs_.assign(size_ + 1, false);
    needs_[0] = wanted_.input;
    for (int i = 0; i < size_; ++i) {
      for (int k = 0; k < forward_[i].num_values; ++k) {
        if (needed_gradient(i, k) >= 0) needs_[i + 1] = true;
      }
    }
  }

  void push_read(BackwardStep::Kind kind, int target) {
    BackwardStep step;
    step.kind = kind;
    step.target = target;
    result_.steps.push_back(step);
  }

  void differentiate_steps() {
    is_read_.assign(size_ + 1, false);
    std::vector<bool> written(num_registers(), false);
    if (needs_[size_]) {
      push_read(BackwardStep::Kind::kReadGradient, gradient_of(size_));
      written[gradient_of(size_)] = true;
    }
    for (int i = size_ - 1; i >= 0; --i) {
      if (!written[gradient_of(i + 1)]) continue;
      for (int k = 0; k < forward_[i].num_values; ++k) {
        const int target = needed_gradient(i, k);
        if (target < 0) continue;
        BackwardStep step = differentiated(i, k);
        step.adds = written[target];
        step.target = target;
        written[target] = true;
        result_.steps.push_back(step);
      }
    }
    result_.gives.input = wanted_.input && written[gradient_of(0)];
    for (int place = 0; place < kNumOperandPlaces; ++place)
      result_.gives.operands[place] = written[gradient_of_operand(place)];
  }

  BackwardStep differentiated(int i, int k) {
    BackwardStep step = forward_[i];
    step.argument = static_cast<std::uint8_t>(k);
    step.gradient = gradient_of(i + 1);
    unsigned reads = read_by_derivative(step.op, k);
    if (program_.has_group_norm && i == program_.num_before_norm && k == 0) {
      step.kind = BackwardStep::Kind::kDifferentiateNorm;
      step.num_values = 1;
      step.source[0] = Source::kSlot;
      step.index[0] = i + 1;
      reads = kA;
      result_.passes_norm = true;
    } else {
      step.kind = BackwardStep::Kind::kDifferentiate;
    }
    for (int place = 0; place < step.num_values; ++place) {
      if ((reads >> place & 1u) == 0) {
        step.source[place] = Source::kNumber;
        step.number[place] = 0.0;
        step.late[place] = -1;
      } else if (step.source[place] == Source::kSlot) {
        is_read_[step.index[place]] = true;
        if (i != size_ - 1) only_last_reads_ = false;
      }
    }
    return step;
  }

  Saved least_saved() const {
    const auto count = std::count(is_read_.begin(), is_read_.end(), true);
    if (count == 0) return Saved::kNothing;
    const bool is_last = count == 1 && only_last_reads_ && forward_.back().source[0] == Source::kSlot &&
                         forward_.back().index[0] == size_ - 1 && is_read_[size_ - 1];
    return is_last && result_says_as_much(program_.steps.back()) ? Saved::kOutput : Saved::kInput;
  }

  // Those that derivatives read, and those that these are computed from.
  void evaluate_values() {
    for (int i = size_ - 1; i >= 0; --i) {
      if (!is_read_[i + 1]) continue;
      for (int k = 0; k < forward_[i].num_values; ++k) {
        if (forward_[i].source[k] == Source::kSlot) is_read_[forward_[i].index[k]] = true;
      }
    }
    if (is_read_[0]) push_read(BackwardStep::Kind::kReadSaved, 0);
    for (int i = 0; i < size_; ++i) {
      if (is_read_[i + 1]) result_.steps.push_back(forward_[i]);
    }
  }

  // Behind the last step that contributes to it, each gradient that is wanted leaves its slot.
  void give_when_complete() {
    const auto give = [&](BackwardStep::Kind kind, int slot, int place) {
      auto last = std::find_if(result_.steps.rbegin(), result_.steps.rend(),
                               [&](const BackwardStep& step) { return step.target == slot; });
      BackwardStep step;
      step.kind = kind;
      step.gradient = slot;
      step.argument = static_cast<std::uint8_t>(place);
      result_.steps.insert(last.base(), step);
    };
    for (int place = 0; place < kNumOperandPlaces; ++place) {
      if (result_.gives.operands[place])
        give(BackwardStep::Kind::kGiveOperand, gradient_of_operand(place), place);
    }
    if (result_.gives.input) give(BackwardStep::Kind::kGiveInput, gradient_of(0), 0);
  }

  void note_reads() {
    for (const BackwardStep& step : result_.steps) {
      for (int k = 0; k < step.num_values; ++k) {
        if (step.source[k] == Source::kOperand) result_.reads[step.index[k]] = true;
        if (step.source[k] == Source::kNumber && step.late[k] >= 0) result_.reads[step.late[k]] = true;
      }
      if (step.kind == BackwardStep::Kind::kDifferentiateNorm) {
        result_.reads[kNormOffsetOperand] = result_.reads[kNormSlopeOperand] = true;
      }
    }
  }

  // Calls visit(register) for every register that a step reads, its target where it adds to it.
  template <typename Visit>
  static void for_each_read(BackwardStep& step, const Visit& visit) {
    for (int k = 0; k < step.num_values; ++k) {
      if (step.source[k] == Source::kSlot) visit(step.index[k]);
    }
    if (step.gradient >= 0) visit(step.gradient);
    if (step.adds) visit(step.target);
  }

  // A register has a slot from the step that first writes it to the one that reads it last, which may write
  // its target to the same slot.
  void assign_slots() {
    std::vector<int> last_read(num_registers(), -1);
    for (std::size_t i = 0; i < result_.steps.size(); ++i) {
      for_each_read(result_.steps[i], [&](int reg) { last_read[reg] = static_cast<int>(i); });
    }
    std::vector<int> slot_of(num_registers(), -1);
    std::vector<bool> used;
    for (std::size_t i = 0; i < result_.steps.size(); ++i) {
      BackwardStep& step = result_.steps[i];
      const int target = step.target;
      for_each_read(step, [&](int& reg) {
        const int slot = slot_of[reg];
        if (last_read[reg] == static_cast<int>(i)) used[slot] = false;
        if (&reg != &step.target) reg = slot;
      });
      if (target < 0) continue;
      if (slot_of[target] < 0) {
        const auto free = std::find(used.begin(), used.end(), false);
        slot_of[target] = static_cast<int>(free - used.begin());
        if (free == used.end()) used.push_back(true);
        used[slot_of[target]] = true;
      }
      step.target = slot_of[target];
    }
    result_.num_slots = static_cast<int>(used.size());
  }

  const LoweredProgram& program_;
  const GradientSet wanted_;
  const int size_;
  std::vector<BackwardStep> forward_;  // with registers in place of the accumulator and its slots
  std::vector<bool> needs_;            // values whose gradient is needed
  std::vector<bool> is_read_;          // values that derivatives read
  bool only_last_reads_ = true;        // only derivatives of the last step read any
  BackwardProgram result_;
};

}  // namespace

BackwardProgram differentiate(const LoweredProgram& program, const GradientSet& wanted, Saved saved) {
  return Differentiation(program, wanted).run(saved);
}

BackwardProgram norm_sums(const LoweredProgram& program, Saved saved) {
  GradientSet wanted;
  wanted.operands[kScaleOperand] = wanted.operands[kShiftOperand] = true;
  return differentiate(program, wanted, saved);
}

}  // namespace epiconv
