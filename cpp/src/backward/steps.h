// The steps of a sweep over one word of elements: those of any program, or those of a program that is known
// when the kernel is compiled, each of which is code of its own.
#pragma once

#include "backward/parameters.h"
#include "gradient.h"
#include "operation_dispatch.h"

namespace epiconv::backward {

// An operation known when a step runs.
struct AnyOperation {
  template <typename Visitor>
  static EPICONV_HOST_DEVICE void visit(Opcode op, Visitor&& visitor) {
    visit_operation(op, visitor);
  }
};

// One known before.
template <Opcode kOpcode>
struct OneOperation {
  template <typename Visitor>
  static EPICONV_HOST_DEVICE void visit(Opcode, Visitor&& visitor) {
    visit_operation_of<kOpcode>(visitor);
  }
};

template <typename T>
struct Word {
  T values[kWord];
};

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

// `elements` loads and stores words of tensors, has the run's numbers, and takes gradients that are summed;
// `slots` reads and writes words.
template <typename T, typename Operations, typename Elements, typename Slots>
EPICONV_HOST_DEVICE void run_action(const Action& action, Elements& elements, Slots& slots) {
  using Kind = BackwardStep::Kind;
  Word<T> x[3] = {};
  EPICONV_UNROLL
  for (int k = 0; k < 3; ++k) {
    if (k >= action.num_values) continue;
    if (action.source[k] == Source::kSlot) {
      x[k] = slots.read(action.index[k]);
    } else if (action.source[k] == Source::kOperand) {
      x[k] = elements.load(action.index[k]);
    } else {
      const double number = action.late[k] >= 0 ? elements.number(action.late[k]) : action.number[k];
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) x[k].values[j] = static_cast<T>(number);
    }
  }
  const auto give = [&](Word<T> result) {
    if (action.adds) {
      const Word<T> before = slots.read(action.target);
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) result.values[j] = before.values[j] + result.values[j];
    }
    slots.write(action.target, result);
  };
  switch (action.kind) {
    case Kind::kReadSaved:
      return slots.write(action.target, elements.load(kSavedTensor));
    case Kind::kReadGradient:
      return slots.write(action.target, elements.load(kGradientTensor));
    case Kind::kEvaluate:
      return Operations::visit(action.op, [&]<typename Operation>() {
        Word<T> result;
        EPICONV_UNROLL
        for (int j = 0; j < kWord; ++j) {
          result.values[j] =
              Operation::forward(ops::Inputs<T>{x[0].values[j], x[1].values[j], x[2].values[j],
                                                static_cast<T>(action.p), static_cast<T>(action.q)});
        }
        slots.write(action.target, result);
      });
    case Kind::kDifferentiate: {
      const Word<T> gradient = slots.read(action.gradient);
      return Operations::visit(action.op, [&]<typename Operation>() {
        constexpr int kArguments = Operation::kInfo.num_arguments();
        if (action.argument == 0) {
          give(differentiated<T, Operation, 0>(action, x, gradient));
        } else if (action.argument == 1) {
          if constexpr (kArguments > 1) give(differentiated<T, Operation, 1>(action, x, gradient));
        } else {
          if constexpr (kArguments > 2) give(differentiated<T, Operation, 2>(action, x, gradient));
        }
      });
    }
    case Kind::kDifferentiateNorm: {
      const Word<T> gradient = slots.read(action.gradient);
      const Word<T> offset = elements.load(kNormOffsetOperand);
      const Word<T> slope = elements.load(kNormSlopeOperand);
      Word<T> result;
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) {
        result.values[j] = gradient.values[j] + (offset.values[j] + slope.values[j] * x[0].values[j]);
      }
      return give(result);
    }
    case Kind::kGiveInput:
      return elements.store(kInputGradientTensor, slots.read(action.gradient));
    case Kind::kGiveOperand: {
      const Word<T> gradient = slots.read(action.gradient);
      if (action.target < 0) return elements.store(kOperandGradients + action.argument, gradient);
      return elements.add(action.target, gradient);
    }
  }
}

// All steps of a sweep's parameters, one after another.
struct AnyProgram {
  template <typename T, typename Elements, typename Slots>
  static EPICONV_HOST_DEVICE void run(const Sweep& sweep, Elements& elements, Slots& slots) {
    for (int i = 0; i < sweep.num_actions; ++i) {
      run_action<T, AnyOperation>(sweep.actions[i], elements, slots);
    }
  }
};

// Those of a sweep that is a constant.
template <const Sweep& kSweep>
struct OneProgram {
  template <typename T, typename Elements, typename Slots>
  static EPICONV_HOST_DEVICE void run(const Sweep&, Elements& elements, Slots& slots) {
    run_from<T, 0>(elements, slots);
  }

 private:
  template <typename T, int kFirst, typename Elements, typename Slots>
  static EPICONV_HOST_DEVICE void run_from(Elements& elements, Slots& slots) {
    if constexpr (kFirst < kSweep.num_actions) {
      constexpr Action action = kSweep.actions[kFirst];
      run_action<T, OneOperation<action.op>>(action, elements, slots);
      run_from<T, kFirst + 1>(elements, slots);
    }
  }
};

}  // namespace epiconv::backward
