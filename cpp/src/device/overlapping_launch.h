// Host side: launches a kernel that calls ptx::wait_for_earlier_kernels, for compute capability 9.0 and
// newer; in clusters of so many blocks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace epiconv {

inline cudaError_t launch_overlapping(const void* function, unsigned blocks, unsigned threads,
                                      void** arguments, std::size_t shared_bytes, void* stream,
                                      unsigned cluster = 1) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelExC(&config, function, arguments);
}

}  // namespace epiconv
