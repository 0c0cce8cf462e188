// The ring of stages between the warp that lets the copy engine bring steps of gemm_k and the warpgroups that
// multiply them (im2col_conv.h): each has the rows of 128 bytes of a tile's positions, then those of its
// filters. A barrier says that a stage is full, another that all warps are done with it,
// also those of the cluster's other block.
#pragma once

#include "device/ptx/cluster.h"
#include "device/ptx/mbarrier.h"
#include "device/ptx/one_thread.h"
#include "sm80/im2col_geometry.h"
#include "sm80/mainloop.h"

namespace epiconv::sm80 {

class Im2colRing {
 public:
  __device__ __forceinline__ Im2colRing(const ConvParameters& p, std::uint8_t* shared, int team) : p_(p) {
    const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    const std::uint32_t first = team * stages();
    barriers_ = base + p.shared.barriers + 2 * first * kBarrierBytes;
    stages_ = base + p.shared.stages + first * p.geometry.im2col_bytes();
  }

  // By one thread, before any other uses it.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < stages(); ++i) {
      ptx::mbarrier_init(full_of(i), 1);
      ptx::mbarrier_init(empty_of(i), p_.geometry.im2col_cluster * (kThreads / kWarpThreads));
    }
    ptx::mbarrier_init_fence();
  }
  // The place of the next step.
  __device__ __forceinline__ std::uint32_t positions() const {
    return stages_ + stage_ * p_.geometry.im2col_bytes();
  }
  __device__ __forceinline__ std::uint32_t filters() const {
    return positions() + p_.geometry.im2col_position_bytes();
  }
  __device__ __forceinline__ std::uint32_t full() const { return full_of(stage_); }
  __device__ __forceinline__ void wait_full() const {
    ptx::mbarrier_wait(full(), parity_, "a step", static_cast<int>(stage_));
  }
  // For the one who fills it.
  __device__ __forceinline__ void wait_empty() const {
    ptx::mbarrier_wait(empty_of(stage_), parity_ ^ 1, "an empty stage", static_cast<int>(stage_));
  }
  __device__ __forceinline__ void next() {
    if (++stage_ < stages()) return;
    stage_ = 0;
    parity_ ^= 1;
  }
  // By all threads of a warp: it is done with the step before that of `full`.
  __device__ __forceinline__ void release_before(bool wanted) const {
    const std::uint32_t before = (stage_ == 0 ? stages() : stage_) - 1;
    const std::uint32_t lane = threadIdx.x % kWarpThreads;
    ptx::mbarrier_arrive_if(wanted && lane == 0, empty_of(before));
    // Each block of a cluster brings filters to all.
    if (p_.geometry.im2col_cluster > 1) {
      ptx::mbarrier_arrive_at_if(wanted && lane == 0, empty_of(before), ptx::block_of_cluster() ^ 1);
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t stages() const { return p_.geometry.im2col_stages; }
  __device__ __forceinline__ std::uint32_t full_of(std::uint32_t stage) const {
    return barriers_ + stage * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty_of(std::uint32_t stage) const {
    return full_of(stages() + stage);
  }

  const ConvParameters& p_;
  std::uint32_t barriers_, stages_;
  std::uint32_t stage_ = 0, parity_ = 0;
};

}  // namespace epiconv::sm80
