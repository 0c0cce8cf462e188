// An evaluator whose steps are template arguments, for a few programs; only their numbers are parameters.
#pragma once

#include <cstddef>
#include <type_traits>

#include "device/evaluators.h"
#include "lowering.h"

namespace epiconv {

// Where an argument of a static step comes from.
struct Number {
  static constexpr Source kSource = Source::kNumber;
};
template <int kTheIndex>
struct Operand {
  static constexpr Source kSource = Source::kOperand;
  static constexpr int kIndex = kTheIndex;
};

// One step of a static program, on the accumulator.
template <typename TheOperation, Opcode kTheOpcode, typename TheB = Number, typename TheC = Number>
struct StaticStep {
  using Operation = TheOperation;
  using B = TheB;
  using C = TheC;
  static constexpr Opcode kOpcode = kTheOpcode;
  // The factor of b, torch's alpha, which is 1 in a static program.
  static constexpr bool kHasAlpha = kTheOpcode == Opcode::kAdd || kTheOpcode == Opcode::kSub;
};

template <typename... Steps>
struct StaticProgram {
  static constexpr bool kHasGroupNorm = (std::is_same_v<typename Steps::B, Operand<kMeanOperand>> || ...);

  // Whether these steps are the program's.
  static bool matches(const LoweredProgram& program) {
    if (program.steps.size() != sizeof...(Steps) || program.num_slots != 0) return false;
    std::size_t i = 0;
    return (matches_step<Steps>(program.steps[i++]) && ...);
  }

 private:
  template <typename TheStep>
  static bool matches_step(const Step<double>& step) {
    if (TheStep::kHasAlpha && step.p != 1.0) return false;
    return step.op == TheStep::kOpcode && step.source[0] == Source::kAccumulator &&
           matches_argument<typename TheStep::B>(step, 1) && matches_argument<typename TheStep::C>(step, 2);
  }

  template <typename Argument>
  static bool matches_argument(const Step<double>& step, int k) {
    if (k >= step.num_values) return true;
    if constexpr (Argument::kSource == Source::kOperand) {
      return step.source[k] == Source::kOperand && step.index[k] == Argument::kIndex;
    }
    return step.source[k] == Source::kNumber;
  }
};

template <typename TheShape, typename Program>
struct Static;

template <typename TheShape, typename... Steps>
struct Static<TheShape, StaticProgram<Steps...>> {
  using Shape = TheShape;
  using T = typename Shape::T;
  using Values = T[Shape::kCount];
  static constexpr bool kMayHaveNorm = StaticProgram<Steps...>::kHasGroupNorm;
  static constexpr bool kKeepsNan = false;
  static constexpr int kBlocks = kMayHaveNorm || Shape::kWord == 8 ? 3 : 4;
  static constexpr bool kIsStatic = true;
  static constexpr bool kTakesFoldedSteps = false;

  static_assert(sizeof...(Steps) <= Shape::Parameters::kSteps);

  static __device__ __forceinline__ void run(Part part, const Chunk<Shape>& chunk, Values& accumulator) {
    int i = 0;
    bool before_norm = true;
    const auto step = [&]<typename TheStep>() {
      if constexpr (std::is_same_v<typename TheStep::B, Operand<kMeanOperand>>) before_norm = false;
      if (part == Part::kAll || (part == Part::kBeforeNorm) == before_norm) {
        run_step<TheStep>(chunk, chunk.pass.steps[i], accumulator);
      }
      ++i;
    };
    (step.template operator()<Steps>(), ...);
  }

 private:
  static constexpr int kWord = Shape::kWord;
  static constexpr int kCount = Shape::kCount;

  template <typename TheStep>
  static __device__ __forceinline__ void run_step(const Chunk<Shape>& chunk, const Step<T>& step,
                                                  Values& accumulator) {
    static_assert(TheStep::C::kSource == Source::kNumber);
    if constexpr (TheStep::B::kSource == Source::kOperand) {
      const auto& operand = chunk.pass.operands[TheStep::B::kIndex];
      T ones[Shape::kWords];
      if (chunk.load_ones(operand, ones)) {
        apply<TheStep>(step, accumulator, [&](int j) { return ones[j / kWord]; });
      } else {
        Values b;
        chunk.load(operand, b);
        apply<TheStep>(step, accumulator, [&](int j) { return b[j]; });
      }
    } else {
      apply<TheStep>(step, accumulator, [&](int) { return step.number[1]; });
    }
  }

  template <typename TheStep, typename B>
  static __device__ __forceinline__ void apply(const Step<T>& step, Values& accumulator, B&& b) {
    const T p = TheStep::kHasAlpha ? T(1) : step.p;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      accumulator[j] =
          TheStep::Operation::forward(ops::Inputs<T>{accumulator[j], b(j), step.number[2], p, step.q});
    }
  }
};

}  // namespace epiconv
