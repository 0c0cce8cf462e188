// The products of a tile: the steps of gemm_k, one phase after the other, through stages of weights in shared
// memory, over boxes of the input. While a step is multiplied, the next weights and the next box are on their
// way. Warps go from step to step together: what they execute stays in the instruction cache.
//
// Rows of the products' matrix are filters and columns positions, or the other way round, so that what a
// thread has of a row lies side by side in the output.
#pragma once

#include "device/ptx/ldmatrix.h"
#include "device/ptx/load_shared.h"
#include "sm80/box.h"

namespace epiconv::sm80 {

inline constexpr int kWarpThreads = 32;

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

// Which of 16 rows or columns, and which of two pieces of it, a lane addresses: four matrices of 8 x 8, of
// rows in the order of an A fragment's registers, of columns in that of two B fragments'.
struct LanePlace {
  int line, piece;

  __device__ __forceinline__ static LanePlace of_rows(int thread) { return {thread % 16, thread / 16 % 2}; }
  __device__ __forceinline__ static LanePlace of_columns(int thread) {
    return {thread / 16 % 2 * 8 + thread % 8, thread / 8 % 2};
  }
};

// Where the rows and columns of a warp begin in the tile.
struct WarpPlace {
  int row, column;

  template <typename Sums>
  __device__ __forceinline__ static WarpPlace of(const Geometry& g, int thread) {
    const int warp = thread / kWarpThreads, column = warp >> g.row_warp_bits;
    return {(warp - (column << g.row_warp_bits)) * (16 * Sums::kRowTiles), column * (8 * Sums::kColumnTiles)};
  }
};

// Shared memory of a block; what all its threads know of its tile lies there, too, where it takes no
// registers beside the sums.
struct TileMemory {
  const SharedLayout& at;
  std::uint8_t* const shared;

  __device__ __forceinline__ Tile& tile() const { return *reinterpret_cast<Tile*>(shared + at.tile); }
  __device__ __forceinline__ BlockPhase* phases() const {
    return reinterpret_cast<BlockPhase*>(shared + at.phases);
  }
  __device__ __forceinline__ float* filter_operands() const {
    return reinterpret_cast<float*>(shared + at.filter_operands);
  }
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
  __device__ __forceinline__ std::uint32_t barriers() const { return window() + at.barriers; }
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
  const ConvLaunch& launch;
  const TileMemory& memory;
  const int thread;
  std::int32_t box = 0;  // of the unit that is multiplied, 0 or 1
  std::uint32_t stage;   // of the next step, an address of the shared window

  __device__ __forceinline__ Pipeline(const ConvParameters& parameters, const ConvLaunch& the_launch,
                                      const TileMemory& the_memory, int the_thread)
      : p(parameters),
        launch(the_launch),
        memory(the_memory),
        thread(the_thread),
        stage(the_memory.stages()) {}

  // Begins with the first phase that has steps; false if there is none. The first box's table is written.
  __device__ __forceinline__ bool begin(const Tile& tile) {
    const Geometry& g = p.geometry;
    const auto* const phases = static_cast<const PackedPhase*>(launch.weights) + tile.phase;
    weights_phase_ = 0;
    while (weights_phase_ < g.block_phases && phases[weights_phase_].steps == 0) ++weights_phase_;
    if (weights_phase_ == g.block_phases) return false;
    const PackedPhase& first = phases[weights_phase_];
    const Steps steps = steps_of(first, tile.split);
    write_pixels(p, tile, first, other(steps.first_unit), table(0), thread);
    weights_left_ = steps.end - steps.first;
    weights_ = weights_of(tile, tile.phase + weights_phase_, steps.first);
    return true;
  }
  // When all threads know the block's phases: writes the second table, and begins to copy weights.
  __device__ __forceinline__ void begin_copies() {
    write_second_table();
    for (int i = 0; i < kStages - 1; ++i) copy_weights(stage + i * p.geometry.step_bytes());
  }

