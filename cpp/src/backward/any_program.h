// The kernels of kernels.h, for one type of intermediates.
#pragma once

#include "backward/device_memory.h"
#include "backward/kernels.h"
#include "backward/sums.h"

namespace epiconv::backward {

// As many share a multiprocessor as shared memory allows for most programs; told, or registers are spilled
// for more of them.
inline constexpr int kSweepBlocks = 2;

template <typename T>
__global__ void __launch_bounds__(kMostThreads, kSweepBlocks)
    sweep_any(const __grid_constant__ Sweep sweep, const __grid_constant__ Actions actions,
              const __grid_constant__ SweepLaunch launch) {
  run_tiles<T, InMemory<T>>(sweep, AnyProgram{actions}, launch);
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads) set_norm_tables(const __grid_constant__ NormLaunch norm) {
  const std::int64_t entry = static_cast<std::int64_t>(blockIdx.x) * kMostThreads + threadIdx.x;
  if (entry < norm.samples * norm.channels) set_tables<T, DeviceMemory>(norm, entry);
}

struct Nothing {};

template <typename T>
__global__ void __launch_bounds__(kMostThreads) set_norm_lines(const __grid_constant__ NormLaunch norm) {
  __shared__ double shared[2 * kMostThreads];
  BlockCrew<Nothing> crew;
  set_lines<T, DeviceMemory>(norm, blockIdx.x, shared, crew);
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads) add_norm_affine(const __grid_constant__ NormLaunch norm) {
  const std::int64_t channel = static_cast<std::int64_t>(blockIdx.x) * kMostThreads + threadIdx.x;
  if (channel < norm.channels) add_affine<T>(norm, channel);
}

template <typename T>
Kernels kernels_of() {
  return {reinterpret_cast<const void*>(&sweep_any<T>), reinterpret_cast<const void*>(&set_norm_tables<T>),
          reinterpret_cast<const void*>(&set_norm_lines<T>),
          reinterpret_cast<const void*>(&add_norm_affine<T>)};
}

}  // namespace epiconv::backward
