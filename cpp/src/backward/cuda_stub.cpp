// What the library offers of the backward pass on CUDA when it is built without: a refusal.
#include "backward/cuda_backward.h"
#include "epiconv/error.h"

namespace epiconv {

struct CudaBackward::State {
  std::string kernel, why_not_compiled;
};
CudaBackward::CudaBackward(const BackwardPass&, int) {
  throw NotSupported(
      "this build of epiconv has no CUDA kernels: install the CUDA toolkit (12.8 or newer), put nvcc on PATH "
      "and build again");
}
CudaBackward::~CudaBackward() = default;
const std::string& CudaBackward::kernel() const { return state_->kernel; }
const std::string& CudaBackward::why_not_compiled() const { return state_->why_not_compiled; }
std::size_t CudaBackward::workspace_bytes() const { return 0; }
void CudaBackward::launch(const BackwardAddresses&, void*, int, void*) const {}

}  // namespace epiconv
