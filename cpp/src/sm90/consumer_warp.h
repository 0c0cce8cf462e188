// A warp of a consumer warpgroup, and what it shares with the other three.
#pragma once

#include "device/ptx/fences.h"
#include "sm90/pipeline.h"

namespace epiconv::sm90 {

struct ConsumerWarp {
  int consumer, index;
  std::uint8_t* group_staging;  // of the warpgroup
  int staging_bytes;            // of a warp

  __device__ __forceinline__ std::uint8_t* staging() const { return group_staging + index * staging_bytes; }

  __device__ __forceinline__ void sync_group() const {
    if (consumer == 0) {
      ptx::named_barrier<2, kConsumerThreads>();
    } else {
      ptx::named_barrier<3, kConsumerThreads>();
    }
  }
};

}  // namespace epiconv::sm90
