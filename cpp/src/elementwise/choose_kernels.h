// Which evaluator runs a program: a static one if there is one made for it, else an interpreter.
#pragma once

#include <type_traits>

#include "device/static_programs.h"
#include "elementwise/epilogue_pass_kernel.h"
#include "elementwise/group_norm_kernels.h"
#include "elementwise/pass_kernels.h"

namespace epiconv {

template <typename Parameters>
constexpr ParametersKind kind_of() {
  if (std::is_same_v<Parameters, DoubleParameters>) return ParametersKind::kDouble;
  if (std::is_same_v<Parameters, LargeParameters>) return ParametersKind::kLarge;
  return std::is_same_v<Parameters, StaticParameters> ? ParametersKind::kStatic
                                                      : ParametersKind::kInterpreted;
}

template <typename Evaluator, bool kHasGroupNorm>
const PassKernels& kernels_of_evaluator(const char* name) {
  static const PassKernels kernels = [&] {
    using Shape = typename Evaluator::Shape;
    PassKernels result{name,
                       kind_of<typename Shape::Parameters>(),
                       Shape::kWord,
                       Shape::kWords,
                       Evaluator::kTakesFoldedSteps,
                       reinterpret_cast<const void*>(&epilogue_pass<Evaluator>),
                       nullptr,
                       nullptr};
    if constexpr (kHasGroupNorm) {
      result.range_statistics = reinterpret_cast<const void*>(&gather_range_moments<Evaluator>);
      result.channel_statistics = reinterpret_cast<const void*>(&gather_channel_moments<Evaluator>);
    }
    return result;
  }();
  return kernels;
}

template <typename Shape, typename Program>
const PassKernels* static_kernels(const LoweredProgram& program) {
  if (!Program::matches(program)) return nullptr;
  return &kernels_of_evaluator<Static<Shape, Program>, Program::kHasGroupNorm>("f32_static");
}

// The kernels made for exactly that program, or nullptr.
template <typename Shape, typename... Programs>
const PassKernels* find_static_kernels(const LoweredProgram& program, StaticPrograms<Programs...>) {
  const PassKernels* found = nullptr;
  ((found = found != nullptr ? found : static_kernels<Shape, Programs>(program)), ...);
  return found;
}

}  // namespace epiconv
