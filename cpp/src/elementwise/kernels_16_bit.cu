#include "elementwise/choose_kernels.h"

namespace epiconv {

const PassKernels& kernels_16_bit(const LoweredProgram& program) {
  // Longer chunks spread what is done once for a chunk, or once for its step, and take registers from warps.
  // Of 2, 3 and 4 words these were the fastest on an H200, for chains and for static programs.
  using OfStatic = ShapeOf16Bit<2, kStaticSteps>;
  using OfChain = ShapeOf16Bit<3>;
  using OfDag = ShapeOf16Bit<1>;
  if (const PassKernels* found = find_static_kernels<OfStatic>(program, Recipes{})) return *found;
  if (program.is_chain()) return kernels_of_evaluator<Interpreted<OfChain, 0>, true>("f32_interpreted_chain");
  return kernels_of_evaluator<Interpreted<OfDag, kMaxLiveValues>, true>("f32_interpreted_dag");
}

}  // namespace epiconv
