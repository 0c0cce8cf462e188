// The steps of a sweep over one word of elements: those of any program, or those of a program that is known
// when the kernel is compiled, each of which is code of its own.
#pragma once

#include "backward/parameters.h"
#include "gradient.h"
#include "operation_dispatch.h"

namespace epiconv::backward {

template <typename T>
struct Word {
  T values[kWord];
};

template <typename Operation>
inline constexpr int kNumArguments = Operation::kInfo.num_arguments();

template <typename T, typename Operation, int kArgument>
EPICONV_HOST_DEVICE Word<T> differentiated(const Action& action, const Word<T> (&x)[3],
                                           const Word<T>& gradient) {
  Word<T> result;
  EPICONV_UNROLL
  for (int j = 0; j < kWord; ++j) {
    const ops::Inputs<T> in{x[0].values[j], x[1].values[j], x[2].values[j], static_cast<T>(action.p),
                            static_cast<T>(action.q)};
    result.values[j] = gradient_of_argument<Operation, kArgument>(in, gradient.values[j]);
  }
  return result;
}

// A tensor of which nothing is known before the kernel runs.
struct AnyTensor {
  int number;

  static constexpr bool kMayBeOneForAll = true, kMayBeInWords = true, kMayBeApart = true;
  EPICONV_HOST_DEVICE DType dtype(const Tensor& tensor) const { return tensor.dtype; }
};

// One of a sweep that is a constant.
template <DType kDType>
struct KnownDType {
  EPICONV_HOST_DEVICE constexpr operator DType() const { return kDType; }
};
template <const Sweep& kSweep, int kNumber>
struct OneTensor {
  static constexpr int number = kNumber;
  static constexpr bool kMayBeOneForAll = kSweep.tensors[kNumber].strides[kColumn] == 0;
  static constexpr bool kMayBeInWords = kSweep.tensors[kNumber].in_words;
  static constexpr bool kMayBeApart = !kMayBeOneForAll;
  EPICONV_HOST_DEVICE KnownDType<kSweep.tensors[kNumber].dtype> dtype(const Tensor&) const { return {}; }
};

// The number of a register, which the compiler has to know early.
template <int kValue>
struct KnownIndex {
  static constexpr int value = kValue;
  EPICONV_HOST_DEVICE constexpr operator int() const { return kValue; }
};

// A step of which nothing is known before the kernel runs: it may be of any kind.
struct AnyStep {
  const Action& action;

  static EPICONV_HOST_DEVICE constexpr bool may_be(BackwardStep::Kind) { return true; }
  static EPICONV_HOST_DEVICE constexpr bool may_read(int, Source) { return true; }
  static EPICONV_HOST_DEVICE constexpr bool may_differentiate(int) { return true; }
  static constexpr bool kMayBeSummed = true, kMayBeWhole = true;

  template <typename Visitor>
  EPICONV_HOST_DEVICE void visit(Visitor&& visitor) const {
    visit_operation(action.op, visitor);
  }
  template <int kArgument>
  EPICONV_HOST_DEVICE AnyTensor argument() const {
    return {action.index[kArgument]};
  }
  template <int kNumber>
  EPICONV_HOST_DEVICE AnyTensor tensor() const {
    return {kNumber};
  }
  EPICONV_HOST_DEVICE AnyTensor operand_gradient() const { return {kOperandGradients + action.argument}; }
  template <int kArgument>
  EPICONV_HOST_DEVICE int slot() const {
    return action.index[kArgument];
  }
  EPICONV_HOST_DEVICE int target() const { return action.target; }
  EPICONV_HOST_DEVICE int gradient() const { return action.gradient; }
  EPICONV_HOST_DEVICE int sum_index(const Sum& sum) const { return sum.index; }
};

// One of a program that is a constant: what it is not takes the compiler no time.
template <const Sweep& kSweep, const auto& kSteps, int kStep>
struct OneStep {
  static constexpr Action action = kSteps.each[kStep];

