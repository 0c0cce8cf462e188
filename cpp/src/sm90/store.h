// The store stage: a warpgroup's accumulators become the output, by way of the program. Each warp works on
// its own 16 filters, in pieces of 32 pixels: it runs the program on the accumulators, rounds, and stores.
#pragma once

#include "sm90/box_store.h"
#include "sm90/in_place.h"
#include "sm90/piece_store.h"
#include "sm90/sector_store.h"
#include "sm90/tile_memory.h"

namespace epiconv::sm90 {

// Whether a kernel is for joint rows, too; the others spend nothing on them.
template <typename Evaluator>
constexpr bool may_be_joint() {
  return Evaluator::Shape::kPhases == 1 && Evaluator::kMayHaveNorm;
}

template <typename Evaluator>
class TileStore {
 public:
  // `group` is the first filter of the warpgroup.
  __device__ __forceinline__ TileStore(const ConvParameters& p, const TileTables& tables, std::int32_t group,
                                       const ConsumerWarp& warp)
      : p_(p),
        pass_(p.epilogue),
        tables_(tables),
        group_(group),
        warp_(warp),
        warp_filter_(kMayBeJoint ? WarpRows::of(tables.g, warp.index).filter : warp.index * kWarpFilters),
        lane_(ptx::lane_here()) {}

  // Leaves in the accumulators what a part of the program makes of them.
  __device__ __forceinline__ void compute(Part part, float (&accumulators)[kAccumulators]) const {
    if constexpr (Evaluator::kIsStatic) {
      float ones[kNumOperandPlaces][2];
      load_ones(ones);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        float values[kPieceAccumulators];
        take<false>(accumulators, piece, values);
        evaluate(part, piece, ones, values);
        put_back<false>(values, piece, accumulators);
      }
    } else if (pass_.runs_in_place) {
      run_in_place(pass_, PartSteps::of(part, pass_), tables_.of_filters + warp_filter_ + lane_ / 4,
                   accumulators);
    } else {
#pragma unroll 1
      for (int piece = 0; piece < kPieces; ++piece) {
        float values[kPieceAccumulators];
#pragma unroll
        for (int c = 0; c < kPieces; ++c) {
          if (c == piece) take<true>(accumulators, c, values);
        }
        evaluate(part, piece, nullptr, values);
#pragma unroll
        for (int c = 0; c < kPieces; ++c) {
          if (c == piece) put_back<true>(values, c, accumulators);
        }
      }
    }
  }

  // What `compute` has left.
  __device__ __forceinline__ void store(const float (&accumulators)[kAccumulators]) const {
    if (stores_nothing()) return;
    store_all(accumulators, [](int, float (&)[kPieceAccumulators]) {});
  }

  // Stores what a part of the program makes of them.
  __device__ __forceinline__ void run(Part part, float (&accumulators)[kAccumulators]) const {
    if (stores_nothing()) return;
    if constexpr (Evaluator::kIsStatic) {
      float ones[kNumOperandPlaces][2];
      load_ones(ones);
      store_all(accumulators,
                [&](int piece, float (&values)[kPieceAccumulators]) { evaluate(part, piece, ones, values); });
    } else if (pass_.runs_in_place) {
      compute(part, accumulators);
      store(accumulators);
    } else {
      store_each(part, accumulators);
    }
  }

 private:
  static constexpr int kPhases = Evaluator::Shape::kPhases;
  static constexpr bool kMayBeJoint = may_be_joint<Evaluator>();

  __device__ __forceinline__ bool stores_nothing() const {
    // All warps of the group take part in storing boxes.
    if (group_ + warp_filter_ >= tables_.g.filters && pass_.store != StoreKind::kBoxes) return true;
    return kMayBeJoint && pass_.store == StoreKind::kSectors && tables_.first_row() >= tables_.g.out_height;
  }

  // A piece's accumulators, in the order of a chunk's words. `kInBranch`: behind a branch, which must stay
  // one; the compiler would select among all accumulators instead, at eight times the instructions.
  template <bool kInBranch>
  static __device__ __forceinline__ void take(const float (&accumulators)[kAccumulators], int piece,
                                              float (&values)[kPieceAccumulators]) {
#pragma unroll
    for (int i = 0; i < kPieceAccumulators; ++i) {
      values[i] = accumulators[piece_accumulator<kPhases>(piece, i / kPieceWord, i % kPieceWord)];
      if constexpr (kInBranch) ptx::keep_here(values[i]);
    }
  }

  template <bool kInBranch>
  static __device__ __forceinline__ void put_back(float (&values)[kPieceAccumulators], int piece,
                                                  float (&accumulators)[kAccumulators]) {
#pragma unroll
    for (int i = 0; i < kPieceAccumulators; ++i) {
      if constexpr (kInBranch) ptx::keep_here(values[i]);
      accumulators[piece_accumulator<kPhases>(piece, i / kPieceWord, i % kPieceWord)] = values[i];
    }
  }