  __device__ __forceinline__ const PackedPhase& phase(std::int32_t number) const {
    return memory.phases()[number].packed;
  }
  // Of a phase that this block multiplies: a split of gemm_k begins anywhere in a unit.
  struct Steps {
    std::int32_t first, end;
    std::int32_t first_unit, skipped;  // steps of that unit
  };
  // Of a phase's step: the unit, and how many steps of it come before.
  __device__ __forceinline__ void find_unit(const PackedPhase& phase, std::int32_t step, std::int32_t& unit,
                                            std::int32_t& skipped) const {
    const Geometry& g = p.geometry;
    const std::int32_t taps = phase.joined_taps, full = g.unit_steps(taps, 0);
    const std::int32_t per_tap = g.units_steps(taps), other = step / per_tap;
    const std::int32_t in_tap = step - other * per_tap, block = min(in_tap / full, g.channel_blocks - 1);
    unit = other * g.channel_blocks + block;
    skipped = in_tap - block * full;
  }
  __device__ __forceinline__ Steps steps_of(std::int32_t number) const {
    return steps_of(phase(number), memory.tile().split);
  }
  __device__ __forceinline__ Steps steps_of(const PackedPhase& phase, std::int32_t split) const {
    const Geometry& g = p.geometry;
    Steps steps{0, phase.steps, 0, 0};
    if (g.splits.divisor == 1) return steps;
    const auto splits = static_cast<std::int32_t>(g.splits.divisor);
    const std::int32_t share = (g.most_steps + splits - 1) / splits;
    steps.first = min(split * share, steps.end);
    steps.end = min(steps.first + share, steps.end);
    if (steps.first == steps.end) return steps;
    find_unit(phase, steps.first, steps.first_unit, steps.skipped);
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
  // Calls visitor(steps, next unit, whether there is one) for each unit of a phase, or of a split of it, that
  // has so many steps; its box is number `box`.
  template <typename Visitor>
  __device__ __forceinline__ void visit_units(std::int32_t number, Visitor&& visitor) {
    const Geometry& g = here(p).geometry;
    const Steps steps = steps_of(number);
    std::int32_t unit = steps.first_unit, left = steps.end - steps.first, skipped = steps.skipped;
#pragma unroll 1
    while (left > 0) {
      const std::int32_t in_unit = g.unit_steps(phase(number).joined_taps, block(unit)) - skipped;
      UnitOfPhase next{number, unit};
      const bool is_last_of_split = g.splits.divisor > 1 && in_unit >= left;
      const bool has_next = !g.is_resident && !is_last_of_split && advance(next);
      visitor(min(in_unit, left), next, has_next);
      skipped = 0;
      left -= in_unit;
      ++unit;
      if (!g.is_resident) box = box_behind(box);
    }
  }
  __device__ __forceinline__ std::int32_t box_behind(std::int32_t number) const {
    const std::int32_t boxes = p.geometry.boxes;
    return boxes == 2 ? number ^ 1 : number + 1 == boxes ? 0 : number + 1;
  }
  // By all threads, at a unit's begin: where boxes differ in their pixels, that of the unit behind the next
  // one takes the place of this one's.
  __device__ __forceinline__ void write_table_behind(const UnitOfPhase& next, bool has_next) const {
    UnitOfPhase behind = next;
    if (p.geometry.pixel_tables > 1 && has_next && advance(behind)) write_table(behind, box);
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

  __device__ __forceinline__ void next_stage() {
    const std::uint32_t bytes = p.geometry.step_bytes(), next = stage + bytes;
    stage = next == memory.stages() + kStages * bytes ? memory.stages() : next;
  }

  // Begins to copy the weights of the step that is all other stages ahead, if there is one, to where the last
  // step's were; in any case a group of copies ends.
  __device__ __forceinline__ void copy_weights() {
    const std::uint32_t bytes = p.geometry.step_bytes(), first = memory.stages();
    copy_weights(stage == first ? first + (kStages - 1) * bytes : stage - bytes);
  }

 protected:
  __device__ __forceinline__ void write_second_table() const {
    if (p.geometry.pixel_tables == 1) return;
    UnitOfPhase unit{weights_phase_, steps_of(weights_phase_).first_unit};
    if (advance(unit)) write_table(unit, 1);
  }

  std::int32_t weights_phase_, weights_left_;  // steps of a phase that are to be copied
  const std::uint8_t* weights_;                // the thread's first piece of the next one

  // Behind a step's weights.
  __device__ __forceinline__ void advance_weights() {
    weights_ += p.geometry.step_bytes();
    if (--weights_left_ == 0 && p.geometry.block_phases > 1) next_weights();
  }

 private:
  static constexpr int kCopied = kThreads * kPieceBytes;  // by all threads at once

  __device__ __forceinline__ void copy_weights(std::uint32_t to) {
    if (weights_left_ > 0) {
      to += thread * kPieceBytes;
      const std::int32_t pieces = p.geometry.step_bytes() / kPieceBytes;
      if (has_piece(0, pieces)) ptx::cp_async_16_at<0>(to, weights_);
      if (has_piece(1, pieces)) ptx::cp_async_16_at<kCopied>(to, weights_);
      if (has_piece(2, pieces)) ptx::cp_async_16_at<2 * kCopied>(to, weights_);
      if (pieces > 3 * kThreads) {
        ptx::cp_async_16_at<3 * kCopied>(to, weights_);
        if (has_piece(4, pieces)) ptx::cp_async_16_at<4 * kCopied>(to, weights_);
      }
      advance_weights();
    }
    ptx::cp_async_commit();
  }
  // Whether the thread copies one of so many pieces when all threads copy for the nth time.
  __device__ __forceinline__ bool has_piece(int number, std::int32_t pieces) const {
    if constexpr (kIsCompiled) {
      if (number * kThreads >= pieces) return false;
      if ((number + 1) * kThreads <= pieces) return true;
    }
    return thread + number * kThreads < pieces;
  }
  // The thread's first piece of a step.
  __device__ __forceinline__ const std::uint8_t* weights_of(const Tile& tile, std::int32_t of_phase,
                                                            std::int32_t step) const {
    return static_cast<const std::uint8_t*>(launch.weights) + thread * kPieceBytes +
           p.geometry.packed_step(of_phase, tile.group, tile.filter_tile, step);
  }
  __device__ __forceinline__ void next_weights() {
    while (++weights_phase_ < here(p).geometry.block_phases) {
      weights_left_ = phase(weights_phase_).steps;
      if (weights_left_ == 0) continue;
      weights_ = static_cast<const std::uint8_t*>(here(launch).weights) + thread * kPieceBytes +
                 memory.phases()[weights_phase_].weights;
      return;
    }
  }
};

// By all threads: the box of the first unit. Nothing is multiplied meanwhile, so several rounds are under way
// at once.
template <typename Math>
__device__ __forceinline__ void load_first_box(const Pipeline& at) {
  constexpr int kRounds = 4;
  const BoxLoader<Math> loader(at.p, at.launch, at.thread);
  typename BoxLoader<Math>::Piece pieces[kRounds];
  std::int32_t phase = 0;
  while (at.phase(phase).steps == 0) ++phase;
  const std::int32_t block = at.block(at.steps_of(phase).first_unit);
#pragma unroll 1
  for (std::int32_t round = 0; round < loader.rounds(); round += kRounds) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      loader.load(at.table(0), block, round + i, at.box_address(0), pieces[i]);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) loader.store(pieces[i]);
  }
  ptx::cp_async_wait_all();
}

// Whether it is known of every step that it has eight pieces.
__device__ __forceinline__ bool has_all_pieces(const Geometry& g) {
  return kIsCompiled && g.block_pieces.divisor % kStepPieces == 0 && g.last_pieces % kStepPieces == 0;
}

// The products of a phase. kLoadsAhead: what two pieces have is loaded while two others are multiplied.
template <typename Math, typename Sums, bool kLoadsAhead, bool kFiltersAreRows>
class Mainloop {
 public:
  __device__ __forceinline__ explicit Mainloop(Pipeline& pipeline)
      : at_(pipeline), loader_(pipeline.p, pipeline.launch, pipeline.thread) {
    const int thread = ptx::thread_here();  // what is made of it is not kept from phase to phase
    const WarpPlace warp = WarpPlace::of<Sums>(at_.p.geometry, thread);
    const LanePlace row = LanePlace::of_rows(thread), column = LanePlace::of_columns(thread);
    const LanePlace& of_filters = kFiltersAreRows ? row : column;
    const int filter = (kFiltersAreRows ? warp.row : warp.column) + of_filters.line;
    filter_place_ = filter * kStepBytes + swizzled(filter, of_filters.piece);
    const int position = (kFiltersAreRows ? warp.column + column.line : warp.row + row.line);
#pragma unroll
    for (int i = 0; i < kPositionGroups; ++i) places_[i] = at_.memory.places()[position + 16 * i];
  }

