// Evaluators run a program on a chunk in registers. Here is the interpreter, which reads the steps from the
// launch's parameters, so that a new program needs no new kernel. Without slots it runs chains only, programs
// of which each step computes its value from the one before and at most one operand, with the registers of
// longer chunks, over which a step's overhead is spread. Others are in static_evaluator.h, for a few programs
// that are template arguments, and in compiled_program.h.
//
// kBlocks is how many blocks of 256 threads share an SM with the registers that this takes.
#pragma once

#include <type_traits>

#include "device/chunk.h"
#include "operation_dispatch.h"

namespace epiconv {

// Part of a program that a kernel runs: all of it; or what comes before its GroupNorm's statistics, or, over
// that, normalising and what follows.
enum class Part { kAll, kBeforeNorm, kBehindNorm };

// The steps of a part, from `first` up to `end`.
struct PartSteps {
  int first, end;

  template <typename Parameters>
  __device__ __forceinline__ static PartSteps of(Part part, const Parameters& pass) {
    return {part == Part::kBehindNorm ? pass.num_before_norm : 0,
            part == Part::kBeforeNorm ? pass.num_before_norm : pass.num_steps};
  }
};

// Whether the interpreter has code of its own for the most frequent steps of a shape, and for those that are
// multiplied by their input.
template <typename Shape>
inline constexpr bool kHasShortcuts = false;

// kSlots: values that it can keep besides the accumulator.
template <typename TheShape, int kSlots>
struct Interpreted {
  using Shape = TheShape;
  using T = typename Shape::T;
  using Values = T[Shape::kCount];
  static constexpr int kBlocks = kSlots > 0 ? 1 : 2;
  static constexpr bool kMayHaveNorm = true;
  static constexpr bool kKeepsNan = false;  // a NaN always makes one of what comes before the norm
  static constexpr bool kIsStatic = false;
  static constexpr bool kIsChain = kSlots == 0;
  // In double, clamping by infinities would cost more than the steps that it saves.
  static constexpr bool kTakesFoldedSteps = std::is_same_v<T, float>;

  static __device__ __forceinline__ void run(Part part, const Chunk<Shape>& chunk, Values& accumulator) {
    const typename Shape::Parameters& pass = chunk.pass;
    const PartSteps steps = PartSteps::of(part, pass);
    Slots slots{};  // else they would live from chunk to chunk
    if (part != Part::kBehindNorm) copy_to_slot(slots, pass.save_input, accumulator);
#pragma unroll 1
    for (int i = steps.first; i < steps.end; ++i) {
      const Step<T>& step = pass.steps[i];
      run_step(chunk, step, pass.fetches[i], slots, accumulator);
      copy_to_slot(slots, step.save, accumulator);
    }
  }

 private:
  static constexpr int kWord = Shape::kWord;
  static constexpr int kWords = Shape::kWords;
  static constexpr int kCount = Shape::kCount;
  struct Slots {
    Values values[kSlots > 0 ? kSlots : 1];
  };

