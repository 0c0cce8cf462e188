// The products of a tile: gemm_k step by step, through two or three stages in shared memory. While a step is
// multiplied, the next ones are on their way.
#pragma once

#include "device/ptx/ldmatrix.h"
#include "sm80/gather.h"

namespace epiconv::sm80 {

// Four warps share the positions of a tile, two its filters.
inline constexpr int kPositionWarps = 4;
inline constexpr int kFilterWarps = 2;
inline constexpr int kRowTiles = kTilePositions / kPositionWarps / 16;  // of 16 positions, of a warp

// Sums of a warp: (16 positions, 8 filters) each.
template <int kTileFilters>
struct Accumulators {
  static constexpr int kWarpFilters = kTileFilters / kFilterWarps;
  static constexpr int kColumnTiles = kWarpFilters / 8;
  static constexpr int kCount = kRowTiles * kColumnTiles * 4;

  float sums[kRowTiles][kColumnTiles][4];

  __device__ __forceinline__ void clear() {
    visit([](float& sum, int) { sum = 0.0f; });
  }
  // Calls visitor(sum, number) with each of the thread's.
  template <typename Visitor>
  __device__ __forceinline__ void visit(Visitor&& visitor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      visitor(sums[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4], i);
    }
  }
};

// Position and filter, in the tile, of a thread's first sum; those of sum i are rows 8 * (i / 2) behind and
// columns i % 2.
struct WarpPlace {
  int position, filter;

  template <int kTileFilters>
  __device__ __forceinline__ static WarpPlace of(int thread) {
    const int warp = thread / 32, lane = thread % 32;
    return {warp % kPositionWarps * (16 * kRowTiles) + lane / 4,
            warp / kPositionWarps * (kTileFilters / kFilterWarps) + lane % 4 * 2};
  }
};

template <typename Math, typename Gather, int kTileFilters>
class Mainloop {
 public:
  using Sums = Accumulators<kTileFilters>;

  // `pipeline` is aligned to 16 bytes.
  __device__ __forceinline__ Mainloop(const ConvParameters& p, const Tile& tile, const InputRow* rows,
                                      const PackedPhase& taps, std::int32_t phase, std::uint8_t* pipeline,
                                      TapTable* tables, int thread)
      : p_(p),
        taps_(taps),
        pipeline_(pipeline),
        tables_(tables),
        thread_(thread),
        entries_(packed() + p.geometry.packed_entry(phase, 0)),
        weights_(packed() + p.geometry.packed_step(phase, tile.group, 0) +
                 std::int64_t{tile.filter} * kStepBytes),
        filter_rows_(p.geometry.filter_rows - tile.filter),
        gather_(p, rows, thread) {
    const int warp = thread / 32, lane = thread % 32;
    // Of matrices (rows 0 to 7, first piece), (8 to 15, first), (0 to 7, second), (8 to 15, second).
    const int row = warp % kPositionWarps * (16 * kRowTiles) + lane % 16;
    input_place_ = row * kStepBytes + swizzled(row, lane / 16);
    // Of (0 to 7, first), (0 to 7, second), (8 to 15, first), (8 to 15, second).
    const int filter = warp / kPositionWarps * Sums::kWarpFilters + lane / 16 * 8 + lane % 8;
    filter_place_ = kInputBytes + filter * kStepBytes + swizzled(filter, lane / 8 % 2);
  }

  // Adds the products of steps [first, end). Before, other threads may still write the rows, and nothing else
  // of shared memory is in use; behind, they may still read the pipeline.
  __device__ __forceinline__ void run(std::int32_t first, std::int32_t end, Sums& sums) {
    if (first >= end) return;
    const std::int32_t ahead = p_.stages - 1;
    for (std::int32_t i = 0; i <= ahead; ++i) write_taps(first + i, packed_entry(first + i));
    __syncthreads();
    gather_.begin(taps_);
    for (std::int32_t i = 0; i < ahead; ++i) {
      begin(first + i, end, i);
      finish(first + i, end, i);
    }
    std::int32_t stage = 0, next = ahead;  // of this step, and of the one to be loaded
#pragma unroll 1
    for (std::int32_t step = first; step < end; ++step) {
      if (ahead == 1) {
        ptx::cp_async_wait<0>();
      } else {
        ptx::cp_async_wait<1>();
      }
      __syncthreads();
      const PackedEntry entry = packed_entry(step + ahead + 1);
      begin(step + ahead, end, next);
      multiply(stage, sums);
      finish(step + ahead, end, next);
      write_taps(step + ahead + 1, entry);
      stage = stage + 1 == p_.stages ? 0 : stage + 1;
      next = next + 1 == p_.stages ? 0 : next + 1;
    }
    ptx::cp_async_wait<0>();
  }

