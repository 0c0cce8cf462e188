// The products of a tile: 64 rows of M by 256 positions in a warpgroup's registers, tap by tap, in turns with
// the other warpgroup.
#pragma once

#include "device/ptx/fences.h"
#include "device/ptx/keep_here.h"
#include "sm90/conv_parameters.h"
#include "sm90/math.h"
#include "sm90/pipeline.h"

namespace epiconv::sm90 {

// How many taps before its end a turn is given away: the other consumer needs this long until its first
// products run.
inline constexpr int kHandOverTaps = 2;

// `Maths` are those that the kernel is for. `kMayBeJoint`: it is also for joint rows, and for few channels,
// with weights that stay; the others spend nothing on that.
template <typename Maths, int kPhases, bool kMayBeJoint>
class Mainloop {
 public:
  static constexpr int kAllRows = -1;  // joint ones

  __device__ __forceinline__ Mainloop(const ConvParameters& p, const SharedMemory& shared, int consumer)
      : p_(p),
        g_(p.geometry),
        shared_(shared),
        consumer_(consumer),
        slot_(p.geometry.num_slots),
        stage_(p.geometry.num_stages),
        described_rows_(static_cast<int>(ptx::wgmma_descriptor(0, p.geometry.row_bytes) >> 32)) {
    ptx::keep_here(described_rows_);  // else it is worked out for every product
    if ((kPhases > 1 || kMayBeJoint) && g_.weights_stay) wait_for_weights();
  }

  // Past a tile of the other consumer.
  __device__ __forceinline__ void skip(const Share& share) {
    slot_.advance(g_.units);
    skip_stages(taps_of(share));
  }

  // What there is to know of phases; the kernel without any spends nothing on them.
  __device__ __forceinline__ Share share_number(int number) const {
    return kPhases == 1 ? Share{number, 0} : Share::of(g_, number);
  }

  // That all products of a tile with one unit have read.
  __device__ __forceinline__ void release_slot() {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_.slot_empty(slot_.index()));
    slot_.next();
  }

  // `row`: kAllRows, or a joint row whose places alone are multiplied, again; what the accumulators of the
  // others then hold means nothing.
  __device__ __forceinline__ void multiply(const Tile& tile, int sharer, const Share& share, int row,
                                           std::uint32_t& turns, float (&accumulators)[kAccumulators]) {
    if (g_.weights_stay && row == kAllRows) {
      stage_.restart(kPhases == 1 ? share.group * g_.taps : share.taps_before(g_));
    }
    const bool is_joint = kMayBeJoint && g_.joint_rows > 1, is_again = is_joint && row != kAllRows;
    Progress progress;
    if (is_again) {
      progress.taps_left = -1;  // the turn has been given away
      stage_.restart(row * g_.columns);
    }
    const Share other = share_number(tile.filter_tile * g_.sharers + 1 - sharer);  // with two sharers
    Unit unit = Unit::first();
    for (int u = 0;; unit.advance(g_)) {
      if (!is_again && (u == 0 || !g_.turn_is_tile)) {
        progress.turn_taps = progress.taps_left = turn_taps(share, unit);
        if (consumer_ == 1) skip_turn(other, unit);
        wait_for_turn(turns);
      }
      ptx::mbarrier_wait(shared_.slot_full(slot_.index()), slot_.full_parity(), "full slot", slot_.index());
      if (kPhases > 1 && progress.turn_taps == 0 && (u == 0 || !g_.turn_is_tile)) give_turn();
      PlaceSpan rows = rows_of(unit, share);
      if (is_again) rows = {row, row + g_.taps_r - g_.joint_rows + 1};
      multiply_unit(tile, unit, rows, progress, accumulators);
      if (is_joint) {
        break;  // of one unit, whose slot may be read again
      } else if (has_taps(unit, rows)) {
        progress.pending_slot = slot_.index();
      } else if (threadIdx.x % 32 == 0) {  // no product reads it, and one under way may read the one before
        ptx::mbarrier_arrive(shared_.slot_empty(slot_.index()));
      }
      slot_.next();
      const bool is_last = ++u == g_.units;
      if (consumer_ == 0 && (is_last || !g_.turn_is_tile)) skip_turn(other, unit);
      if (is_last) break;
      // The other consumer's products run meanwhile, and its stages come before this one's next.
      if (!g_.turn_is_tile) {
        ptx::wgmma_wait<0>();
        release(progress);
      }
    }
    ptx::wgmma_wait<0>();
    release(progress);
    if constexpr (kPhases > 1) clear_untouched(progress, accumulators);
  }

