// The products of a tile by warpgroups, for kernels compiled for one plan on compute capability 9.0.
//
// Rows of the products' matrix are positions, of which each warpgroup has 64 at a time; columns are the
// tile's filters. A thread brings its part of the rows from the box into registers, as mma.sync has them, so
// that a tap, a stride or a dilation is an address; weights are read from shared memory by the tensor cores.
// One thread lets the copy engine bring them, a step at a time: barriers say that a stage is full, and that
// all warps are done with it.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "device/ptx/mbarrier.h"
#include "device/ptx/one_thread.h"
#include "sm80/mainloop.h"
#include "sm80/warpgroup_sums.h"

namespace epiconv::sm80 {

inline constexpr int kWarpgroupThreads = kThreads / 2;

// The first of the positions that a warp has of each row tile.
__device__ __forceinline__ int first_position(int row_tiles, int thread) {
  const int warpgroup = thread / kWarpgroupThreads, warp = thread % kWarpgroupThreads / kWarpThreads;
  return warpgroup * row_tiles * kProductRows + warp * 16;
}

// The pipeline with a ring of stages that the copy engine fills.
struct WarpgroupPipeline : Pipeline {
  std::uint32_t slot = 0, parity = 0;  // of the next step

  __device__ __forceinline__ WarpgroupPipeline(const ConvParameters& parameters, const ConvLaunch& the_launch,
                                               const TileMemory& the_memory, int the_thread)
      : Pipeline(parameters, the_launch, the_memory, the_thread) {
    if (thread != 0) return;
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(full(i), 1);
      ptx::mbarrier_init(empty(i), kThreads / kWarpThreads);
    }
    ptx::mbarrier_init_fence();
  }
  __device__ __forceinline__ void begin_copies() {
    write_second_table();
    const Steps steps = steps_of(weights_phase_);
    ahead_ = {weights_phase_, steps.first_unit};
    if (p.geometry.splits.divisor > 1) {
      std::int32_t skipped;
      find_unit(phase(weights_phase_), steps.end - 1, last_unit_, skipped);
    }
    for (int i = 0; i < kStages; ++i) fill(i);
  }
  // The unit whose box comes next: as many ahead of the one that is multiplied as there are other boxes.
  __device__ __forceinline__ bool has_ahead() const { return has_ahead_; }
  __device__ __forceinline__ const UnitOfPhase& ahead() const { return ahead_; }
  __device__ __forceinline__ void advance_ahead() {
    if (!has_ahead_) return;
    if (p.geometry.is_resident) {
      has_ahead_ = false;
    } else if (p.geometry.splits.divisor > 1) {
      has_ahead_ = ahead_.number++ < last_unit_;
    } else {
      has_ahead_ = advance(ahead_);
    }
  }
  // Where its box goes: where that of the unit before the current one was.
  __device__ __forceinline__ std::int32_t box_ahead() const {
    return box == 0 ? p.geometry.boxes - 1 : box - 1;
  }
  __device__ __forceinline__ std::uint32_t stage_address() const { return stage_of(slot); }
  // Until the next step's weights are there.
  __device__ __forceinline__ void wait() const { ptx::mbarrier_wait(full(slot), parity, "weights", slot); }
  __device__ __forceinline__ void next_stage() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
  // By all threads: the warp is done with the step before the next one.
  __device__ __forceinline__ void release(bool has_step) const {
    __syncwarp();  // all lanes have read where its pieces lie
    ptx::mbarrier_arrive_if(has_step && thread % kWarpThreads == 0, empty(before()));
  }
  // When all warps are: brings what comes into its stage next.
  __device__ __forceinline__ void refill(bool has_step) {
    const bool is_wanted = has_step && weights_left_ > 0;
    ptx::bulk_copy_when_if(is_wanted && thread == 0, empty(before()), slot == 0 ? parity ^ 1 : parity,
                           stage_of(before()), weights_, p.geometry.step_bytes(), full(before()));
    if (is_wanted) advance_weights();
  }

