// The sm_90a convolution in a build without CUDA: never reached, since there is no plan for it.
#include "epiconv/error.h"
#include "sm90/fprop.h"

namespace epiconv::sm90 {
namespace {

[[noreturn]] void refuse() { throw NotSupported("this build of epiconv has no CUDA kernels"); }

}  // namespace

struct Fprop::State {};
Fprop::Fprop(const FpropProblem&) { refuse(); }
Fprop::~Fprop() = default;
const std::string& Fprop::kernel() const { refuse(); }
bool Fprop::hides_epilogue() const { refuse(); }
void Fprop::launch(const PassPointers&, const void*, int, void*) const { refuse(); }
void pack_weights(const HaloGeometry&, ConvMath, const void*, const TensorLayout&, void*, int, void*) {
  refuse();
}

}  // namespace epiconv::sm90
