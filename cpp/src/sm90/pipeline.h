// Who waits for whom: the barriers of a block, and where in its rings a role stands.
#pragma once

#include <cstdint>

#include "device/ptx/mbarrier.h"
#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

inline constexpr int kProducerThreads = 128;
inline constexpr int kConsumerThreads = 128;  // of each warpgroup
inline constexpr int kThreads = kProducerThreads + 2 * kConsumerThreads;
inline constexpr int kWarpsPerGroup = 4;

// Numbers of barriers, behind those of slots, weight stages and turns.
inline constexpr int kRawBarriers = 2 * kMaxSlots + 2 * kMaxWeightStages + 2;
inline constexpr int kBarriers = kRawBarriers + kLoaderWarps * kMaxRawStages;
static_assert(kBarriers * 8 <= kBarrierBytes);

// Shared memory of a block, by address.
struct SharedMemory {
  const HaloGeometry& g;
  std::uint32_t base;

  __device__ __forceinline__ std::uint32_t slot(int index) const { return base + index * g.slot_bytes; }
  __device__ __forceinline__ std::uint32_t stage(int index) const {
    return base + g.weights_offset() + index * g.stage_bytes;
  }
  __device__ __forceinline__ std::uint32_t barrier(int index) const {
    return base + g.barrier_offset + 8 * index;
  }
  // Filled by the input producer, emptied by the consumers.
  __device__ __forceinline__ std::uint32_t slot_full(int index) const { return barrier(index); }
  __device__ __forceinline__ std::uint32_t slot_empty(int index) const { return barrier(kMaxSlots + index); }
  // Filled by the weight producer, emptied by the consumer whose filters they are.
  __device__ __forceinline__ std::uint32_t stage_full(int index) const {
    return barrier(2 * kMaxSlots + index);
  }
  __device__ __forceinline__ std::uint32_t stage_empty(int index) const {
    return barrier(2 * kMaxSlots + kMaxWeightStages + index);
  }
  // A consumer's turn to use the tensor cores; the other one gives it.
  __device__ __forceinline__ std::uint32_t turn(int consumer) const {
    return barrier(2 * kMaxSlots + 2 * kMaxWeightStages + consumer);
  }

  // Filled by the copy engine for the loader warp that turns the rows, which asks for more when it has.
  __device__ __forceinline__ std::uint32_t raw_full(int warp, int stage) const {
    return barrier(kRawBarriers + warp * kMaxRawStages + stage);
  }

  // By one thread.
  __device__ void init_barriers(InputLoad load) const {
    for (int i = 0; i < kMaxSlots; ++i) {
      ptx::mbarrier_init(slot_full(i), load == InputLoad::kBoxes ? 1 : kLoaderWarps);
      ptx::mbarrier_init(slot_empty(i), g.sharers * kWarpsPerGroup);
    }
    for (int i = 0; i < kMaxWeightStages; ++i) {
      ptx::mbarrier_init(stage_full(i), 1);
      ptx::mbarrier_init(stage_empty(i), kWarpsPerGroup);
    }
    for (int i = 0; i < 2; ++i) ptx::mbarrier_init(turn(i), kWarpsPerGroup);
    for (int i = kRawBarriers; i < kBarriers; ++i) ptx::mbarrier_init(barrier(i), 1);
    ptx::mbarrier_init_fence();
  }
};

// A place in a ring, and how often the ring has been gone round.
class RingPlace {
 public:
  __device__ __forceinline__ explicit RingPlace(int size) : size_(size) {}

  __device__ __forceinline__ int index() const { return index_; }
  __device__ __forceinline__ bool is_first() const { return index_ == 0 && round_ == 0; }
  // Parity of the phase in which the place is full, and of the one in which it is empty again.
  __device__ __forceinline__ std::uint32_t full_parity() const { return round_ & 1; }
  __device__ __forceinline__ std::uint32_t empty_parity() const { return (round_ & 1) ^ 1; }
  __device__ __forceinline__ void next() {
    if (++index_ < size_) return;
    index_ = 0;
    ++round_;
  }
  // In the ring's first round.
  __device__ __forceinline__ void restart(int place) {
    index_ = place;
    round_ = 0;
  }
  __device__ __forceinline__ void advance(int places) {
    index_ += places;
    while (index_ >= size_) {
      index_ -= size_;
      ++round_;
    }
  }

 private:
  int size_;
  int index_ = 0;
  std::uint32_t round_ = 0;
};

// The warpgroups that compute visit number i of the block: both, or the one whose turn it is.
__device__ __forceinline__ bool computes(const HaloGeometry& g, int consumer, int i) {
  return g.sharers == 2 || (i & 1) == consumer;
}

// Which of the shares of the tile of visit number i a consumer that computes it has. Row phases of the same
// filters have more taps or fewer, and so consumers have them in turns.
__device__ __forceinline__ int share_of(const HaloGeometry& g, int consumer, int i) {
  if (g.sharers == 1) return 0;
  return g.phases_h % 2 == 0 ? consumer ^ (i & 1) : consumer;
}

}  // namespace epiconv::sm90
