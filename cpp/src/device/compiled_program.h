// An evaluator for programs that are known when the kernel is compiled: every step is code of its own, and
// numbers are constants. Compiled without contraction of sums and products (--fmad=false), which would reach
// from one step into the next, it gives the bits of the interpreter.
#pragma once

#include <limits>

#include "device/chunk.h"
#include "device/evaluators.h"
#include "operation_dispatch.h"
#include "step.h"

namespace epiconv {

// kProgram has the members of PassParameters that say what the steps are, and num_slots.
template <typename TheShape, const auto& kProgram>
struct Compiled {
  using Shape = TheShape;
  using T = typename Shape::T;
  using Values = T[Shape::kCount];

  static __device__ __forceinline__ void run(Part, const Chunk<Shape>& chunk, Values& accumulator) {
    Slots slots{};
    save<kProgram.save_input>(slots, accumulator);
    run_steps<0>(chunk, slots, accumulator);
  }

 private:
  static constexpr int kCount = Shape::kCount;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  struct Slots {
    Values values[kProgram.num_slots > 0 ? kProgram.num_slots : 1];
  };

  template <int kFirst>
  static __device__ __forceinline__ void run_steps(const Chunk<Shape>& chunk, Slots& slots,
                                                   Values& accumulator) {
    if constexpr (kFirst < kProgram.num_steps) {
      run_step<kFirst>(chunk, slots, accumulator);
      run_steps<kFirst + 1>(chunk, slots, accumulator);
    }
  }

  template <int kStep>
  static __device__ __forceinline__ void run_step(const Chunk<Shape>& chunk, Slots& slots,
                                                  Values& accumulator) {
    constexpr Step<T> step = kProgram.steps[kStep];
    Values a, b, c;
    fetch<kStep, 0>(chunk, slots, accumulator, a);
    if constexpr (step.num_values > 1) fetch<kStep, 1>(chunk, slots, accumulator, b);
    if constexpr (step.num_values > 2) fetch<kStep, 2>(chunk, slots, accumulator, c);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const T of_b = step.num_values > 1 ? b[j] : step.number[1];
      const T of_c = step.num_values > 2 ? c[j] : step.number[2];
      T result = compute<kStep>(a[j], of_b, of_c);
      if constexpr (step.times_itself) result *= a[j];
      accumulator[j] = result;
    }
    save<step.save>(slots, accumulator);
  }

  template <int kStep>
  static __device__ __forceinline__ T compute(T a, T b, T c) {
    constexpr Step<T> step = kProgram.steps[kStep];
    if constexpr (step.op == kAddClampMul) {
      T v = a + b;
      if constexpr (step.p != -kInfinity) v = ops::math::maximum(v, step.p);
      if constexpr (step.q != kInfinity) v = ops::math::minimum(v, step.q);
      return v * c;
    } else if constexpr (step.op == kGate) {
      return Gated::forward(ops::Inputs<T>{a, b, c, step.p, step.q});
    } else {
      T result = a;
      visit_operation_of<step.op>([&]<typename Operation>() {
        result = Operation::forward(ops::Inputs<T>{a, b, c, step.p, step.q});
      });
      return result;
    }
  }

  template <int kStep, int kArgument>
  static __device__ __forceinline__ void fetch(const Chunk<Shape>& chunk, const Slots& slots,
                                               const Values& accumulator, Values& argument) {
    constexpr Step<T> step = kProgram.steps[kStep];
    constexpr Source source = step.source[kArgument];
    if constexpr (source == Source::kOperand) {
      chunk.load(chunk.pass.operands[step.index[kArgument]], argument);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if constexpr (source == Source::kAccumulator) {
          argument[j] = accumulator[j];
        } else if constexpr (source == Source::kSlot) {
          argument[j] = slots.values[step.index[kArgument]][j];
        } else {
          argument[j] = step.number[kArgument];
        }
      }
    }
  }

  template <int kSlot>
  static __device__ __forceinline__ void save(Slots& slots, const Values& values) {
    if constexpr (kSlot >= 0) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) slots.values[kSlot][j] = values[j];
    }
  }
};

}  // namespace epiconv
