// A sum with the bias and one more operand, bounds, and a factor: what a program of sums, clamps and products
// by numbers folds into (fold_steps.h), the recipe with a transposed convolution among them. Of a filter both
// operands are added first: a rounding apart from one after the other, far below those of the products, and
// infinite where they alone overflow.
#pragma once

#include <vector>

#include "device/evaluators.h"
#include "device/fold_steps.h"
#include "pass.h"

namespace epiconv {

template <typename TheShape>
struct ClampedSum {
  using Shape = TheShape;
  static constexpr bool kIsStatic = true;
  static constexpr bool kTakesFoldedSteps = true;
  static constexpr bool kMayHaveNorm = false;
  static constexpr bool kKeepsNan = false;

  static bool matches(const LoweredProgram& program) {
    if (!program.late_numbers.empty() || program.save_input >= 0 || program.has_group_norm) return false;
    Pass pass;
    pass.program = program;
    std::vector<Step<float>> steps(program.steps.size());
    fill_steps(pass, PassPointers{}, steps.data());
    steps.resize(static_cast<std::size_t>(fold_steps(steps.data(), static_cast<int>(steps.size()))));
    if (steps.empty() || steps.size() > 2) return false;
    for (const Step<float>& step : steps) {
      const bool adds_bias = &step == steps.data() && step.index[1] == kBiasOperand;
      const bool adds = step.source[1] == Source::kOperand;
      if (step.op != kAddClampMul || step.save >= 0 || step.source[2] != Source::kNumber) return false;
      if (adds && !adds_bias && step.index[1] != 0) return false;
    }
    return steps.size() == 1 || is_sum(steps.front());
  }

  static __device__ __forceinline__ void run(Part, const Chunk<Shape>& chunk,
                                             float (&values)[Shape::kCount]) {
    const auto& pass = chunk.pass;
    float sums[Shape::kWords];
    add(chunk, 0, sums);
    if (pass.num_steps == 2) {
      float more[Shape::kWords];
      add(chunk, 1, more);
#pragma unroll
      for (int h = 0; h < Shape::kWords; ++h) sums[h] += more[h];
    }
    const Step<float>& last = pass.steps[pass.num_steps - 1];
    const float least = last.p, most = last.q, factor = last.number[2];
#pragma unroll
    for (int i = 0; i < Shape::kCount; ++i) {
      const float value = ops::math::maximum(values[i] + sums[i / Shape::kWord], least);
      values[i] = ops::math::minimum(value, most) * factor;
    }
  }

 private:
  // Whether nothing but a sum.
  static bool is_sum(const Step<float>& step) {
    const Step<float> none = folded_identity<float>();
    return step.p == none.p && step.q == none.q && step.number[2] == none.number[2];
  }

  // What a step adds to each word: an operand of filters, or a number.
  static __device__ __forceinline__ void add(const Chunk<Shape>& chunk, int i, float (&sums)[Shape::kWords]) {
    const Step<float>& step = chunk.pass.steps[i];
    const bool adds_operand = chunk.pass.fetches[i] == kFetchB, is_bias = step.index[1] == kBiasOperand;
#pragma unroll
    for (int h = 0; h < Shape::kWords; ++h) {
      const float operand = is_bias ? chunk.ones[kBiasOperand][h] : chunk.ones[0][h];
      sums[h] = adds_operand ? operand : step.number[1];
    }
  }
};

}  // namespace epiconv