  static EPICONV_HOST_DEVICE constexpr bool may_be(BackwardStep::Kind kind) { return action.kind == kind; }
  static EPICONV_HOST_DEVICE constexpr bool may_read(int k, Source source) {
    return k < action.num_values && action.source[k] == source;
  }
  static EPICONV_HOST_DEVICE constexpr bool may_differentiate(int k) { return action.argument == k; }
  static constexpr bool kMayBeSummed = action.target >= 0, kMayBeWhole = action.target < 0;

  // Of registers; sums of rows are not there.
  static EPICONV_HOST_DEVICE constexpr int index_of_sum() {
    if (action.target < 0 || kSweep.sums[action.target].kind == SumKind::kRows) return 0;
    return kSweep.sums[action.target].index;
  }

  template <typename Visitor>
  EPICONV_HOST_DEVICE void visit(Visitor&& visitor) const {
    visit_operation_of<action.op>(visitor);
  }
  template <int kArgument>
  EPICONV_HOST_DEVICE OneTensor<kSweep, action.index[kArgument]> argument() const {
    return {};
  }
  template <int kNumber>
  EPICONV_HOST_DEVICE OneTensor<kSweep, kNumber> tensor() const {
    return {};
  }
  EPICONV_HOST_DEVICE OneTensor<kSweep, kOperandGradients + action.argument> operand_gradient() const {
    return {};
  }
  template <int kArgument>
  EPICONV_HOST_DEVICE KnownIndex<action.index[kArgument]> slot() const {
    return {};
  }
  EPICONV_HOST_DEVICE KnownIndex<action.target> target() const { return {}; }
  EPICONV_HOST_DEVICE KnownIndex<action.gradient> gradient() const { return {}; }
  EPICONV_HOST_DEVICE auto sum_index(const Sum&) const { return KnownIndex<index_of_sum()>{}; }
};

// What a step reads as its argument k.
template <int k, typename T, typename Step, typename Elements, typename Slots>
EPICONV_HOST_DEVICE Word<T> argument_of(const Step& step, const Elements& elements, const Slots& slots) {
  const auto& action = step.action;
  Word<T> result = {};
  if (k >= action.num_values) return result;
  if constexpr (Step::may_read(k, Source::kSlot)) {
    if (action.source[k] == Source::kSlot) return slots.read(step.template slot<k>());
  }
  if constexpr (Step::may_read(k, Source::kOperand)) {
    if (action.source[k] == Source::kOperand) return elements.load(step.template argument<k>());
  }
  const double number = action.late[k] >= 0 ? elements.number(action.late[k]) : action.number[k];
  EPICONV_UNROLL
  for (int j = 0; j < kWord; ++j) result.values[j] = static_cast<T>(number);
  return result;
}

// `elements` loads and stores words of tensors, has the run's numbers, and takes gradients that are summed;
// `slots` reads and writes words.
template <typename T, typename Step, typename Elements, typename Slots>
EPICONV_HOST_DEVICE void run_step(const Step& step, Elements& elements, Slots& slots) {
  using Kind = BackwardStep::Kind;
  const auto& action = step.action;
  const auto give = [&](Word<T> result) {
    if (action.adds) {
      const Word<T> before = slots.read(step.target());
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) result.values[j] = before.values[j] + result.values[j];
    }
    slots.write(step.target(), result);
  };
  if constexpr (Step::may_be(Kind::kReadSaved)) {
    if (action.kind == Kind::kReadSaved)
      return slots.write(step.target(), elements.load(step.template tensor<kSavedTensor>()));
  }
  if constexpr (Step::may_be(Kind::kReadGradient)) {
    if (action.kind == Kind::kReadGradient)
      return slots.write(step.target(), elements.load(step.template tensor<kGradientTensor>()));
  }
  if constexpr (Step::may_be(Kind::kGiveInput)) {
    if (action.kind == Kind::kGiveInput)
      return elements.store(step.template tensor<kInputGradientTensor>(), slots.read(step.gradient()));
  }
  if constexpr (Step::may_be(Kind::kGiveOperand)) {
    if (action.kind == Kind::kGiveOperand) {
      const Word<T> gradient = slots.read(step.gradient());
      if constexpr (Step::kMayBeWhole) {
        if (action.target < 0) return elements.store(step.operand_gradient(), gradient);
      }
      if constexpr (Step::kMayBeSummed) elements.add(step, gradient);
      return;
    }
  }
  if constexpr (Step::may_be(Kind::kEvaluate) || Step::may_be(Kind::kDifferentiate) ||
                Step::may_be(Kind::kDifferentiateNorm)) {
    const Word<T> x[3] = {argument_of<0, T>(step, elements, slots), argument_of<1, T>(step, elements, slots),
                          argument_of<2, T>(step, elements, slots)};
    if constexpr (Step::may_be(Kind::kEvaluate)) {
      if (action.kind == Kind::kEvaluate) {
        return step.visit([&]<typename Operation>() {
          Word<T> result;
          EPICONV_UNROLL
          for (int j = 0; j < kWord; ++j) {
            result.values[j] =
                Operation::forward(ops::Inputs<T>{x[0].values[j], x[1].values[j], x[2].values[j],
                                                  static_cast<T>(action.p), static_cast<T>(action.q)});
          }
          slots.write(step.target(), result);
        });
      }
    }
    if constexpr (Step::may_be(Kind::kDifferentiate)) {
      if (action.kind == Kind::kDifferentiate) {
        const Word<T> gradient = slots.read(step.gradient());
        return step.visit([&]<typename Operation>() {
          constexpr int kArguments = kNumArguments<Operation>;
          if constexpr (Step::may_differentiate(0)) {
            if (action.argument == 0) give(differentiated<T, Operation, 0>(action, x, gradient));
          }
          if constexpr (Step::may_differentiate(1) && kArguments > 1) {
            if (action.argument == 1) give(differentiated<T, Operation, 1>(action, x, gradient));
          }
          if constexpr (Step::may_differentiate(2) && kArguments > 2) {
            if (action.argument == 2) give(differentiated<T, Operation, 2>(action, x, gradient));
          }
        });
      }
    }
    if constexpr (Step::may_be(Kind::kDifferentiateNorm)) {
      const Word<T> gradient = slots.read(step.gradient());
      const Word<T> offset = elements.load(step.template tensor<kNormOffsetOperand>());
      const Word<T> slope = elements.load(step.template tensor<kNormSlopeOperand>());
      Word<T> result;
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) {
        result.values[j] = gradient.values[j] + (offset.values[j] + slope.values[j] * x[0].values[j]);
      }
      give(result);
    }
  }
}

// All steps of a sweep, one after another, as a kernel's parameters say.
struct AnyProgram {
  const Actions& actions;

  template <typename T, typename Elements, typename Slots>
  EPICONV_HOST_DEVICE void run(Elements& elements, Slots& slots) const {
    for (int i = 0; i < actions.count; ++i) run_step<T>(AnyStep{actions.each[i]}, elements, slots);
  }
};

// Those that are constants.
template <const Sweep& kSweep, const auto& kSteps, int kCount>
struct OneProgram {
  template <typename T, typename Elements, typename Slots>
  EPICONV_HOST_DEVICE void run(Elements& elements, Slots& slots) const {
    run_from<T, 0>(elements, slots);
  }

 private:
  template <typename T, int kFirst, typename Elements, typename Slots>
  static EPICONV_HOST_DEVICE void run_from(Elements& elements, Slots& slots) {
    if constexpr (kFirst < kCount) {
      run_step<T>(OneStep<kSweep, kSteps, kFirst>{}, elements, slots);
      run_from<T, kFirst + 1>(elements, slots);
    }
  }
};

}  // namespace epiconv::backward
