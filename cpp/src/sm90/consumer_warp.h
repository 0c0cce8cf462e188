// A warp of a consumer warpgroup, and what it shares with the other three.
#pragma once

#include "device/ptx/fences.h"
#include "device/ptx/keep_here.h"
#include "sm90/pipeline.h"

namespace epiconv::sm90 {

struct ConsumerWarp {
  const HaloGeometry& g;
  std::uint8_t* memory;  // of the block
  int consumer, index;

  // Worked out where it is used: the compiler would keep it in registers throughout.
  __device__ __forceinline__ std::uint8_t* group_staging() const {
    int first = consumer;
    ptx::keep_here(first);
    return memory + g.staging_offset + first * kWarpsPerGroup * g.warp_staging_bytes;
  }
  __device__ __forceinline__ std::uint8_t* staging() const {
    return group_staging() + index * g.warp_staging_bytes;
  }

  __device__ __forceinline__ void sync_group() const {
    if (consumer == 0) {
      ptx::named_barrier<2, kConsumerThreads>();
    } else {
      ptx::named_barrier<3, kConsumerThreads>();
    }
  }

  // Whether any thread of the group says so; waits for all of them.
  __device__ __forceinline__ bool any_of_group(bool says) const {
    return consumer == 0 ? ptx::named_barrier_any<2, kConsumerThreads>(says)
                         : ptx::named_barrier_any<3, kConsumerThreads>(says);
  }
};

}  // namespace epiconv::sm90
