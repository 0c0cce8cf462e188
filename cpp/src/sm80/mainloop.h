// The products of a tile: the steps of gemm_k, one phase after the other, through two or three stages of
// weights in shared memory, over boxes of the input. While a step is multiplied, the next weights and the
// next box are on their way.
//
// Rows of the products' matrix are filters and columns positions, or the other way round, so that what a
// thread has of a row lies side by side in the output.
#pragma once

#include "device/ptx/ldmatrix.h"
#include "device/ptx/load_shared.h"
#include "sm80/box.h"

namespace epiconv::sm80 {

// Sums of a warp: (16 rows, 8 columns) each.
template <int kTheRowTiles, int kTheColumnTiles>
struct Accumulators {
  static constexpr int kRowTiles = kTheRowTiles;
  static constexpr int kColumnTiles = kTheColumnTiles;
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

// Where the rows and columns of a warp begin in the tile.
struct WarpPlace {
  int row, column;

  template <typename Sums>
  __device__ __forceinline__ static WarpPlace of(const Geometry& g, int thread) {
    const int warp = thread / 32;
    return {warp % g.row_warps * (16 * Sums::kRowTiles), warp / g.row_warps * (8 * Sums::kColumnTiles)};
  }
};

// Shared memory of a block; what all its threads know of its tile lies there, too, where it takes no
// registers beside the sums.
struct TileMemory {
  const SharedLayout& at;
  std::uint8_t* const shared;

  __device__ __forceinline__ Tile& tile() const { return *reinterpret_cast<Tile*>(shared + at.tile); }
  __device__ __forceinline__ Column* columns() const { return reinterpret_cast<Column*>(shared); }
  // Of positions in the box, in bytes.
  __device__ __forceinline__ std::int32_t* places() const {
    return reinterpret_cast<std::int32_t*>(shared + at.places);
  }
  // Tables of the box's.
  __device__ __forceinline__ std::int64_t* pixels() const {
    return reinterpret_cast<std::int64_t*>(shared + at.pixels);
  }
  __device__ __forceinline__ std::uint32_t* flag() const {
    return reinterpret_cast<std::uint32_t*>(shared + at.flag);
  }
  __device__ __forceinline__ float* staging() const { return reinterpret_cast<float*>(shared + at.staging); }
  __device__ __forceinline__ float* scratch() const { return reinterpret_cast<float*>(shared + at.scratch); }
  // The rest as addresses of the shared window.
  __device__ __forceinline__ std::uint32_t zeros() const { return window() + at.zeros; }
  __device__ __forceinline__ std::uint32_t boxes() const { return window() + at.boxes; }
  __device__ __forceinline__ std::uint32_t stages() const { return window() + at.stages; }
  __device__ __forceinline__ std::uint32_t words() const { return window() + at.words; }

 private:
  __device__ __forceinline__ std::uint32_t window() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  }
};

// How far a block has come: in the boxes, and in the weights that are on their way.
struct Pipeline {
  const ConvParameters& p;
  const TileMemory& memory;
  const int thread;
  std::int32_t box;     // of the unit that is multiplied, 0 or 1
  std::uint32_t stage;  // of the next step, an address of the shared window

  __device__ __forceinline__ Pipeline(const ConvParameters& parameters, const TileMemory& the_memory,
                                      int the_thread)
      : p(parameters), memory(the_memory), thread(the_thread) {}

  // Begins with the first phase that has steps; false if there is none. Tables and weights are on their way.
  __device__ __forceinline__ bool begin() {
    const Geometry& g = p.geometry;
    box = 0;
    stage = memory.stages();
    fill_ = stage + thread * kPieceBytes;
    UnitOfPhase unit{0, 0};
    while (unit.phase < g.block_phases && phase(unit.phase).steps == 0) ++unit.phase;
    if (unit.phase == g.block_phases) return false;
    const Steps steps = steps_of(unit.phase);
    unit.number = steps.first_unit;
    write_table(unit, 0);
    weights_phase_ = unit.phase;
    set_weights(steps.first, steps.end);
    if (g.pixel_tables > 1 && advance(unit)) write_table(unit, 1);
    for (int i = 1; i < p.shared.num_stages; ++i) copy_weights();
    return true;
  }

