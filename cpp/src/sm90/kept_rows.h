// Rows of a box that the tile before has loaded already: copied within shared memory, which takes a fraction
// of the time of loads. They are half of a box of 3 x 3 taps.
#pragma once

#include "device/ptx/fences.h"
#include "sm90/pipeline.h"
#include "sm90/unit_walk.h"

namespace epiconv::sm90 {

inline constexpr int kLoaderThreads = 32 * kLoaderWarps;

__device__ __forceinline__ void loader_barrier() { ptx::named_barrier<1, kLoaderThreads>(); }

// By all loading threads, when the slot `place` is empty and before anything else is written to it. A thread
// copies kBatch times 16 bytes at a time.
template <int kBatch>
__device__ __forceinline__ void keep_rows(const SharedMemory& shared, const KeptRows& kept,
                                          const RingPlace& place, std::uint8_t* memory, int thread) {
  if (kept.count == 0) return;
  const HaloGeometry& g = shared.g;
  const int before = KeptRows::place_before(g, place.index());
  const bool is_within = before == place.index();
  if (!is_within) {  // the other threads, too, have filled the slot that rows are kept from
    ptx::mbarrier_wait(shared.slot_full(before),
                       before < place.index() ? place.full_parity() : place.empty_parity(), "kept slot",
                       before);
  }
  const int row = static_cast<int>(g.pitch.divisor) * g.row_bytes;
  const auto* from =
      reinterpret_cast<const uint4*>(memory + before * g.slot_bytes + kept.moved * row) + thread;
  auto* to = reinterpret_cast<uint4*>(memory + place.index() * g.slot_bytes) + thread;
  int left = kept.count * row / 16 - thread;
  const auto copy = [&](const auto& exists) {
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
  while (left > (kBatch - 1) * kLoaderThreads) copy([](int) { return true; });
  copy([&](int j) { return left > j * kLoaderThreads; });
  if (is_within) loader_barrier();  // what is kept is overwritten next
}

}  // namespace epiconv::sm90
