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
using ProgramsOfPhases = StaticPrograms<AddClampMulClampDiv>;

template <typename Math, int kPhases, typename... OfPhases>
ConvKernel find(const LoweredProgram& program, StaticPrograms<OfPhases...>) {
  ConvKernel found{};
  const auto consider = [&]<typename Program>() {
    if (found.function == nullptr && Program::matches(program)) {
      found = conv_kernel<OneMath<Math>, Static<ConvShape<8, true, kPhases>, Program>>("f32_static");
    }
  };
  (consider.template operator()<OfPhases>(), ...);
  return found;
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
    return interleave == 0 ? find<Math, 1>(program, programs) : find<Math, 2>(program, ProgramsOfPhases{});
  };
  if (math == ConvMath::kTf32) return of_math.template operator()<Tf32>(Tf32Programs{});
  if (math == ConvMath::kBf16) return of_math.template operator()<Bf16>(Programs{});
  return of_math.template operator()<Fp16>(Programs{});
}

}  // namespace epiconv::sm90