  __device__ __forceinline__ const PackedPhase& phase(std::int32_t number) const {
    return static_cast<const PackedPhase*>(here(p).weights)[memory.tile().phase + number];
  }
  // Of a phase that this block multiplies: a split of gemm_k begins anywhere in a unit.
  struct Steps {
    std::int32_t first, end;
    std::int32_t first_unit, skipped;  // steps of that unit
  };
  __device__ __forceinline__ Steps steps_of(std::int32_t number) const {
    const Geometry& g = p.geometry;
    Steps steps{0, phase(number).steps, 0, 0};
    if (g.splits.divisor == 1) return steps;
    const auto splits = static_cast<std::int32_t>(g.splits.divisor);
    const std::int32_t share = (g.most_steps + splits - 1) / splits;
    steps.first = min(memory.tile().split * share, steps.end);
    steps.end = min(steps.first + share, steps.end);
    if (steps.first == steps.end) return steps;
    const std::int32_t taps = phase(number).joined_taps, full = g.unit_steps(taps, 0);
    const std::int32_t per_tap = g.units_steps(taps), other = steps.first / per_tap;
    const std::int32_t in_tap = steps.first - other * per_tap,
                       block = min(in_tap / full, g.channel_blocks - 1);
    steps.first_unit = other * g.channel_blocks + block;
    steps.skipped = in_tap - block * full;
    return steps;
  }
  // A unit of a phase of the block.
  struct UnitOfPhase {
    std::int32_t phase, number;
  };
  // The next one, if there is one.
  __device__ __forceinline__ bool advance(UnitOfPhase& unit) const {
    const Geometry& g = here(p).geometry;
    if (++unit.number < units(unit.phase)) return true;
    unit.number = 0;
    while (++unit.phase < g.block_phases) {
      if (phase(unit.phase).steps > 0) return true;
    }
    return false;
  }
  __device__ __forceinline__ std::int32_t units(std::int32_t number) const {
    return phase(number).other_taps * here(p).geometry.channel_blocks;
  }
  // Of a unit's number: which of the taps that are not joined, and which block of channels.
  __device__ __forceinline__ std::int32_t other(std::int32_t unit) const {
    return here(p).channel_blocks.quotient(unit);
  }
  __device__ __forceinline__ std::int32_t block(std::int32_t unit) const {
    return unit - other(unit) * here(p).geometry.channel_blocks;
  }

  __device__ __forceinline__ std::uint32_t box_address(std::int32_t number) const {
    return memory.boxes() + number * p.geometry.box_bytes();
  }
  __device__ __forceinline__ std::int64_t* table(std::int32_t number) const {
    return memory.pixels() + (p.geometry.pixel_tables > 1 ? number * p.geometry.box_pixels : 0);
  }
  // By all threads: where the pixels of a unit's box lie.
  __device__ __forceinline__ void write_table(const UnitOfPhase& unit, std::int32_t number) const {
    write_pixels(here(p), memory.tile(), phase(unit.phase), other(unit.number), table(number), thread);
  }

  __device__ __forceinline__ void next_stage() { stage = behind(stage); }
  // For the weights of the next step, or for all copies.
  __device__ __forceinline__ void wait(bool for_all) const {
    if (for_all || p.shared.num_stages == 2) {
      ptx::cp_async_wait<0>();
    } else {
      ptx::cp_async_wait<1>();
    }
  }

  // Begins to copy the weights of the step that is all other stages ahead of the next one, if there is one;
  // in any case a group of copies ends.
  __device__ __forceinline__ void copy_weights() {
    if (weights_left_ > 0) {
      // Rows of kStepBytes by all threads, kThreadRows at a time; then the PackedStep.
      const std::int32_t filters = p.geometry.tile_filters;
      if (filters >= kThreadRows || thread < kThreads / 2) copy_piece(0);
      if (filters > kThreadRows) copy_piece(1);
      if (filters > 2 * kThreadRows) {
        copy_piece(2);
        copy_piece(3);
      }
      if (thread < static_cast<int>(sizeof(PackedStep)) / kPieceBytes) {
        ptx::cp_async_16(fill_ + filters * kStepBytes, weights_ + filters * kStepBytes);
      }
      weights_ += p.geometry.step_bytes();
      if (--weights_left_ == 0 && p.geometry.block_phases > 1) next_weights();
    }
    fill_ = behind(fill_ - thread * kPieceBytes) + thread * kPieceBytes;
    ptx::cp_async_commit();
  }

 private:
  static constexpr int kThreadRows = kThreads / kStepPieces;

  __device__ __forceinline__ void copy_piece(int number) const {
    ptx::cp_async_16(fill_ + number * kThreads * kPieceBytes, weights_ + number * kThreads * kPieceBytes);
  }

  // The stage that follows another one, in turn.
  __device__ __forceinline__ std::uint32_t behind(std::uint32_t at) const {
    const std::uint32_t next = at + p.shared.stage_bytes;
    return next == memory.stages() + p.shared.num_stages * p.shared.stage_bytes ? memory.stages() : next;
  }
  __device__ __forceinline__ void set_weights(std::int32_t from, std::int32_t to) {
    const ConvParameters& p = here(this->p);
    const Tile& tile = memory.tile();
    weights_left_ = to - from;
    weights_ = static_cast<const std::uint8_t*>(p.weights) +
               p.geometry.packed_step(tile.phase + weights_phase_, tile.group, tile.filter_tile, from) +
               thread * kPieceBytes;
  }
  __device__ __forceinline__ void next_weights() {
    while (++weights_phase_ < here(p).geometry.block_phases) {
      const std::int32_t steps = phase(weights_phase_).steps;
      if (steps > 0) return set_weights(0, steps);
    }
  }