  // Adds the products of the pipeline's next phase, or of a split of it.
  __device__ __forceinline__ void run(std::int32_t phase, Sums& sums) {
    at_.visit_units(phase, [&](std::int32_t steps, const Pipeline::UnitOfPhase& next, bool has_next) {
      run_unit(steps, next, has_next, sums);
    });
  }

 private:
  static constexpr int kPositionGroups = kFiltersAreRows ? Sums::kColumnTiles / 2 : Sums::kRowTiles;

  // A round of the next unit's box.
  __device__ __forceinline__ void load(std::int32_t block, std::int32_t round) {
    loader_.load(at_.table(at_.box ^ 1), block, round, at_.box_address(at_.box ^ 1), piece_);
  }

  // All steps of a unit, while the next one's box is brought.
  __device__ __forceinline__ void run_unit(std::int32_t steps, const Pipeline::UnitOfPhase& next,
                                           bool has_next, Sums& sums) {
    bool is_synchronized = false;
    if (at_.p.geometry.boxes > 1) {
      ptx::cp_async_wait_all();  // some are of the box
      __syncthreads();
      is_synchronized = true;
      at_.write_table_behind(next, has_next);
    }
    const std::uint32_t box = at_.box_address(at_.box);
    const std::int32_t block = at_.block(next.number);
    std::int32_t rounds = has_next ? loader_.rounds() : 0;
    while (rounds > steps) {  // the last ones first
      load(block, --rounds);
      loader_.store(piece_);
    }
#pragma unroll 1
    for (; steps > 0; --steps) {
      if (!is_synchronized) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
      }
      is_synchronized = false;
      const bool loads = has_next && --rounds >= 0;
      if (loads) {
        load(block, rounds);
      } else {
        piece_.clear();
      }
      at_.copy_weights();
      multiply(box, sums);
      if (loads) loader_.store(piece_);
      at_.next_stage();
    }
  }