 private:
  // A tile's products, while they are computed.
  struct Progress {
    int turn_taps = 0;                          // of the turn
    int taps_left = 0;                          // in the turn
    bool accumulate[kPhases]{};                 // products of a column phase add to what there is
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

  __device__ __forceinline__ int taps_of(const Share& share) const {
    return kPhases == 1 ? g_.taps : share.taps(g_);
  }
  __device__ __forceinline__ PlaceSpan rows_of(const Unit& unit, const Share& share) const {
    return kPhases == 1 ? PlaceSpan{0, unit.rows(g_)} : unit.rows_of(g_, share.row_phase);
  }
  __device__ __forceinline__ PlaceSpan columns_of(const Unit& unit, int phase) const {
    return kPhases == 1 ? PlaceSpan{0, unit.columns(g_)} : unit.columns_of(g_, phase);
  }

  __device__ __forceinline__ bool has_taps(const Unit& unit, const PlaceSpan& rows) const {
    return kPhases == 1 || (rows.count() > 0 && unit.row_taps(g_) > 0);
  }

  // The taps of a unit. While a tap's products run, the next tap is made ready; those before are released.
  template <typename Math, int kSteps>
  __device__ __forceinline__ void multiply_taps(const Tile& tile, const Unit& unit, const PlaceSpan& rows,
                                                Progress& progress, float (&accumulators)[kAccumulators]) {
    const int row_step = g_.row_bytes / 16;  // of a descriptor
    std::uint32_t pixel_row =
        described(shared_.slot(slot_.index())) + tap_row(g_, tile, rows.first, 0) * row_step;
    PlaceSpan columns[kPhases];
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) columns[phase] = columns_of(unit, phase);
    if ((kMayBeJoint || kPhases > 1) && g_.weights_stay) {
      multiply_resident<Math, kSteps>(pixel_row, rows, columns, progress, accumulators);
      return;
    }
    const int pitch = static_cast<int>(g_.pitch.divisor), next_plane = g_.plane_rows * pitch;
    const int next_line = g_.dilation_h * pitch - (kMayBeJoint ? (g_.joint_rows - 1) * next_plane : 0);
    const bool together = kPhases > 1 && g_.columns < g_.num_stages;
    for (int r = rows.first; r < rows.end; ++r) {
      if (together) {
        multiply_row_together<Math, kSteps>(columns, pixel_row, progress, accumulators);
      } else {
        multiply_row<Math, kSteps, 0>(columns[0], pixel_row, progress, accumulators);
        if constexpr (kPhases >= 2) {
          multiply_row<Math, kSteps, 1>(columns[1], pixel_row, progress, accumulators);
        }
        if constexpr (kPhases == 4) {
          multiply_row<Math, kSteps, 2>(columns[2], pixel_row, progress, accumulators);
          multiply_row<Math, kSteps, 3>(columns[3], pixel_row, progress, accumulators);
        }
      }
      const bool is_in_next_plane = kMayBeJoint && ((r + 1) & (g_.joint_rows - 1)) != 0;
      pixel_row += (is_in_next_plane ? next_plane : next_line) * row_step;
    }
  }

