// What the library offers for CUDA when it is built without: a refusal that says what to do.
#include "elementwise/epilogue_pass.h"
#include "elementwise/group_norm.h"
#include "epiconv/device.h"
#include "epiconv/error.h"
#include "epiconv/operation_probe.h"

namespace epiconv {
namespace {

[[noreturn]] void refuse() {
  throw NotSupported(
      "this build of epiconv has no CUDA kernels: install the CUDA toolkit (12.8 or newer), put nvcc on PATH "
      "and "
      "build again");
}

}  // namespace

void evaluate_operation_cuda(const OperationProbe&, void*) { refuse(); }

struct CudaPass::State {};
CudaPass::CudaPass(const Pass&) { refuse(); }
CudaPass::~CudaPass() = default;
std::string CudaPass::kernel() const { refuse(); }
std::size_t CudaPass::workspace_bytes() const { refuse(); }
void CudaPass::launch(const PassPointers&, int, void*) const { refuse(); }

void finish_statistics(const GroupNormShape&, const TileMoments&, float*, PassPointers&, void*) { refuse(); }

std::string cuda_toolkit_version() { return ""; }
std::string cuda_driver_version() { return ""; }

}  // namespace epiconv
