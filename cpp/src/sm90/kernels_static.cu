#include "device/clamped_sum.h"
#include "device/normed_sigmoid.h"
#include "device/static_programs.h"
#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {
namespace {

// The recipes without a norm; and in TF32 a gate, where the memory takes less time for few channels than the
// program does in place.
using Programs = StaticPrograms<MinAddMul, ReluAdd>;
using Tf32Programs = StaticPrograms<MinAddMul, ReluAdd, ReluGate>;

template <typename Math, typename... All>
ConvKernel find(const LoweredProgram& program, StaticPrograms<All...>) {
  ConvKernel found{};
  const auto consider = [&]<typename Program>() {
    if (found.function == nullptr && Program::matches(program)) {
      found = conv_kernel<OneMath<Math>, Static<ConvShape<8, true, 1>, Program>>("f32_static");
    }
  };
  (consider.template operator()<All>(), ...);
  return found;
}

// What follows a transposed convolution of stride 2, if it is sums, bounds and products.
template <typename Math>
ConvKernel of_phases(const LoweredProgram& program) {
  using Evaluator = ClampedSum<ConvShape<8, true, 2>>;
  if (!Evaluator::matches(program)) return {};
  return conv_kernel<OneMath<Math>, Evaluator>("f32_static");
}

// The recipe with a GroupNorm.
ConvKernel norm_kernel(ConvMath math) {
  const auto of = [&]<typename Math, bool kOfTanh>() {
    return conv_kernel<OneMath<Math>, NormedSigmoid<ConvShape<8, true, 1>, kOfTanh>>("f32_static");
  };
  if (math == ConvMath::kTf32) return of.template operator()<Tf32, false>();
  if (math == ConvMath::kBf16) return of.template operator()<Bf16, true>();
  return of.template operator()<Fp16, false>();
}

}  // namespace

ConvKernel static_kernel(const LoweredProgram& program, ConvMath math, int interleave, int joint_rows) {
  if (interleave > 1) return {};
  if (interleave == 0 && AddMulSigmoidGroupNorm::matches(program)) return norm_kernel(math);
  if (joint_rows > 1) return {};
  const auto of_math = [&]<typename Math>(auto programs) {
    return interleave == 0 ? find<Math>(program, programs) : of_phases<Math>(program);
  };
  if (math == ConvMath::kTf32) return of_math.template operator()<Tf32>(Tf32Programs{});
  if (math == ConvMath::kBf16) return of_math.template operator()<Bf16>(Programs{});
  return of_math.template operator()<Fp16>(Programs{});
}

}  // namespace epiconv::sm90
