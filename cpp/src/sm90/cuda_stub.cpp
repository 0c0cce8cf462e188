// The sm_90a convolution in a build without CUDA: never reached, since there is no plan for it.
#include "epiconv/error.h"
#include "sm90/halo_conv.h"

namespace epiconv::sm90 {
namespace {

[[noreturn]] void refuse() { throw NotSupported("this build of epiconv has no CUDA kernels"); }

}  // namespace

struct HaloConv::State {};
HaloConv::HaloConv(const HaloConvProblem&) { refuse(); }
HaloConv::~HaloConv() = default;
const std::string& HaloConv::kernel() const { refuse(); }
double HaloConv::interpreter_clocks(int) const { refuse(); }
std::size_t HaloConv::workspace_bytes() const { refuse(); }
void HaloConv::launch(const PassPointers&, const void*, int, void*) const { refuse(); }
void set_norm_tables(const HaloGeometry&, void*, PassPointers&) { refuse(); }
void pack_weights(const HaloGeometry&, ConvMath, const void*, const TensorLayout&, void*, int, void*) {
  refuse();
}

}  // namespace epiconv::sm90
