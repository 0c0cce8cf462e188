#include "device/current_device.h"
#include "sm90/halo_conv.h"
#include "sm90/statistics.h"

namespace epiconv::sm90 {
namespace {

// A warp for each group of each image.
__global__ void __launch_bounds__(32)
    merge_all(const __grid_constant__ NormParameters norm, std::int32_t filters) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const auto image = static_cast<std::int32_t>(blockIdx.x / norm.groups);
  const auto group = static_cast<std::int32_t>(blockIdx.x % norm.groups);
  GroupMerge(norm, image, group, 1, threadIdx.x, 32).run(filters);
#endif
}

}  // namespace

cudaError_t merge_statistics(const NormParameters& norm, std::int32_t images, std::int32_t filters,
                             cudaStream_t stream) {
  NormParameters parameters = norm;
  void* arguments[] = {&parameters, &filters};
  const auto blocks = static_cast<unsigned>(images) * static_cast<unsigned>(norm.groups);
  return cudaLaunchKernel(reinterpret_cast<const void*>(&merge_all), dim3(blocks), dim3(32), arguments, 0,
                          stream);
}

}  // namespace epiconv::sm90