 private:
  __device__ __forceinline__ std::uint32_t before() const { return slot == 0 ? kStages - 1 : slot - 1; }
  __device__ __forceinline__ std::uint32_t full(std::uint32_t number) const {
    return memory.barriers() + number * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty(std::uint32_t number) const {
    return full(kStages + number);
  }
  __device__ __forceinline__ std::uint32_t stage_of(std::uint32_t number) const {
    return memory.stages() + number * p.geometry.stage_bytes();
  }
  __device__ __forceinline__ void fill(std::uint32_t number) {
    if (weights_left_ <= 0) return;
    const std::uint32_t bytes = p.geometry.step_bytes();
    if (thread == 0) {
      ptx::mbarrier_arrive_expect(full(number), bytes);
      ptx::bulk_copy(stage_of(number), weights_, bytes, full(number));
    }
    advance_weights();
  }

  UnitOfPhase ahead_{};
  bool has_ahead_ = true;
  std::int32_t last_unit_ = 0;  // of a split
};

// Begins rounds of the box of the unit that is ahead, from `round` on.
template <typename Math>
class BoxesAhead {
 public:
  // Rounds that wait in registers while a step is multiplied.
  static constexpr int kLoads = Math::kPieceElements == 4 ? 4 : 2;

  __device__ __forceinline__ explicit BoxesAhead(const WarpgroupPipeline& pipeline)
      : at_(pipeline), loader_(pipeline.p, pipeline.launch, pipeline.thread) {}

  __device__ __forceinline__ std::int32_t rounds() const { return loader_.rounds(); }
  __device__ __forceinline__ bool are_copied() const { return at_.p.input.is_copied; }
  // To box number `box`; they end behind the next group of copies.
  __device__ __forceinline__ void copy(std::int32_t round, std::int32_t count, std::int32_t box) {
    const std::int64_t* const table = at_.table(box);
    const std::int32_t block = at_.block(at_.ahead().number);
#pragma unroll 1
    for (; count > 0; --count, ++round) {
      if (BoxLoader<Math>::has_places(at_.p)) {
        loader_.copy(table, block, round, at_.box_address(box));
      } else {
        loader_.load(table, block, round, at_.box_address(box), pieces_[0]);
      }
    }
  }
  // The same of boxes that are not copied; the last rounds end with `store`.
  __device__ __forceinline__ void load(std::int32_t round, std::int32_t count, std::int32_t box) {
    const std::int64_t* const table = at_.table(box);
    const std::int32_t block = at_.block(at_.ahead().number);
#pragma unroll 1
    for (; count > kLoads; count -= kLoads, round += kLoads) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        loader_.load(table, block, round + i, at_.box_address(box), pieces_[i]);
      store();
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      pieces_[i].clear();
      if (i < count) loader_.load(table, block, round + i, at_.box_address(box), pieces_[i]);
    }
  }
  __device__ __forceinline__ void store() const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) loader_.store(pieces_[i]);
  }

 private:
  const WarpgroupPipeline& at_;
  const BoxLoader<Math> loader_;
  typename BoxLoader<Math>::Piece pieces_[kLoads];
};

// By all threads: the boxes of the first units, all but the last that there is place for; a group of copies
// for each.
template <typename Math>
__device__ __forceinline__ void load_first_box(WarpgroupPipeline& at) {
  BoxesAhead<Math> boxes(at);
  const std::int32_t count = at.p.geometry.is_resident ? 1 : at.p.geometry.boxes - 1;
#pragma unroll 1
  for (std::int32_t box = 0; box < count; ++box) {
    if (at.has_ahead()) {
      if (boxes.are_copied()) {
        boxes.copy(0, boxes.rounds(), box);
      } else {
        boxes.load(0, boxes.rounds(), box);
        boxes.store();
      }
    }
    ptx::cp_async_commit();
    if (box + 1 < count) at.advance_ahead();
  }
}

// The products of a phase.
template <typename Math, typename Sums>
class WarpgroupMainloop {
 public:
  __device__ __forceinline__ explicit WarpgroupMainloop(WarpgroupPipeline& pipeline)
      : at_(pipeline), boxes_(pipeline) {
    const LanePlace row = LanePlace::of_rows(at_.thread);
    const int position = first_position(Sums::kRowTiles, at_.thread) + row.line;
#pragma unroll
    for (int i = 0; i < Sums::kRowTiles; ++i) {
      places_[i] = at_.memory.places()[position + kProductRows * i];
    }
    step_places_ = at_.p.geometry.tile_filters * kStepBytes + row.piece * static_cast<int>(sizeof(uint4));
  }

  // Adds the products of the pipeline's next phase, or of a split of it.
  __device__ __forceinline__ void run(std::int32_t phase, Sums& sums) {
    is_first_ = true;
    const std::int32_t rounds = boxes_.rounds(),
                       steps = at_.p.geometry.unit_steps(at_.phase(phase).joined_taps, 0);
    const std::int32_t rounds_a_step = (rounds + steps - 1) / max(steps, 1);
    at_.visit_units(phase, [&](std::int32_t in_unit, const Pipeline::UnitOfPhase& next, bool has_next) {
      run_unit(in_unit, next, has_next, rounds, rounds_a_step, sums);
    });
    ptx::wgmma_wait<0>();
    at_.release(!is_first_);
    at_.refill(!is_first_);
    if (is_first_) sums.clear();
  }

