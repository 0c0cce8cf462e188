#include "device/static_programs.h"
#include "sm90/conv_kernel.h"
#include "sm90/conv_kernels.h"

namespace epiconv::sm90 {
namespace {

// Of the recipes, those of which the whole program is one pass behind the convolution; and in TF32 a gate,
// where the memory takes less time for few channels than the program does in place.
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

}  // namespace

ConvKernel static_kernel(const LoweredProgram& program, ConvMath math, int interleave) {
  const auto of_math = [&]<typename Math>(auto programs) {
    return interleave == 0 ? find<Math, 1>(program, programs) : find<Math, 2>(program, ProgramsOfPhases{});
  };
  if (interleave > 1) return {};
  if (math == ConvMath::kTf32) return of_math.template operator()<Tf32>(Tf32Programs{});
  if (math == ConvMath::kBf16) return of_math.template operator()<Bf16>(Programs{});
  return of_math.template operator()<Fp16>(Programs{});
}

}  // namespace epiconv::sm90
