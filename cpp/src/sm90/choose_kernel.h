// Which evaluator a convolution kernel runs a program with: a static one if there is one made for it, else an
// interpreter. The static programs need operands with one element for each filter.
#pragma once

#include "device/static_programs.h"
#include "sm90/fprop_kernel.h"
#include "sm90/fprop_kernels.h"

namespace epiconv::sm90 {

template <typename Math, typename In, typename Evaluator>
FpropKernel fprop_with(const char* evaluator) {
  return {evaluator, reinterpret_cast<const void*>(&fprop<Math, In, Evaluator>),
          Evaluator::kTakesFoldedSteps};
}

template <typename Math, typename In, typename... Programs>
FpropKernel choose_kernel(const LoweredProgram& program, bool only_of_filters, StaticPrograms<Programs...>) {
  FpropKernel found{};
  const auto consider = [&]<typename Program>() {
    if (only_of_filters && found.function == nullptr && Program::matches(program)) {
      found = fprop_with<Math, In, Static<ConvShape<8, true>, Program>>("f32_static");
    }
  };
  (consider.template operator()<Programs>(), ...);
  if (found.function != nullptr) return found;
  if (program.is_chain())
    return fprop_with<Math, In, Interpreted<ConvShape<8, false>, false>>("f32_interpreted_chain");
  return fprop_with<Math, In, Interpreted<ConvShape<4, false>, true>>("f32_interpreted_dag");
}

// Of the recipes, those of which the whole program is one pass behind a plain convolution.
using ConvRecipes = StaticPrograms<MinAddMul, ReluAdd>;
// And in TF32, where the memory takes less time for few channels than the program does in place.
using Tf32Programs = StaticPrograms<MinAddMul, ReluAdd, ReluGate>;

}  // namespace epiconv::sm90
