// Programs that run step by step over all accumulators of a tile, where they are: sums, clamps and products
// with one element for each filter, gates, and the activations that networks use. A step's overhead is paid
// once for a tile; chunk by chunk it would be paid eight times, and nothing hides what its one warp per
// scheduler waits for.
#pragma once

#include <algorithm>

#include "device/evaluators.h"
#include "device/gates.h"
#include "operation_dispatch.h"
#include "sm90/conv_parameters.h"
#include "sm90/fragments.h"

namespace epiconv::sm90 {

#define EPICONV_LONG_ACTIVATIONS(X) X(Sigmoid) X(Silu) X(Gelu) X(Tanh) X(Elu)
#define EPICONV_SHORT_ACTIVATIONS(X) X(Hardswish) X(Hardsigmoid) X(LeakyRelu)

#define EPICONV_OR_IS(Operation) || op == Opcode::k##Operation
inline bool is_long_activation(Opcode op) { return false EPICONV_LONG_ACTIVATIONS(EPICONV_OR_IS); }
inline bool is_short_activation(Opcode op) { return false EPICONV_SHORT_ACTIVATIONS(EPICONV_OR_IS); }
#undef EPICONV_OR_IS

// Host side: how many steps take far longer than what else there is to do for a value. The tensor cores wait
// for them; a pass behind another convolution has them too, and waits for its memory besides.
inline int long_activations(const EpilogueParameters& pass) {
  return static_cast<int>(std::count_if(pass.steps, pass.steps + pass.num_steps,
                                        [](const Step<float>& step) { return is_long_activation(step.op); }));
}

// Host side: whether the steps of a launch are such.
inline bool runs_in_place(const EpilogueParameters& pass) {
  const auto is_in_place = [](const Step<float>& step) {
    return step.save < 0 && (step.op == kAddClampMul || step.op == kGate || is_long_activation(step.op) ||
                             is_short_activation(step.op));
  };
  return pass.save_input < 0 && std::all_of(pass.steps, pass.steps + pass.num_steps, is_in_place);
}

// `of_filters` are the lane's: [place][kGroupFilters].
__device__ __forceinline__ void run_folded_step(const Step<float>& step, int fetches, const float* of_filters,
                                                float (&accumulators)[kAccumulators]) {
  float sum[2] = {step.number[1], step.number[1]};
  float factor[2] = {step.number[2], step.number[2]};
  if (fetches != 0) {
    const bool is_sum = fetches == kFetchB;
    const float* const row = of_filters + step.index[is_sum ? 1 : 2] * kGroupFilters;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float one = row[8 * h];
      sum[h] = is_sum ? one : sum[h];
      factor[h] = is_sum ? factor[h] : one;
    }
  }
  const float least = step.p, most = step.q;
#pragma unroll
  for (int j = 0; j < kAccumulators; ++j) {
    const int h = j / 2 % 2;
    const float value = ops::math::maximum(accumulators[j] + sum[h], least);
    accumulators[j] = ops::math::minimum(value, most) * factor[h];
  }
}

template <typename Operation>
__device__ __forceinline__ void run_activation(float p, float q, float (&accumulators)[kAccumulators]) {
#pragma unroll
  for (int j = 0; j < kAccumulators; ++j) {
    accumulators[j] = Operation::forward(ops::Inputs<float>{accumulators[j], 0.0f, 0.0f, p, q});
  }
}

__device__ __forceinline__ void run_in_place(const EpilogueParameters& pass, PartSteps steps,
                                             const float* of_filters, float (&accumulators)[kAccumulators]) {
#pragma unroll 1
  for (int i = steps.first; i < steps.end; ++i) {
    const Step<float>& step = pass.steps[i];
    switch (step.op) {
      case kAddClampMul:
        run_folded_step(step, pass.fetches[i], of_filters, accumulators);
        break;
      case kGate: {
        const Step<float> gate = step;
#pragma unroll
        for (int j = 0; j < kAccumulators; ++j) accumulators[j] = gated(gate, accumulators[j]);
        break;
      }
// Gelu has two forms, of which p tells which; as a constant it leaves one of them in the code.
#define EPICONV_RUN_IN_PLACE(Operation)                             \
  case Opcode::k##Operation:                                        \
    if constexpr (!std::is_same_v<ops::Operation, ops::Gelu>) {     \
      run_activation<ops::Operation>(step.p, step.q, accumulators); \
    } else if (step.p == 0.0f) {                                    \
      run_activation<ops::Operation>(0.0f, step.q, accumulators);   \
    } else {                                                        \
      run_activation<ops::Operation>(1.0f, step.q, accumulators);   \
    }                                                               \
    break;
        EPICONV_LONG_ACTIVATIONS(EPICONV_RUN_IN_PLACE)
        EPICONV_SHORT_ACTIVATIONS(EPICONV_RUN_IN_PLACE)
#undef EPICONV_RUN_IN_PLACE
      default:
        break;
    }
  }
}

}  // namespace epiconv::sm90