  // The taps of a unit with weights that are there and stay: nothing is waited for or handed back between
  // them, which for few channels takes longer than a tap's products.
  template <typename Math, int kSteps>
  __device__ __forceinline__ void multiply_resident(std::uint32_t pixel_row, const PlaceSpan& rows,
                                                    const PlaceSpan (&columns)[kPhases], Progress& progress,
                                                    float (&accumulators)[kAccumulators]) {
    const int stage_step = g_.stage_bytes / 16, row_step = g_.row_bytes / 16;
    const int pitch = static_cast<int>(g_.pitch.divisor), next_plane = g_.plane_rows * pitch;
    const int next_line = g_.dilation_h * pitch - (g_.joint_rows - 1) * next_plane;
    const int next_column = (kPhases == 1 ? g_.dilation_w : 1) * row_step;
    std::uint32_t weights = described(shared_.stage(stage_.index()));
    const auto multiply_phase = [&]<int kPhase>() {
      std::uint32_t pixels = pixel_row + columns[kPhase].first * next_column;
#pragma unroll 1
      for (int s = columns[kPhase].first; s < columns[kPhase].end; ++s) {
        ptx::wgmma_fence();
        multiply_tap<Math, kSteps, kPhase>(weights, pixels, progress, accumulators);
        ptx::wgmma_commit();
        // The slot of the unit before: its products are done behind the first of these.
        if (progress.pending_slot >= 0) {
          ptx::wgmma_wait<1>();
          release(progress);
        }
        weights += stage_step;
        pixels += next_column;
      }
    };
#pragma unroll 1
    for (int r = rows.first; r < rows.end; ++r) {
      multiply_phase.template operator()<0>();
      if constexpr (kPhases >= 2) multiply_phase.template operator()<1>();
      if constexpr (kPhases == 4) {
        multiply_phase.template operator()<2>();
        multiply_phase.template operator()<3>();
      }
      const bool is_in_next_plane = ((r + 1) & (g_.joint_rows - 1)) != 0;
      pixel_row += (is_in_next_plane ? next_plane : next_line) * row_step;
    }
    int row_taps = 0;
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) row_taps += columns[phase].count();
    const int taps = rows.count() * row_taps, left = progress.taps_left;
    const int last = min(kHandOverTaps, progress.turn_taps);
    stage_.advance(taps);
    progress.taps_left -= taps;
    if (left >= last && progress.taps_left < last) give_turn();
  }

  // The lower half of the descriptor of rows from `address` on, which alone differs from others'. It is added
  // to in 32 bits: what there is to do between two products of few columns takes longer than they do.
  static __device__ __forceinline__ std::uint32_t described(std::uint32_t address) {
    return static_cast<std::uint32_t>(ptx::wgmma_descriptor(address, 0));
  }
  __device__ __forceinline__ std::uint64_t whole(std::uint32_t low) const {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(described_rows_)) << 32 | low;
  }

  template <typename Math, int kSteps, int kPhase>
  __device__ __forceinline__ void multiply_tap(std::uint32_t weights, std::uint32_t pixels,
                                               Progress& progress,
                                               float (&accumulators)[kAccumulators]) const {
    constexpr int kStep = kStepBytes / 16;  // of a descriptor
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      Math::template multiply<kTilePixels / kPhases, kPhase * kPhaseAccumulators<kPhases>>(
          accumulators, whole(weights + k * kStep), whole(pixels + k * kStep),
          k > 0 || progress.accumulate[kPhase]);
    }
    progress.accumulate[kPhase] = true;
  }

  // Those of a row and a column phase; `pixels` describes the row's first place.
  template <typename Math, int kSteps, int kPhase>
  __device__ __forceinline__ void multiply_row(const PlaceSpan& columns, std::uint32_t pixels,
                                               Progress& progress, float (&accumulators)[kAccumulators]) {
    const int stage_step = g_.stage_bytes / 16, place_step = g_.dilation_w * (g_.row_bytes / 16);
    const std::uint32_t stages = described(shared_.stage(0));
    pixels += columns.first * place_step;
    for (int s = columns.first; s < columns.end; ++s) {
      const int stage = stage_.index();
      ptx::mbarrier_wait(shared_.stage_full(stage), stage_.full_parity(), "full stage", stage);
      ptx::wgmma_fence();
      multiply_tap<Math, kSteps, kPhase>(stages + stage * stage_step, pixels, progress, accumulators);
      ptx::wgmma_commit();
      if (--progress.taps_left == min(kHandOverTaps, progress.turn_taps) - 1) give_turn();
      pixels += place_step;
      ptx::wgmma_wait<1>();
      release(progress);
      progress.pending_stage = stage;
      stage_.next();
    }
  }

  // Those of a row in all column phases. Products of fewer columns are over before what there is to do
  // between two taps is done; so it is done for a row at a time: weights are waited for before its first tap,
  // and handed back behind its last.
  template <typename Math, int kSteps>
  __device__ __forceinline__ void multiply_row_together(const PlaceSpan (&columns)[kPhases],
                                                        std::uint32_t pixels, Progress& progress,
                                                        float (&accumulators)[kAccumulators]) {
    const int stage_step = g_.stage_bytes / 16, place_step = g_.row_bytes / 16;
    const std::uint32_t stages = described(shared_.stage(0));
    int taps = 0;
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) taps += columns[phase].count();
    if (taps == 0) return;
    RingPlace place = stage_;
