#include <cuda_runtime_api.h>

#include "epiconv/error.h"
#include "epiconv/operation_probe.h"
#include "operation_dispatch.h"

namespace epiconv {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) probe_operation(const __grid_constant__ OperationProbe probe) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= probe.count) return;
  const auto input = [&](int index) { return static_cast<const T*>(probe.inputs[index])[i]; };
  const auto result = [&](int index) { return static_cast<T*>(probe.results[index]) + i; };
  const ops::Inputs<T> x{input(0), input(1), input(2), static_cast<T>(probe.parameters[0]),
                         static_cast<T>(probe.parameters[1])};
  visit_operation(probe.op, [&]<typename Operation>() {
    const ops::Gradients<T> gradients = Operation::derivative(x);
    *result(0) = Operation::forward(x);
    *result(1) = gradients.a;
    *result(2) = gradients.b;
    *result(3) = gradients.c;
  });
}

}  // namespace

void evaluate_operation_cuda(const OperationProbe& probe, void* stream) {
  require(probe.op != Opcode::kGroupNorm, "group_norm is not computed value by value");
  require(probe.dtype == DType::kFloat32 || probe.dtype == DType::kFloat64,
          "an operation is evaluated in float32 or float64, not in ", dtype_name(probe.dtype));
  if (probe.count == 0) return;
  const void* kernel = probe.dtype == DType::kFloat32
                           ? reinterpret_cast<const void*>(&probe_operation<float>)
                           : reinterpret_cast<const void*>(&probe_operation<double>);
  OperationProbe copy = probe;
  void* arguments[] = {&copy};
  const auto blocks = static_cast<unsigned>((probe.count + kThreads - 1) / kThreads);
  const cudaError_t status =
      cudaLaunchKernel(kernel, dim3(blocks), dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(stream));
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError(concat("the launch of probe_operation for ", operation_info(probe.op).name, " over ",
                         probe.count, " values failed: ", cudaGetErrorName(status), ", ",
                         cudaGetErrorString(status)));
}

}  // namespace epiconv