  static __device__ __forceinline__ void run_step(const Chunk<Shape>& chunk, const Step<T>& step, int fetches,
                                                  const Slots& slots, Values& accumulator) {
    if constexpr (kTakesFoldedSteps) {
      if (step.op == kAddClampMul) {
        run_folded(chunk, step, fetches, accumulator);
        return;
      }
      if (step.op == kGate) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) accumulator[j] = gated(step, accumulator[j]);
        return;
      }
    }
    if (fetches == 0) {
      Values a{};
      const bool times_itself = kHasShortcuts<Shape> && step.times_itself;
      if (times_itself) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) a[j] = accumulator[j];
      }
      apply(step, accumulator, [&](int) { return step.number[1]; }, [&](int) { return step.number[2]; });
      if (times_itself) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) accumulator[j] *= a[j];
      }
      return;
    }
    if constexpr (kHasShortcuts<Shape>) {
      if (fetches == kFetchB && run_shortcut(chunk, step, slots, accumulator)) return;
    }
    Values b;
    fetch(chunk, step, 1, slots, accumulator, b);
    if constexpr (kSlots > 0) {
      Values c{};
      const bool has_c = fetches & kFetchC;
      if (has_c) fetch(chunk, step, 2, slots, accumulator, c);
      if (fetches & kFetchA) fetch(chunk, step, 0, slots, accumulator, accumulator);
      apply(
          step, accumulator, [&](int j) { return b[j]; },
          [&](int j) { return has_c ? c[j] : step.number[2]; });
    } else {
      apply(step, accumulator, [&](int j) { return b[j]; }, [&](int) { return step.number[2]; });
    }
  }

  // Sums and products, without a copy of what a slot or one element for each word is; false if it is none.
  static __device__ __forceinline__ bool run_shortcut(const Chunk<Shape>& chunk, const Step<T>& step,
                                                      const Slots& slots, Values& accumulator) {
    const bool is_sum = step.op == Opcode::kAdd && step.p == T(1);
    if (!is_sum && step.op != Opcode::kMul) return false;
    const auto combine = [&](auto&& b) {
      if (is_sum) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) accumulator[j] += b(j);
      } else {
#pragma unroll
        for (int j = 0; j < kCount; ++j) accumulator[j] *= b(j);
      }
    };
    if (step.source[1] == Source::kOperand) {
      T ones[kWords];
      const auto& operand = chunk.pass.operands[step.index[1]];
      if (!chunk.load_ones(operand, ones)) return false;
      combine([&](int j) { return ones[j / kWord]; });
      return true;
    }
    if constexpr (kSlots == 1) {
      if (step.source[1] != Source::kSlot) return false;
      combine([&](int j) { return slots.values[0][j]; });
      return true;
    }
    return false;
  }

  static __device__ __forceinline__ void run_folded(const Chunk<Shape>& chunk, const Step<T>& step,
                                                    int fetches, Values& accumulator) {
    if (fetches == 0) {
      add_clamp_mul(
          step, accumulator, [&](int) { return step.number[1]; }, [&](int) { return step.number[2]; });
      return;
    }
    const bool is_sum = fetches == kFetchB;
    const auto& operand = chunk.pass.operands[step.index[is_sum ? 1 : 2]];
    T ones[kWords];
    if (chunk.load_ones(operand, ones)) {
      T b[kWords], c[kWords];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        b[w] = is_sum ? ones[w] : step.number[1];
        c[w] = is_sum ? step.number[2] : ones[w];
      }
      add_clamp_mul(
          step, accumulator, [&](int j) { return b[j / kWord]; }, [&](int j) { return c[j / kWord]; });
      return;
    }
    Values values;
    chunk.load(operand, values);
    if (is_sum) {
      add_clamp_mul(step, accumulator, [&](int j) { return values[j]; }, [&](int) { return step.number[2]; });
    } else {
      add_clamp_mul(step, accumulator, [&](int) { return step.number[1]; }, [&](int j) { return values[j]; });
    }
  }

  template <typename B, typename C>
  static __device__ __forceinline__ void add_clamp_mul(const Step<T>& step, Values& accumulator, B&& b,
                                                       C&& c) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      accumulator[j] = ops::math::minimum(ops::math::maximum(accumulator[j] + b(j), step.p), step.q) * c(j);
    }
  }

  template <typename B, typename C>
  static __device__ __forceinline__ void apply(const Step<T>& step, Values& accumulator, B&& b, C&& c) {
    visit_operation(step.op, [&]<typename Operation>() {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        accumulator[j] = Operation::forward(ops::Inputs<T>{accumulator[j], b(j), c(j), step.p, step.q});
      }
    });
  }

  // Slots are registers, which cannot be indexed: every slot is compared.
  static __device__ __forceinline__ void copy_to_slot(Slots& slots, int slot, const Values& values) {
    if (slot < 0) return;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (s != slot) continue;
#pragma unroll
      for (int j = 0; j < kCount; ++j) slots.values[s][j] = values[j];
    }
  }

  static __device__ __forceinline__ void fetch(const Chunk<Shape>& chunk, const Step<T>& step, int k,
                                               const Slots& slots, const Values& accumulator,
                                               Values& argument) {
    const Source source = step.source[k];
    const int index = step.index[k];
    if (source == Source::kOperand) {
      chunk.load(chunk.pass.operands[index], argument);
    } else if (kSlots > 0 && source == Source::kAccumulator) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) argument[j] = accumulator[j];
    } else if (kSlots > 0 && source == Source::kSlot) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (s != index) continue;
#pragma unroll
        for (int j = 0; j < kCount; ++j) argument[j] = slots.values[s][j];
      }
    } else {
      const T number = step.number[k];
#pragma unroll
      for (int j = 0; j < kCount; ++j) argument[j] = number;
    }
  }
};

}  // namespace epiconv