#pragma unroll 1
    for (int i = 0; i < taps; ++i, place.next()) {
      ptx::mbarrier_wait(shared_.stage_full(place.index()), place.full_parity(), "full stage", place.index());
    }
    const auto multiply_phase = [&]<int kPhase>() {
      std::uint32_t at = pixels + columns[kPhase].first * place_step;
#pragma unroll 1
      for (int s = columns[kPhase].first; s < columns[kPhase].end; ++s) {
        ptx::wgmma_fence();
        multiply_tap<Math, kSteps, kPhase>(stages + stage_.index() * stage_step, at, progress, accumulators);
        ptx::wgmma_commit();
        stage_.next();
        at += place_step;
        ptx::wgmma_wait<1>();
      }
    };
    multiply_phase.template operator()<0>();
    if constexpr (kPhases >= 2) multiply_phase.template operator()<1>();
    if constexpr (kPhases == 4) {
      multiply_phase.template operator()<2>();
      multiply_phase.template operator()<3>();
    }
    const int left = progress.taps_left, last = min(kHandOverTaps, progress.turn_taps);
    progress.taps_left -= taps;
    if (left >= last && progress.taps_left < last) give_turn();
    release(progress);
    release_row(taps, progress);
  }

  // Hands back the stages of a row that was multiplied, but the last, which is still read.
  __device__ __forceinline__ void release_row(int taps, Progress& progress) const {
    int stage = stage_.index() - taps;
    if (stage < 0) stage += g_.num_stages;
#pragma unroll 1
    for (int i = 1; i < taps; ++i) {
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_.stage_empty(stage));
      if (++stage == g_.num_stages) stage = 0;
    }
    progress.pending_stage = stage;
  }

  // Once: weights that stay have come.
  __device__ __forceinline__ void wait_for_weights() {
    for (int stage = 0; stage < g_.num_stages; ++stage) {
      ptx::mbarrier_wait(shared_.stage_full(stage), 0, "weights", stage);
    }
  }

  // A column phase may have no tap; its sums are zeros then.
  __device__ __forceinline__ void clear_untouched(const Progress& progress,
                                                  float (&accumulators)[kAccumulators]) const {
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      if (progress.accumulate[phase]) continue;
#pragma unroll
      for (int i = 0; i < kPhaseAccumulators<kPhases>; ++i) {
        float& sum = accumulators[phase * kPhaseAccumulators<kPhases> + i];
        sum = 0.0f;
        ptx::keep_here(sum);  // the compiler would select for every tile
      }
    }
  }

  __device__ __forceinline__ void multiply_unit(const Tile& tile, const Unit& unit, const PlaceSpan& rows,
                                                Progress& progress, float (&accumulators)[kAccumulators]) {
    const int steps = unit.steps(g_);
    Maths::visit(p_.math, [&]<typename Math>() {
      if (steps == 4) {
        multiply_taps<Math, 4>(tile, unit, rows, progress, accumulators);
      } else if (steps == 3) {
        multiply_taps<Math, 3>(tile, unit, rows, progress, accumulators);
      } else if (steps == 2) {
        multiply_taps<Math, 2>(tile, unit, rows, progress, accumulators);
      } else {
        multiply_taps<Math, 1>(tile, unit, rows, progress, accumulators);
      }
    });
  }

  // The consumer, of which the compiler is to keep nothing else in registers.
  __device__ __forceinline__ int consumer_here() const {
    int consumer = consumer_;
    ptx::keep_here(consumer);
    return consumer;
  }
  // Products of phases are so few that consumers need not take turns. They do where one could be a round of a
  // ring ahead of the other, since barriers tell two rounds apart only.
  __device__ __forceinline__ bool takes_turns() const {
    return kPhases == 1 || !g_.weights_stay || g_.sharers == 1;
  }
  __device__ __forceinline__ void wait_for_turn(std::uint32_t& turns) const {
    if (!takes_turns()) return;
    const int consumer = consumer_here();
    ptx::mbarrier_wait(shared_.turn(consumer), (turns & 1) ^ (consumer == 0 ? 1 : 0), "turn", consumer);
    ++turns;
  }
  __device__ __forceinline__ void give_turn() const {
    if (!takes_turns()) return;
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_.turn(1 - consumer_here()));
  }
  __device__ __forceinline__ int turn_taps(const Share& share, const Unit& unit) const {
    return g_.turn_is_tile
               ? taps_of(share)
               : rows_of(unit, share).count() * (kPhases == 1 ? unit.columns(g_) : unit.row_taps(g_));
  }
  // Stages that are none of this consumer's. Weights that stay are in none of anybody's order.
  __device__ __forceinline__ void skip_stages(int taps) {
    if (!g_.weights_stay) stage_.advance(taps);
  }
  __device__ __forceinline__ void skip_turn(const Share& other, const Unit& unit) {
    if (g_.sharers == 2) skip_stages(turn_taps(other, unit));
  }

  const ConvParameters& p_;
  const HaloGeometry& g_;
  const SharedMemory shared_;
  const int consumer_;
  RingPlace slot_;
  RingPlace stage_;
  int described_rows_;  // the upper half of all descriptors
};

}  // namespace epiconv::sm90