  // What a thread has of two pieces of a step.
  struct Fragments {
    std::uint32_t rows[Sums::kRowTiles][4], columns[Sums::kColumnTiles / 2][4];
  };

  // A step; the unit's box is at `box`.
  __device__ __forceinline__ void multiply(std::uint32_t box, Sums& sums) const {
    int thread = at_.thread;
    if constexpr (!kIsCompiled) ptx::keep_here(thread);  // else the piece would be kept in memory
    const LanePlace of_positions =
        kFiltersAreRows ? LanePlace::of_columns(thread) : LanePlace::of_rows(thread);
    const std::uint32_t step = at_.stage + at_.p.geometry.tile_filters * kStepBytes;
    const uint4 in_box = ptx::load_shared(step + of_positions.piece * static_cast<int>(sizeof(uint4)));
    const bool is_full = has_all_pieces(at_.p.geometry) ||
                         __any_sync(0xFFFFFFFF, static_cast<std::int32_t>(in_box.z) != kNoPiece);
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
    const bool is_none = !has_all_pieces(at_.p.geometry) && static_cast<std::int32_t>(in_box) == kNoPiece;
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
  typename BoxLoader<Math>::Piece piece_;                // of the next unit's box
  std::int32_t filter_place_, places_[kPositionGroups];  // of the lane's fragments
};

}  // namespace epiconv::sm80