  // The operands of filters, once for all pieces; those that a static program does not read cost nothing.
  __device__ __forceinline__ void load_ones(float (&ones)[kNumOperandPlaces][2]) const {
#pragma unroll
    for (int i = 0; i < kNumOperandPlaces; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        ones[i][h] = tables_.of_filters[i * kGroupFilters + warp_filter_ + lane_ / 4 + 8 * h];
      }
    }
  }

  __device__ __forceinline__ void evaluate(Part part, int piece, const float (*ones)[2],
                                           float (&values)[kPieceAccumulators]) const {
    using Shape = typename Evaluator::Shape;
#pragma unroll
    for (int begin = 0; begin < kPieceWord; begin += Shape::kWord) {
      const Chunk<Shape> chunk{pass_,
                               tables_,
                               warp_filter_ + lane_ / 4,
                               group_,
                               piece * kPiecePixels + piece_position<kPhases>(lane_ % 4, begin),
                               ones};
      float mine[Shape::kCount];
#pragma unroll
      for (int i = 0; i < Shape::kCount; ++i) {
        mine[i] = values[i / Shape::kWord * kPieceWord + begin + i % Shape::kWord];
      }
      Evaluator::run(part, chunk, mine);
#pragma unroll
      for (int i = 0; i < Shape::kCount; ++i) {
        values[i / Shape::kWord * kPieceWord + begin + i % Shape::kWord] = mine[i];
      }
    }
  }

  template <typename Stored>
  __device__ __forceinline__ StoreTarget<Stored> target() const {
    const std::int64_t filter_stride = pass_.output.strides[1];
    return {static_cast<Stored*>(const_cast<void*>(pass_.output.data)) + tables_.begin(pass_.output) +
                (group_ + warp_filter_) * filter_stride,
            filter_stride,
            tables_.g.filters - group_ - warp_filter_,
            tables_.offsets,
            warp_.staging(),
            lane_};
  }

  // Calls visitor(store) with what stores this warp's pieces.
  template <typename Visitor>
  __device__ __forceinline__ void visit_store(Visitor&& visitor) const {
    visit_floating<float>(pass_.output.dtype, [&]<typename Stored>() {
      const StoreTarget<Stored> to = target<Stored>();
      if (pass_.store == StoreKind::kBoxes) {
        visitor(BoxStore<Stored, kPhases>(p_, tables_, group_, warp_, lane_));
        return;
      }
      if constexpr (kPhases > 1 && sizeof(Stored) == sizeof(float)) {
        if (to.filters >= kWarpFilters && pass_.store == StoreKind::kQuadsOfPixels) {
          visitor(QuadStore<kPhases>(to));
          return;
        }
      }
      if constexpr (kPhases == 1 && sizeof(Stored) == sizeof(float)) {
        if (to.filters >= kWarpFilters && pass_.store == StoreKind::kSectors) {
          visitor(SectorStore(to, tables_));
          return;
        }
      }
      if (to.filters < kWarpFilters || pass_.store == StoreKind::kPixels) {
        visitor(PixelStore<Stored, 1, kPhases>(to));
      } else if (pass_.store == StoreKind::kPairsOfPixels) {
        visitor(PixelStore<Stored, 2, kPhases>(to));
      } else if constexpr (sizeof(Stored) == sizeof(float)) {
        visitor(SingleFilterStore<kPhases>(to));
      } else {
        visitor(FilterStore<Stored, kPhases>(to));
      }
    });
  }

  template <typename Evaluate>
  __device__ __forceinline__ void store_all(const float (&accumulators)[kAccumulators],
                                            Evaluate&& evaluate_piece) const {
    visit_store([&](auto store) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        float values[kPieceAccumulators];
        take<false>(accumulators, piece, values);
        evaluate_piece(piece, values);
        store.put(piece, piece == 0, values);
      }
      store.finish(kPieces - 1);
    });
  }

  // The same with an interpreter, whose code is too long to stand here for each piece or each way to store.
  __device__ __forceinline__ void store_each(Part part, const float (&accumulators)[kAccumulators]) const {
#pragma unroll 1
    for (int piece = 0; piece < kPieces; ++piece) {
      float values[kPieceAccumulators];
#pragma unroll
      for (int c = 0; c < kPieces; ++c) {
        if (c != piece) continue;
        take<true>(accumulators, c, values);
      }
      evaluate(part, piece, nullptr, values);
      visit_store([&](auto store) {
        store.put(piece, true, values);
        store.finish(piece);
      });
    }
  }

  const ConvParameters& p_;
  const EpilogueParameters& pass_;
  const TileTables& tables_;
  const std::int32_t group_;
  const ConsumerWarp& warp_;
  const std::int32_t warp_filter_;
  const int lane_;
};

}  // namespace epiconv::sm90