 private:
  static constexpr int kStepElements = kStepPieces * Math::kPieceElements;
  static constexpr int kStageBytes = kInputBytes + kTileFilters * kStepBytes;

  __device__ __forceinline__ std::uint8_t* stage_memory(std::int32_t stage) const {
    return pipeline_ + stage * kStageBytes;
  }
  __device__ __forceinline__ TapTable& table(std::int32_t step) const { return tables_[step % kTapTables]; }
  __device__ __forceinline__ bool is_whole(std::int32_t step) const {
    return (step + 1) * kStepElements <= taps_.elements;
  }
  __device__ __forceinline__ const std::uint8_t* packed() const {
    return static_cast<const std::uint8_t*>(p_.weights);
  }

  // The thread's, of a step; behind the last step that of the last one.
  __device__ __forceinline__ PackedEntry packed_entry(std::int32_t step) const {
    if (thread_ >= kStepElements) return {};
    const std::int32_t last = min(step, p_.geometry.most_steps - 1);
    return reinterpret_cast<const PackedEntry*>(entries_ +
                                                last * (kStepElements * kPackedEntryBytes))[thread_];
  }
  __device__ __forceinline__ void write_taps(std::int32_t step, const PackedEntry& entry) const {
    if (thread_ < kStepElements) write_tap(p_.input, entry, thread_, table(step));
  }

  // Begins to load a step, if there is one; in any case a group of copies ends.
  __device__ __forceinline__ void begin(std::int32_t step, std::int32_t end, std::int32_t stage) {
    if (step < end) {
      gather_.load(table(step), is_whole(step), stage_memory(stage));
      copy_weights(step, stage);
    } else {
      gather_.clear();
    }
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void finish(std::int32_t step, std::int32_t end, std::int32_t stage) const {
    if (step < end) gather_.store(table(step), stage_memory(stage));
  }

  // They are packed as they lie in a stage. Rows that there are not stay as they are: what they give is not
  // stored.
  __device__ __forceinline__ void copy_weights(std::int32_t step, std::int32_t stage) const {
    // What is the same for all threads stays apart: it takes no registers.
    const std::uint8_t* const from = weights_ + std::int64_t{step} * p_.geometry.filter_rows * kStepBytes;
    std::uint8_t* const to = stage_memory(stage) + kInputBytes + thread_ * kPieceBytes;
    constexpr int kPieces = kTileFilters * kStepPieces;
#pragma unroll
    for (int first = 0; first < kPieces; first += kThreads) {
      if (kPieces < kThreads && thread_ >= kPieces) break;
      const int piece = first + thread_;
      if (piece / kStepPieces < filter_rows_) {
        ptx::cp_async_16(to + first * kPieceBytes, from + static_cast<std::uint32_t>(piece * kPieceBytes));
      }
    }
  }

  __device__ __forceinline__ void multiply(std::int32_t stage, Sums& sums) const {
    const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(stage_memory(stage)));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // The second half of a row is pieces 2 and 3, which the swizzle exchanges like 0 and 1.
      const std::uint32_t filters = at + (filter_place_ ^ (half * 2 * kPieceBytes));
      const std::uint32_t rows = at + (input_place_ ^ (half * 2 * kPieceBytes));
      typename Math::OfPositions a[kRowTiles];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        std::uint32_t loaded[4];
        ptx::ldmatrix_4(rows + 16 * i * kStepBytes, loaded);
        a[i].take(loaded);
      }
#pragma unroll
      for (int j = 0; j < Sums::kColumnTiles; j += 2) {
        std::uint32_t loaded[4];
        ptx::ldmatrix_4(filters + 8 * j * kStepBytes, loaded);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          typename Math::OfFilters b;
          b.take(loaded[2 * k], loaded[2 * k + 1]);
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) Math::multiply(sums.sums[i][j + k], a[i], b);
        }
      }
    }
  }

  const ConvParameters& p_;
  const PackedPhase& taps_;
  std::uint8_t* const pipeline_;
  TapTable* const tables_;
  const int thread_;
  const std::uint8_t* const entries_;  // of the phase
  const std::uint8_t* const weights_;  // of the phase, the group, and the tile's filters
  const std::int32_t filter_rows_;     // from the tile's first on
  Gather gather_;
  std::int32_t input_place_, filter_place_;  // of the lane's fragments in a stage
};

}  // namespace epiconv::sm80
