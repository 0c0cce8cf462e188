// Rows of a box that the tile before has loaded already: copied within shared memory, which takes a fraction
// of the time of loads. They are half of a box of 3 x 3 taps.
#pragma once

#include "device/ptx/fences.h"
#include "sm90/pipeline.h"
#include "sm90/unit_walk.h"

namespace epiconv::sm90 {

inline constexpr int kLoaderThreads = 32 * kLoaderWarps;

__device__ __forceinline__ void loader_barrier() { ptx::named_barrier<1, kLoaderThreads>(); }

// By all loading threads. A thread copies kBatch times 16 bytes at a time.
template <int kBatch, bool kGeneral>
class RowKeeper {
 public:
  __device__ __forceinline__ RowKeeper(const SharedMemory& shared, std::uint8_t* memory, int thread)
      : shared_(shared), memory_(memory), thread_(thread) {}

  // When the slot `place` is empty, before anything is written to it.
  __device__ __forceinline__ void begin(const KeptRows& kept, const RingPlace& place) const {
    // All threads have filled the slot before: rows of that one may be kept, and it may keep rows of this
    // one.
    if (!place.is_first()) {
      const bool wraps = place.index() == 0;
      const int last = (wraps ? shared_.g.num_slots : place.index()) - 1;
      ptx::mbarrier_wait(shared_.slot_full(last), place.full_parity() ^ (wraps ? 1 : 0), "slot before", last);
    }
    if (kept.count == 0 || !is_within(place)) return;
    copy(kept, place);
    loader_barrier();  // what is kept is overwritten next
  }
  // When the box's other rows are there: one consumer has begun its epilogue when a slot becomes empty, and
  // has less of the shared memory's port the more is copied then.
  __device__ __forceinline__ void end(const KeptRows& kept, const RingPlace& place) const {
    if (kept.count > 0 && !is_within(place)) copy(kept, place);
  }

 private:
  __device__ __forceinline__ int before(const RingPlace& place) const {
    return KeptRows::place_before(shared_.g, place.index());
  }
  __device__ __forceinline__ bool is_within(const RingPlace& place) const {
    return before(place) == place.index();
  }

  __device__ __forceinline__ void copy(const KeptRows& kept, const RingPlace& place) const {
    const HaloGeometry& g = shared_.g;
    const int row = static_cast<int>(g.pitch.divisor) * g.row_bytes;
    if constexpr (!kGeneral) {
      copy_rows(memory_ + before(place) * g.slot_bytes + kept.moved * row,
                memory_ + place.index() * g.slot_bytes, kept.count * row);
      return;
    }
    const int moved = (kept.moved >> g.joint_shift) * row;
    for (int plane = 0; plane < g.joint_rows; ++plane) {
      const int begin = plane * g.plane_rows * row;
      copy_rows(memory_ + before(place) * g.slot_bytes + begin + moved,
                memory_ + place.index() * g.slot_bytes + begin, kept.count_of(g, plane) * row);
    }
  }

  __device__ __forceinline__ void copy_rows(const std::uint8_t* from_begin, std::uint8_t* to_begin,
                                            int bytes) const {
    const auto* from = reinterpret_cast<const uint4*>(from_begin) + thread_;
    auto* to = reinterpret_cast<uint4*>(to_begin) + thread_;
    int left = bytes / 16 - thread_;
    const auto copy_batch = [&](const auto& exists) {
      uint4 batch[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (exists(j)) batch[j] = from[j * kLoaderThreads];
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (exists(j)) to[j * kLoaderThreads] = batch[j];
      }
      from += kBatch * kLoaderThreads;
      to += kBatch * kLoaderThreads;
      left -= kBatch * kLoaderThreads;
    };
#pragma unroll 1
    while (left > (kBatch - 1) * kLoaderThreads) copy_batch([](int) { return true; });
    copy_batch([&](int j) { return left > j * kLoaderThreads; });
  }

  const SharedMemory shared_;
  std::uint8_t* const memory_;
  const int thread_;
};

}  // namespace epiconv::sm90
