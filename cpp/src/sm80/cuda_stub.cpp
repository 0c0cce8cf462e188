// The portable convolution in a build without CUDA: never reached, since there is no plan for it.
#include "epiconv/error.h"
#include "sm80/implicit_conv.h"

namespace epiconv::sm80 {
namespace {

[[noreturn]] void refuse() { throw NotSupported("this build of epiconv has no CUDA kernels"); }

}  // namespace

struct ImplicitConv::State {};
ImplicitConv::ImplicitConv(const ImplicitConvProblem&) { refuse(); }
ImplicitConv::~ImplicitConv() = default;
const std::string& ImplicitConv::kernel() const { refuse(); }
const std::string& ImplicitConv::why_interpreted() const { refuse(); }
std::size_t ImplicitConv::workspace_bytes() const { refuse(); }
void ImplicitConv::launch(const PassPointers&, const void*, int, void*) const { refuse(); }
StoredStatistics ImplicitConv::statistics(const void*) const { refuse(); }
void pack_weights(const Geometry&, ConvMath, const void*, const WeightLayout&, void*, int, void*) {
  refuse();
}

}  // namespace epiconv::sm80
