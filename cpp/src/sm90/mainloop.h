// A consumer warpgroup: multiplies 64 filters by the 256 pixels of a tile, tap by tap, and stores the tile
// while the other warpgroup has the tensor cores.
#pragma once

#include "device/ptx/fences.h"
#include "sm90/math.h"
#include "sm90/pipeline.h"
#include "sm90/store.h"

namespace epiconv::sm90 {

// How many taps before its end a turn is given away: the other consumer needs this long until its first
// products run.
inline constexpr int kHandOverTaps = 2;

template <typename Math, typename Evaluator>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ConvParameters& p, const SharedMemory& shared,
                                      std::uint8_t* memory, int consumer)
      : p_(p),
        g_(p.geometry),
        shared_(shared),
        consumer_(consumer),
        warp_{consumer, __shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / 32 % kWarpsPerGroup, 0),
              memory + p.geometry.staging_offset + consumer * kWarpsPerGroup * p.geometry.warp_staging_bytes,
              p.geometry.warp_staging_bytes},
        memory_(memory),
        slot_(p.geometry.num_slots),
        stage_(p.geometry.num_stages) {}

  __device__ __forceinline__ void run() {
    const TileRange range = TileRange::of(g_);
    float accumulators[kAccumulators];
    std::uint32_t turns = 0;
    Tile tile = Tile::of(g_, range.first);
    for (int i = 0; range.first + i < range.last; ++i, tile.advance(g_)) {
      if (!computes(g_, consumer_, i)) {
        slot_.advance(g_.units);
        if (!g_.weights_stay) stage_.advance(g_.taps);
        continue;
      }
      const int filter_group = tile.filter_tile * g_.sharers + (g_.sharers == 2 ? consumer_ : 0);
      const std::int32_t group = filter_group * kGroupFilters;
      const std::int32_t pattern = offset_pattern(g_, tile);
      const TileMemory memory = tile_memory();
      const TileTables tables{g_, tile, tile.image(g_), memory.offsets, memory.of_filters, memory.pairs};
      // The vote tells the compiler that the answer is one for the whole warp, as wgmma depends on.
      const bool fills =
          __any_sync(0xFFFFFFFF, pattern < 0 || pattern != held_pattern_ || group != held_group_);
      if (fills) fill(memory, tables, pattern, group);
      multiply(tile, filter_group, turns, accumulators);
      if (fills) warp_.sync_group();
      TileStore<Evaluator>(p_, tables, group, warp_).run(accumulators);
    }
    ptx::bulk_store_wait_read();  // shared memory lives as long as the block
  }

 private:
  __device__ __forceinline__ TileMemory tile_memory() const {
    return TileMemory::at(memory_ + g_.tile_memory_offset + consumer_ * kTileMemoryBytes);
  }
  __device__ __forceinline__ void fill(const TileMemory& memory, const TileTables& tables,
                                       std::int32_t pattern, std::int32_t group) {
    const int thread = threadIdx.x % kConsumerThreads;
    warp_.sync_group();  // with the warps that still store the last tile
    memory.fill_offsets(p_.epilogue, tables, thread);
    memory.fill_pairs(p_.epilogue, tables, thread);
    if (group != held_group_) memory.fill_of_filters(p_.epilogue, g_, group, thread);
    held_pattern_ = pattern;
    held_group_ = group;
  }
  // A tile's products, while they are computed.
  struct Progress {
    int stay;                                   // stage of the next tap where weights stay
    int turn_taps;                              // of the turn
    int taps_left;                              // in the turn
    bool accumulate;                            // products add to what there is
    int pending_stage = -1, pending_slot = -1;  // that the products under way read
  };

  // Hands back what products that are done have read.
  __device__ __forceinline__ void release(Progress& progress) const {
    if (threadIdx.x % 32 == 0) {
      if (progress.pending_stage >= 0) ptx::mbarrier_arrive(shared_.stage_empty(progress.pending_stage));
      if (progress.pending_slot >= 0) ptx::mbarrier_arrive(shared_.slot_empty(progress.pending_slot));
    }
    progress.pending_stage = progress.pending_slot = -1;
  }

  // The taps of a unit. While a tap's products run, the next tap is made ready; those before are released.
  template <int kSteps>
  __device__ __forceinline__ void multiply_taps(const Tile& tile, const Unit& unit, Progress& progress,
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
        const int stage = g_.weights_stay ? progress.stay : stage_.index();
        ptx::mbarrier_wait(shared_.stage_full(stage), g_.weights_stay ? 0 : stage_.full_parity(),
                           "full stage", stage);
        const std::uint64_t weights = stages + stage * stage_step;
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          Math::multiply(accumulators, weights + k * kStep, pixels + k * kStep, k > 0 || progress.accumulate);
        }
        ptx::wgmma_commit();
        progress.accumulate = true;
        if (--progress.taps_left == min(kHandOverTaps, progress.turn_taps) - 1) give_turn();
        pixels += g_.dilation_w * row_step;
        ptx::wgmma_wait<1>();
        release(progress);
        progress.pending_stage = g_.weights_stay ? -1 : stage;
        ++progress.stay;
        stage_.next();
      }
      pixel_row += g_.dilation_h * static_cast<int>(g_.pitch.divisor) * row_step;
    }
  }

  __device__ __forceinline__ void wait_for_turn(std::uint32_t& turns) const {
    ptx::mbarrier_wait(shared_.turn(consumer_), (turns & 1) ^ (consumer_ == 0 ? 1 : 0), "turn", consumer_);
    ++turns;
  }
  __device__ __forceinline__ void give_turn() const {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_.turn(1 - consumer_));
  }
  // The stages of the other consumer's turn, of so many taps, are none of this one's.
  __device__ __forceinline__ void skip_turn(int taps) {
    if (g_.sharers == 2 && !g_.weights_stay) stage_.advance(taps);
  }

  __device__ __forceinline__ void multiply(const Tile& tile, int filter_group, std::uint32_t& turns,
                                           float (&accumulators)[kAccumulators]) {
    Progress progress{filter_group * g_.taps, 0, 0, false};
    Unit unit = Unit::first();
    for (int u = 0;; unit.advance(g_)) {
      if (u == 0 || !g_.turn_is_tile) {
        progress.turn_taps = progress.taps_left = g_.turn_is_tile ? g_.taps : unit.taps(g_);
        if (consumer_ == 1) skip_turn(progress.turn_taps);
        wait_for_turn(turns);
      }
      ptx::mbarrier_wait(shared_.slot_full(slot_.index()), slot_.full_parity(), "full slot", slot_.index());
      const int steps = unit.steps(g_);
      if (steps == 4) {
        multiply_taps<4>(tile, unit, progress, accumulators);
      } else if (steps == 3) {
        multiply_taps<3>(tile, unit, progress, accumulators);
      } else if (steps == 2) {
        multiply_taps<2>(tile, unit, progress, accumulators);
      } else {
        multiply_taps<1>(tile, unit, progress, accumulators);
      }
      progress.pending_slot = slot_.index();
      slot_.next();
      const bool is_last = ++u == g_.units;
      if (consumer_ == 0 && (is_last || !g_.turn_is_tile)) skip_turn(progress.turn_taps);
      if (is_last) break;
      if (!g_.turn_is_tile) {  // the other consumer's products run meanwhile
        ptx::wgmma_wait<0>();
        release(progress);
      }
    }
    ptx::wgmma_wait<0>();
    release(progress);
  }

  const ConvParameters& p_;
  const HaloGeometry& g_;
  const SharedMemory shared_;
  const int consumer_;
  const ConsumerWarp warp_;
  std::uint8_t* const memory_;
  RingPlace slot_;
  RingPlace stage_;
  // Of the last tile: whose offsets and operands of filters the tables hold.
  std::int32_t held_pattern_ = -1, held_group_ = -1;
};

}  // namespace epiconv::sm90