  std::int32_t weights_phase_, weights_left_;  // steps of a phase that are to be copied
  const std::uint8_t* weights_;                // the thread's first piece of the next one
  std::uint32_t fill_;                         // where that goes
};

// By all threads: the box of the first unit. Nothing is multiplied meanwhile, so several rounds are under way
// at once.
template <typename Math>
__device__ __forceinline__ void load_first_box(const Pipeline& at) {
  constexpr int kRounds = 4;
  const BoxLoader<Math> loader(at.p, at.thread);
  BoxLoader<Math> loaders[kRounds] = {loader, loader, loader, loader};
  std::int32_t phase = 0;
  while (at.phase(phase).steps == 0) ++phase;
  const std::int32_t block = at.block(at.steps_of(phase).first_unit);
#pragma unroll 1
  for (std::int32_t round = 0; round < loader.rounds(); round += kRounds) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) loaders[i].load(at.table(0), block, round + i, at.box_address(0));
#pragma unroll
    for (int i = 0; i < kRounds; ++i) loaders[i].store();
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

// The products of a phase. kLoadsAhead: what two pieces have is loaded while two others are multiplied.
template <typename Math, typename Sums, bool kLoadsAhead, bool kFiltersAreRows>
class Mainloop {
 public:
  __device__ __forceinline__ explicit Mainloop(Pipeline& pipeline)
      : at_(pipeline), loader_(pipeline.p, pipeline.thread) {
    const WarpPlace warp = WarpPlace::of<Sums>(at_.p.geometry, at_.thread);
    const LanePlace row = LanePlace::of_rows(at_.thread), column = LanePlace::of_columns(at_.thread);
    const LanePlace& of_filters = kFiltersAreRows ? row : column;
    const int filter = (kFiltersAreRows ? warp.row : warp.column) + of_filters.line;
    filter_place_ = filter * kStepBytes + swizzled(filter, of_filters.piece);
    const int position = (kFiltersAreRows ? warp.column + column.line : warp.row + row.line);
#pragma unroll
    for (int i = 0; i < kPositionGroups; ++i) places_[i] = at_.memory.places()[position + 16 * i];
  }

  // Adds the products of the pipeline's next phase, or of a split of it.
  __device__ __forceinline__ void run(std::int32_t phase, Sums& sums) {
    const Geometry& g = here(at_.p).geometry;
    const Pipeline::Steps steps = at_.steps_of(phase);
    std::int32_t unit = steps.first_unit, left = steps.end - steps.first, skipped = steps.skipped;
#pragma unroll 1
    while (left > 0) {
      const std::int32_t in_unit = g.unit_steps(at_.phase(phase).joined_taps, at_.block(unit)) - skipped;
      Pipeline::UnitOfPhase next{phase, unit};
      const bool is_last_of_split = g.splits.divisor > 1 && in_unit >= left;
      const bool has_next = !g.is_resident && !is_last_of_split && at_.advance(next);
      run_unit(min(in_unit, left), next, has_next, sums);
      skipped = 0;
      left -= in_unit;
      ++unit;
      if (!g.is_resident) at_.box ^= 1;
    }
  }

 private:
  // Which of 16 rows or columns, and which of two pieces of it, a lane addresses: four matrices of 8 x 8, of
  // rows in the order of an A fragment's registers, of columns in that of two B fragments'.
  struct LanePlace {
    int line, piece;

    __device__ __forceinline__ static LanePlace of_rows(int thread) { return {thread % 16, thread / 16 % 2}; }
    __device__ __forceinline__ static LanePlace of_columns(int thread) {
      return {thread / 16 % 2 * 8 + thread % 8, thread / 8 % 2};
    }
  };
  static constexpr int kPositionGroups = kFiltersAreRows ? Sums::kColumnTiles / 2 : Sums::kRowTiles;

  // A round of the next unit's box.
  __device__ __forceinline__ void load(std::int32_t block, std::int32_t round) {
    loader_.load(at_.table(at_.box ^ 1), block, round, at_.box_address(at_.box ^ 1));
  }

