// A consumer warpgroup: multiplies 64 filters by the 256 pixels of a tile, tap by tap, and stores the tile
// while the other warpgroup has the tensor cores.
#pragma once

#include "device/ptx/fences.h"
#include "sm90/math.h"
#include "sm90/pipeline.h"
#include "sm90/store.h"

namespace epiconv::sm90 {

template <typename Math, typename Evaluator>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ConvParameters& p, const SharedMemory& shared,
                                      std::uint8_t* memory, int consumer)
      : p_(p),
        g_(p.geometry),
        shared_(shared),
        consumer_(consumer),
        warp_(__shfl_sync(0xFFFFFFFF, threadIdx.x / 32 % kWarpsPerGroup, 0)),
        memory_(memory),
        slot_(p.geometry.num_slots),
        stage_(p.geometry.num_stages) {}

  __device__ __forceinline__ void run() {
    const TileRange range = TileRange::of(g_);
    const int thread = threadIdx.x % kConsumerThreads;
    float accumulators[kAccumulators];
    std::uint32_t turns = 0;
    if (thread == 0) tile_memory().forget();
    sync();
    Tile tile = Tile::of(g_, range.first);
    for (int i = 0; range.first + i < range.last; ++i, tile.advance(g_)) {
      if (!computes(g_, consumer_, i)) {
        slot_.advance(g_.units());
        if (!g_.weights_stay) stage_.advance(g_.taps());
        continue;
      }
      const int filter_group = tile.filter_tile * g_.sharers + (g_.sharers == 2 ? consumer_ : 0);
      const std::int32_t group = filter_group * kGroupFilters;
      const std::int32_t pattern = offset_pattern(g_, tile);
      const TileMemory memory = tile_memory();
      const TileTables tables{g_, tile, tile.image(g_), memory.offsets, memory.of_filters};
      const bool fills = !memory.holds(pattern, group);
      if (fills) {
        const bool holds_group = memory.holds_group(group);
        sync();  // with the warps that still store the last tile
        memory.fill(p_.epilogue, tables, pattern, group, holds_group, thread);
      }
      multiply(tile, filter_group, turns, accumulators);
      if (fills) sync();
      TileStore<Evaluator>(p_.epilogue, tables, group, warp_ * kWarpFilters, staging()).run(accumulators);
    }
  }

 private:
  __device__ __forceinline__ TileMemory tile_memory() const {
    return TileMemory::at(memory_ + g_.tile_memory_offset + consumer_ * kTileMemoryBytes);
  }
  __device__ __forceinline__ std::uint8_t* staging() const {
    return memory_ + g_.staging_offset + (consumer_ * kWarpsPerGroup + warp_) * kWarpStagingBytes;
  }

  // The warps of this warpgroup.
  __device__ __forceinline__ void sync() const {
    if (consumer_ == 0) {
      ptx::named_barrier<2, kConsumerThreads>();
    } else {
      ptx::named_barrier<3, kConsumerThreads>();
    }
  }

  __device__ __forceinline__ void wait_for_turn(std::uint32_t turns) const {
    ptx::mbarrier_wait(shared_.turn(consumer_), (turns & 1) ^ (consumer_ == 0 ? 1 : 0), "turn", consumer_);
  }

  // Hands back what products that are done have read; -1 is nothing.
  __device__ __forceinline__ void release(int stage, int slot) const {
    if (threadIdx.x % 32 != 0) return;
    if (stage >= 0) ptx::mbarrier_arrive(shared_.stage_empty(stage));
    if (slot >= 0) ptx::mbarrier_arrive(shared_.slot_empty(slot));
  }

  // The taps of a unit. `stay` is the stage of the first where weights stay; `accumulate` is whether products
  // add to what there is. While a tap's products run, the next tap is made ready; those before are released.
  template <int kSteps>
  __device__ __forceinline__ void multiply_taps(const Tile& tile, const Unit& unit, int stay, bool accumulate,
                                                int& pending_stage, int& pending_slot,
                                                float (&accumulators)[kAccumulators]) {
    constexpr int kStep = kStepBytes / 16;  // of a descriptor
    const int rows = unit.rows(g_), columns = unit.columns(g_);
    const std::uint64_t stages = ptx::wgmma_descriptor(shared_.stage(0), g_.row_bytes);
    const int row_step = g_.row_bytes / 16, stage_step = g_.stage_bytes / 16;
    std::uint64_t pixel_row =
        ptx::wgmma_descriptor(shared_.slot(slot_.index()), g_.row_bytes) + tap_row(g_, tile, 0, 0) * row_step;
    for (int r = 0; r < rows; ++r) {
      std::uint64_t pixels = pixel_row;
      for (int s = 0; s < columns; ++s) {
        const int stage = g_.weights_stay ? stay : stage_.index();
        ptx::mbarrier_wait(shared_.stage_full(stage), g_.weights_stay ? 0 : stage_.full_parity(),
                           "full stage", stage);
        const std::uint64_t weights = stages + stage * stage_step;
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          Math::multiply(accumulators, weights + k * kStep, pixels + k * kStep, k > 0 || accumulate);
        }
        ptx::wgmma_commit();
        accumulate = true;
        pixels += g_.dilation_w * row_step;
        ptx::wgmma_wait<1>();
        release(pending_stage, pending_slot);
        pending_slot = -1;
        pending_stage = g_.weights_stay ? -1 : stage;
        ++stay;
        stage_.next();
      }
      pixel_row += g_.dilation_h * static_cast<int>(g_.pitch.divisor) * row_step;
    }
  }

  __device__ __forceinline__ void multiply(const Tile& tile, int filter_group, std::uint32_t& turns,
                                           float (&accumulators)[kAccumulators]) {
    int pending_stage = -1, pending_slot = -1;
    int stay = filter_group * g_.taps();
    const int units = g_.units();
    Unit unit = Unit::first();
    for (int u = 0; u < units; ++u) {
      const int taps = unit.rows(g_) * unit.columns(g_);
      if (g_.sharers == 2 && consumer_ == 1 && !g_.weights_stay) stage_.advance(taps);
      if (g_.sharers == 2 || u == 0) wait_for_turn(turns++);
      ptx::mbarrier_wait(shared_.slot_full(slot_.index()), slot_.full_parity(), "full slot", slot_.index());
      const auto run = [&]<int kSteps>() {
        multiply_taps<kSteps>(tile, unit, stay, u > 0, pending_stage, pending_slot, accumulators);
      };
      switch (unit.steps(g_)) {
        case 1:
          run.template operator()<1>();
          break;
        case 2:
          run.template operator()<2>();
          break;
        case 3:
          run.template operator()<3>();
          break;
        default:
          run.template operator()<4>();
      }
      stay += taps;
      pending_slot = slot_.index();
      slot_.next();
      if (g_.sharers == 2 && consumer_ == 0 && !g_.weights_stay) stage_.advance(taps);
      if (g_.sharers == 2 || u + 1 == units) {
        if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_.turn(1 - consumer_));
      }
      if (g_.sharers == 2) {  // the other consumer's products run meanwhile
        ptx::wgmma_wait<0>();
        release(pending_stage, pending_slot);
        pending_stage = pending_slot = -1;
      }
      unit.advance(g_);
    }
    ptx::wgmma_wait<0>();
    release(pending_stage, pending_slot);
  }

  const ConvParameters& p_;
  const HaloGeometry& g_;
  const SharedMemory shared_;
  const int consumer_;
  const int warp_;
  std::uint8_t* const memory_;
  RingPlace slot_;
  RingPlace stage_;
};

}  // namespace epiconv::sm90