 private:
  // All steps of a unit, while the box ahead is brought.
  __device__ __forceinline__ void run_unit(std::int32_t steps, const Pipeline::UnitOfPhase& next,
                                           bool has_next, std::int32_t rounds, std::int32_t rounds_a_step,
                                           Sums& sums) {
    if (!at_.p.geometry.is_resident) {
      wait_for_box();
      at_.write_table_behind(next, has_next);
      at_.advance_ahead();
    }
    const std::uint32_t box = at_.box_address(at_.box);
    std::int32_t left = !at_.p.geometry.is_resident && at_.has_ahead() ? rounds : 0;
#pragma unroll 1
    for (; steps > 0; --steps) {
      const std::int32_t count = steps > 1 ? min(left, rounds_a_step) : left;
      if (boxes_.are_copied()) {
        multiply(box, sums);
        boxes_.copy(rounds - left, count, at_.box_ahead());
      } else {
        boxes_.load(rounds - left, count, at_.box_ahead());
        multiply(box, sums);
        boxes_.store();
      }
      left -= count;
    }
    if (!at_.p.geometry.is_resident) ptx::cp_async_commit();
  }
  // By all threads: until the unit's box is there, and nobody reads the one before.
  __device__ __forceinline__ void wait_for_box() const {
    switch (at_.p.geometry.boxes) {
      case 2:
        ptx::cp_async_wait<0>();
        break;
      case 3:
        ptx::cp_async_wait<1>();
        break;
      default:
        ptx::cp_async_wait<2>();
    }
    __syncthreads();
  }

  // A step; the unit's box is at `box`.
  __device__ __forceinline__ void multiply(std::uint32_t box, Sums& sums) {
    at_.wait();
    const std::uint32_t stage = at_.stage_address();
    const uint4 in_box = ptx::load_shared(stage + step_places_);
    const bool is_full = has_all_pieces(at_.p.geometry) ||
                         __any_sync(0xFFFFFFFF, static_cast<std::int32_t>(in_box.z) != kNoPiece);
    const std::uint64_t weights = ptx::wgmma_descriptor(stage, kStepBytes);
    multiply_pair<0>(in_box.x, box, weights, sums);
    multiply_pair<1>(in_box.y, box, weights, sums);
    if (is_full) {
      multiply_pair<2>(in_box.z, box, weights, sums);
      multiply_pair<3>(in_box.w, box, weights, sums);
    }
    at_.refill(!is_first_);
    is_first_ = false;
    at_.next_stage();
  }

  // Two pieces of a step, of which the lane's lies at `in_box` of a position's place.
  template <int kPair>
  __device__ __forceinline__ void multiply_pair(std::uint32_t in_box, std::uint32_t box,
                                                std::uint64_t weights, Sums& sums) {
    constexpr int kDescribedBytes = 16;  // of a unit of a descriptor's address
    const bool is_none = !has_all_pieces(at_.p.geometry) && static_cast<std::int32_t>(in_box) == kNoPiece;
    // The products before those under way are done, and the registers that they read are free.
    ptx::wgmma_wait<1>();
    if (kPair == 1) at_.release(!is_first_);
    auto& rows = rows_[kPair % 2];
#pragma unroll
    for (int i = 0; i < Sums::kRowTiles; ++i) {
      ptx::ldmatrix_4(is_none ? at_.memory.zeros() : box + in_box + places_[i], rows[i]);
      if (!at_.p.input.is_rounded_late) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) rows[i][e] = Tf32::rounded(rows[i][e]);
    }
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Sums::kRowTiles; ++i) {
      multiply_rows<Math, Sums::kColumns>(sums.sums[i], rows[i],
                                          weights + kPair * 2 * kPieceBytes / kDescribedBytes,
                                          kPair > 0 || !is_first_);
    }
    ptx::wgmma_commit();
  }

  WarpgroupPipeline& at_;
  BoxesAhead<Math> boxes_;
  std::int32_t places_[Sums::kRowTiles], step_places_;
  std::uint32_t rows_[2][Sums::kRowTiles][4];
  bool is_first_ = true;  // step of the phase
};

}  // namespace epiconv::sm80
