// The program of the recipe with a GroupNorm, of as few instructions as it takes: most of the time of a
// convolution of few channels goes there.
//
// Of each filter v = sigmoid((x + bias + b0) b1) is a sigmoid of one product and sum, and what the norm makes
// of that another. Folded so, x + bias + b0 may not overflow where it would have, and its rounding is that of
// (bias + b0) b1 beside x b1, a bit of TF32's product apart. The sigmoid's error is small beside 1, not
// beside itself:
//   1 / (1 + 2^(-t log2(e)))  rounding the exponent changes 2^(...) by |t| 2^-24 of it, and the sigmoid by
//                             sigmoid(t) (1 - sigmoid(t)) times that; below 2^-22 with both instructions'
//   (1 + tanh(t / 2)) / 2     below 2^-12, half an instruction's: for bf16, whose products have been rounded
//                             to 2^-9
// What the norm makes of the values of a group can tell no more than that: they all lie between 0 and 1, and
// it takes their differences.
#pragma once

#include "device/ptx/exponential.h"
#include "device/static_programs.h"
#include "epiconv/epilogue_ops/ptx/reciprocal.h"

namespace epiconv {

template <typename TheShape, bool kOfTanh>
struct NormedSigmoid {
  using Shape = TheShape;
  static constexpr bool kIsStatic = true;
  static constexpr bool kTakesFoldedSteps = false;
  static constexpr bool kMayHaveNorm = true;
  static constexpr bool kKeepsNan = true;

  static bool matches(const LoweredProgram& program) { return AddMulSigmoidGroupNorm::matches(program); }

  static __device__ __forceinline__ void run(Part part, const Chunk<Shape>& chunk,
                                             float (&values)[Shape::kCount]) {
    if (part != Part::kBehindNorm) {
      float bias[kWords], sum[kWords], factor[kWords];
      load(chunk, kBiasOperand, bias);
      load(chunk, 0, sum);
      load(chunk, 1, factor);
      for_each(values, [&](int h, float value) {
        const float slope = factor[h] * kSlope;
        const float t = fmaf(value, slope, (bias[h] + sum[h]) * slope);
        if constexpr (kOfTanh) return fmaf(ptx::quick_tanh(t), 0.5f, 0.5f);
        return ptx::reciprocal_approx(1.0f + ptx::quick_exp2(t));
      });
    }
    if (part != Part::kBeforeNorm) {
      float mean[kWords], scale[kWords], shift[kWords];
      load(chunk, kMeanOperand, mean);
      load(chunk, kScaleOperand, scale);
      load(chunk, kShiftOperand, shift);
      for_each(values,
               [&](int h, float value) { return fmaf(value, scale[h], fmaf(mean[h], scale[h], shift[h])); });
    }
  }

 private:
  static constexpr int kWords = Shape::kWords;
  static constexpr float kSlope = kOfTanh ? 0.5f : -1.44269504f;  // -log2(e)

  // `of(h, value)` of a value of filter h.
  template <typename Of>
  static __device__ __forceinline__ void for_each(float (&values)[Shape::kCount], Of&& of) {
#pragma unroll
    for (int i = 0; i < Shape::kCount; ++i) values[i] = of(i / Shape::kWord, values[i]);
  }

  static __device__ __forceinline__ void load(const Chunk<Shape>& chunk, int place, float (&ones)[kWords]) {
    chunk.load_ones(chunk.pass.operands[place], ones);
  }
};

}  // namespace epiconv
