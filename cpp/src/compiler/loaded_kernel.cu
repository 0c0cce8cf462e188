#include <cuda_runtime_api.h>

#include "compiler/loaded_kernel.h"
#include "epiconv/error.h"

namespace epiconv {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError(concat(what, " of a kernel compiled for its plan failed: ", cudaGetErrorName(status), ", ",
                         cudaGetErrorString(status)));
}

// Loading is allowed while a stream is captured, also by other threads.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }

 private:
  void exchange() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

const void* LoadedKernel::function() const {
  std::call_once(is_loaded_, [&] {
    const RelaxedCapture relaxed;
    cudaLibrary_t library = nullptr;
    cudaKernel_t kernel = nullptr;
    check(cudaLibraryLoadData(&library, machine_code_.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
          "loading");
    check(cudaLibraryGetKernel(&kernel, library, name_), "finding the entry");
    function_ = reinterpret_cast<const void*>(kernel);
  });
  return function_;
}

}  // namespace epiconv