  // All steps of a unit, while the next one's box is brought.
  __device__ __forceinline__ void run_unit(std::int32_t steps, const Pipeline::UnitOfPhase& next,
                                           bool has_next, Sums& sums) {
    bool is_synchronized = false;
    if (at_.p.geometry.boxes > 1) {
      at_.wait(true);  // of the last copies some are of the box
      __syncthreads();
      is_synchronized = true;
      Pipeline::UnitOfPhase behind = next;
      // Where boxes differ in their pixels, that of the unit behind the next one takes the place of this
      // one's.
      if (at_.p.geometry.pixel_tables > 1 && has_next && at_.advance(behind)) {
        at_.write_table(behind, at_.box);
      }
    }
    const std::uint32_t box = at_.box_address(at_.box);
    const std::int32_t block = at_.block(next.number);
    std::int32_t rounds = has_next ? loader_.rounds() : 0;
    while (rounds > steps) {  // the last ones first
      load(block, --rounds);
      loader_.store();
    }
#pragma unroll 1
    for (; steps > 0; --steps) {
      if (!is_synchronized) {
        at_.wait(false);
        __syncthreads();
      }
      is_synchronized = false;
      const bool loads = --rounds >= 0;
      if (loads) {
        load(block, rounds);
      } else {
        loader_.clear();
      }
      at_.copy_weights();
      multiply(box, sums);
      if (loads) loader_.store();
      at_.next_stage();
    }
  }

  // What a thread has of two pieces of a step.
  struct Fragments {
    std::uint32_t rows[Sums::kRowTiles][4], columns[Sums::kColumnTiles / 2][4];
  };

  // A step; the unit's box is at `box`.
  __device__ __forceinline__ void multiply(std::uint32_t box, Sums& sums) const {
    const LanePlace of_positions =
        kFiltersAreRows ? LanePlace::of_columns(at_.thread) : LanePlace::of_rows(at_.thread);
    const std::uint32_t step = at_.stage + at_.p.geometry.tile_filters * kStepBytes;
    const uint4 in_box = ptx::load_shared(step + of_positions.piece * static_cast<int>(sizeof(uint4)));
    const bool is_full = __any_sync(0xFFFFFFFF, static_cast<std::int32_t>(in_box.z) != kNoPiece);
    Fragments even, odd;
    load(0, in_box.x, box, even);
    if constexpr (kLoadsAhead) {
      load(1, in_box.y, box, odd);
      multiply(even, sums);
      if (!is_full) return multiply(odd, sums);
      load(2, in_box.z, box, even);
      multiply(odd, sums);
      load(3, in_box.w, box, odd);
      multiply(even, sums);
      multiply(odd, sums);
    } else {
      multiply(even, sums);
      load(1, in_box.y, box, even);
      multiply(even, sums);
      if (!is_full) return;
      load(2, in_box.z, box, even);
      multiply(even, sums);
      load(3, in_box.w, box, even);
      multiply(even, sums);
    }
  }

  // Two pieces of a step, of which the lane's lies at `in_box` of a position's place.
  __device__ __forceinline__ void load(int pair, std::uint32_t in_box, std::uint32_t box,
                                       Fragments& fragments) const {
    // The swizzle exchanges pieces 2 and 3, or 4 to 7, like 0 and 1.
    const std::uint32_t filters = at_.stage + (filter_place_ ^ (pair * 2 * kPieceBytes));
    const bool is_none = static_cast<std::int32_t>(in_box) == kNoPiece;
    // 16 filters or positions.
    const auto load_group = [&](bool are_filters, int group, std::uint32_t (&loaded)[4]) {
      const std::uint32_t position =
          is_none ? at_.memory.zeros() : box + in_box + places_[are_filters ? 0 : group];
      ptx::ldmatrix_4(are_filters ? filters + group * (16 * kStepBytes) : position, loaded);
    };
#pragma unroll
    for (int i = 0; i < Sums::kRowTiles; ++i) load_group(kFiltersAreRows, i, fragments.rows[i]);
#pragma unroll
    for (int j = 0; j < Sums::kColumnTiles / 2; ++j) {
      load_group(!kFiltersAreRows, j, fragments.columns[j]);
    }
  }
  __device__ __forceinline__ static void multiply(const Fragments& fragments, Sums& sums) {
    typename Math::OfRows a[Sums::kRowTiles];
#pragma unroll
    for (int i = 0; i < Sums::kRowTiles; ++i) a[i].take(fragments.rows[i]);
#pragma unroll
    for (int j = 0; j < Sums::kColumnTiles; ++j) {
      typename Math::OfColumns b;
      const std::uint32_t* const column = fragments.columns[j / 2] + j % 2 * 2;
      b.take(column[0], column[1]);
#pragma unroll
      for (int i = 0; i < Sums::kRowTiles; ++i) Math::multiply(sums.sums[i][j], a[i], b);
    }
  }

  Pipeline& at_;
  BoxLoader<Math> loader_;
  std::int32_t filter_place_, places_[kPositionGroups];  // of the lane's fragments
};

}  // namespace epiconv::sm80
