// The store stage: a warpgroup's accumulators become the output, by way of the program. Each warp works on
// its own 16 filters, in pieces of 32 pixels: it runs the program on the accumulators, rounds, and passes the
// piece through its own staging memory so that its stores are wide.
#pragma once

#include <type_traits>

#include "device/ptx/keep_here.h"
#include "device/ptx/stmatrix.h"
#include "sm90/conv_chunk.h"
#include "sm90/fragments.h"

namespace epiconv::sm90 {

// Two values as 16-bit elements side by side.
template <typename Stored>
__device__ __forceinline__ std::uint32_t packed_pair(float first, float second) {
  const Stored pair[] = {to_stored<Stored>(first), to_stored<Stored>(second)};
  std::uint32_t packed;
  memcpy(&packed, pair, sizeof(packed));
  return packed;
}
template <>
__device__ __forceinline__ std::uint32_t packed_pair<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  std::uint32_t packed;
  memcpy(&packed, &pair, sizeof(packed));
  return packed;
}

// Writes a piece to staging memory, as the output's elements. Values are in the order of the chunk's words.
template <typename Stored>
__device__ __forceinline__ void stage_piece(std::uint8_t* staging, bool channels_last, int lane,
                                            const float (&values)[kPieceAccumulators]) {
  constexpr int kSize = sizeof(Stored);
  constexpr int kWord = kPieceAccumulators / 2;
  if constexpr (kSize == 2) {
    const int matrix = lane / 8, row = lane % 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t matrices[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        matrices[j] = packed_pair<Stored>(values[h * kWord + 2 * j], values[h * kWord + 2 * j + 1]);
      }
      const int filter = 8 * h + (channels_last ? 0 : row);
      const int pixel = 8 * matrix + (channels_last ? row : 0);
      ptx::stmatrix_4(staging + staging_offset(channels_last, kSize, filter, pixel), matrices, channels_last);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPieceAccumulators; i += 2) {
      const float first = values[i / 2 % 2 * kWord + i / 4 * 2];
      const float second = values[i / 2 % 2 * kWord + i / 4 * 2 + 1];
      const int filter = accumulator_filter(lane, i);
      const int pixel = accumulator_position(lane, i);
      auto* const to =
          reinterpret_cast<float*>(staging + staging_offset(channels_last, kSize, filter, pixel));
      if (channels_last) {
        to[0] = first;
        to[staging_pitch(true, kSize) / kSize] = second;
      } else {
        *reinterpret_cast<float2*>(to) = {first, second};
      }
    }
  }
}

// How a piece's elements are stored.
enum class StoreKind { kVectorsOfFilters, kPairsOfPixels, kPixels };

// A piece's way through staging memory to the output.
template <typename Stored, StoreKind kKind>
class PieceStore {
 public:
  static constexpr bool kChannelsLast = kKind == StoreKind::kVectorsOfFilters;
  static constexpr int kWidth = kChannelsLast                        ? 16 / sizeof(Stored)
                                : kKind == StoreKind::kPairsOfPixels ? 2
                                                                     : 1;

  // Looks up where the lane's elements go: ahead of their use, since that takes a while. `offsets` are the
  // piece's.
  __device__ __forceinline__ PieceStore(const std::int32_t* offsets, std::uint8_t* staging, int lane)
      : staging_(staging), lane_(lane) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) offsets_[turn] = offsets[elements(turn).pixel];
  }

  __device__ __forceinline__ void stage(const float (&values)[kPieceAccumulators]) const {
    stage_piece<Stored>(staging_, kChannelsLast, lane_, values);
  }

  // `to` is the lane's first filter where offsets count from, `step` leads to its filter of the next turn,
  // and `filters` are left from the warp's first on.
  __device__ __forceinline__ void run(Stored* to, std::int64_t step, int filters) const {
    using Word = Packed<Stored, kWidth>;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [filter, pixel] = elements(turn);
      const Word word = *reinterpret_cast<const Word*>(
          staging_ + staging_offset(kChannelsLast, sizeof(Stored), filter, pixel));
      if (offsets_[turn] >= 0 && filter < filters) *reinterpret_cast<Word*>(to + offsets_[turn]) = word;
      if constexpr (!kChannelsLast) to += step;
    }
  }

  // The lane's first filter, and how many filters lie between its turns.
  __device__ __forceinline__ int first_filter() const { return elements(0).filter; }
  static constexpr int kFilterStep = kChannelsLast ? 0 : kWidth;

 private:
  static constexpr int kTurns = stored_turns(kWidth);

  __device__ __forceinline__ StoredElements elements(int turn) const {
    return kChannelsLast ? StoredElements::filters(kWidth, lane_, turn)
                         : StoredElements::pixels(kWidth, lane_, turn);
  }

  std::uint8_t* staging_;
  int lane_;
  std::int32_t offsets_[kTurns];
};

// Calls visitor.operator()<Stored, kKind>().
template <typename Visitor>
__device__ __forceinline__ void visit_store(const EpilogueParameters& pass, Visitor&& visitor) {
  visit_floating<float>(pass.output.dtype, [&]<typename Stored>() {
    if (pass.channels_last) {
      visitor.template operator()<Stored, StoreKind::kVectorsOfFilters>();
    } else if (pass.in_pairs) {
      visitor.template operator()<Stored, StoreKind::kPairsOfPixels>();
    } else {
      visitor.template operator()<Stored, StoreKind::kPixels>();
    }
  });
}

// A warpgroup's tables, and which they are; `thread` is of the warpgroup.
struct TileMemory {
  std::int32_t* offsets;
  float* of_filters;
  std::int32_t* held;  // pattern and group; in shared memory, since registers are scarce

  __device__ __forceinline__ static TileMemory at(std::uint8_t* memory) {
    auto* const offsets = reinterpret_cast<std::int32_t*>(memory);
    auto* const of_filters = reinterpret_cast<float*>(offsets + kTilePixels);
    return {offsets, of_filters,
            reinterpret_cast<std::int32_t*>(of_filters + kNumFilterOperands * kGroupFilters)};
  }

  __device__ __forceinline__ void forget() const { held[0] = held[1] = -1; }
  __device__ __forceinline__ bool holds(std::int32_t pattern, std::int32_t group) const {
    return pattern >= 0 && held[0] == pattern && held[1] == group;
  }

  __device__ __forceinline__ bool holds_group(std::int32_t group) const { return held[1] == group; }

  // `group` is the warpgroup's first filter; `holds_group` was asked before the warps met.
  __device__ __forceinline__ void fill(const EpilogueParameters& pass, const TileTables& tables,
                                       std::int32_t pattern, std::int32_t group, bool holds_group,
                                       int thread) const {
    fill_offsets(pass, tables, thread);
    if (!holds_group) fill_of_filters(pass, tables.g, group, thread);
    if (thread == 0) {
      held[0] = pattern;
      held[1] = group;
    }
  }

 private:
  __device__ __forceinline__ void fill_offsets(const EpilogueParameters& pass, const TileTables& tables,
                                               int thread) const {
#pragma unroll
    for (int at = thread; at < kTilePixels; at += kTilePixels / 2) {
      const Pixel pixel = Pixel::of(tables.g, tables.tile, at);
      const auto& strides = pass.output.strides;
      offsets[at] = pixel.valid ? (pixel.n - tables.image) * strides[0] +
                                      (pixel.p - tables.first_row()) * strides[2] + pixel.q * strides[3]
                                : -1;
    }
  }

  __device__ __forceinline__ void fill_of_filters(const EpilogueParameters& pass, const HaloGeometry& g,
                                                  std::int32_t group, int thread) const {
    const int filter = min(group + thread % kGroupFilters, g.filters - 1);
    for (int i = thread / kGroupFilters; i < pass.num_of_filters; i += 2) {
      const int place = pass.of_filters[i];
      const PixelTensor& tensor = pass.operands[place];
      of_filters[place * kGroupFilters + thread % kGroupFilters] = load_element<float>(
          tensor.data, tensor.dtype, static_cast<std::int64_t>(filter) * tensor.strides[1]);
    }
  }
};

template <typename Evaluator>
class TileStore {
 public:
  // `group` and `warp_filter` are the first filter of the warpgroup and, of the group's, of the warp.
  __device__ __forceinline__ TileStore(const EpilogueParameters& pass, const TileTables& tables,
                                       std::int32_t group, std::int32_t warp_filter, std::uint8_t* staging)
      : pass_(pass),
        tables_(tables),
        group_(group),
        warp_filter_(warp_filter),
        staging_(staging),
        lane_(ptx::lane_here()) {}

  __device__ __forceinline__ void run(float (&accumulators)[kAccumulators]) const {
    if (group_ + warp_filter_ >= tables_.g.filters) return;
    if constexpr (!Evaluator::kTakesFoldedSteps) {
      float ones[kNumOperandPlaces][2];
      load_ones(ones);
      store_all(accumulators,
                [&](int piece, float (&values)[kPieceAccumulators]) { evaluate(piece, ones, values); });
    } else if (pass_.runs_in_place) {
      run_folded_steps(accumulators);
      store_all(accumulators, [](int, float (&)[kPieceAccumulators]) {});
    } else {
      store_each(accumulators);
    }
  }

 private:
  static constexpr int kWord = kPieceAccumulators / 2;  // positions of a filter in a piece

  // A piece's accumulators, in the order of a chunk's words. `kInBranch`: behind a branch, which must stay
  // one; the compiler would select among all accumulators instead, at eight times the instructions.
  template <bool kInBranch>
  static __device__ __forceinline__ void take(const float (&accumulators)[kAccumulators], int piece,
                                              float (&values)[kPieceAccumulators]) {
#pragma unroll
    for (int i = 0; i < kPieceAccumulators; ++i) {
      float& value = values[i / 2 % 2 * kWord + i / 4 * 2 + i % 2];
      value = accumulators[piece * kPieceAccumulators + i];
      if constexpr (kInBranch) ptx::keep_here(value);
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

  __device__ __forceinline__ void evaluate(int piece, const float (*ones)[2],
                                           float (&values)[kPieceAccumulators]) const {
    using Shape = typename Evaluator::Shape;
#pragma unroll
    for (int part = 0; part < kWord; part += Shape::kWord) {
      const Chunk<Shape> chunk{
          pass_, tables_, warp_filter_ + lane_ / 4, group_, piece * kPiecePixels + 2 * (lane_ % 4) + 4 * part,
          ones};
      float mine[Shape::kCount];
#pragma unroll
      for (int i = 0; i < Shape::kCount; ++i) {
        mine[i] = values[i / Shape::kWord * kWord + part + i % Shape::kWord];
      }
      Evaluator::template run<Part::kAll>(chunk, mine);
#pragma unroll
      for (int i = 0; i < Shape::kCount; ++i) {
        values[i / Shape::kWord * kWord + part + i % Shape::kWord] = mine[i];
      }
    }
  }

  // A program of sums, clamps and products with one element for each filter, step by step over the whole
  // tile.
  __device__ __forceinline__ void run_folded_steps(float (&accumulators)[kAccumulators]) const {
#pragma unroll 1
    for (int i = 0; i < pass_.num_steps; ++i) {
      const Step<float>& step = pass_.steps[i];
      const int fetches = pass_.fetches[i];
      float sum[2] = {step.number[1], step.number[1]};
      float factor[2] = {step.number[2], step.number[2]};
      if (fetches != 0) {
        const bool is_sum = fetches == kFetchB;
        const float* const row =
            tables_.of_filters + step.index[is_sum ? 1 : 2] * kGroupFilters + warp_filter_ + lane_ / 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float one = row[8 * h];
          sum[h] = is_sum ? one : sum[h];
          factor[h] = is_sum ? factor[h] : one;
        }
      }
      const float least = step.p, most = step.q;
#pragma unroll
      for (int j = 0; j < kAccumulators; ++j) {
        const int h = j / 2 % 2;
        const float value = ops::math::maximum(accumulators[j] + sum[h], least);
        accumulators[j] = ops::math::minimum(value, most) * factor[h];
      }
    }
  }

  template <typename Stored>
  __device__ __forceinline__ Stored* output(int filter) const {
    return static_cast<Stored*>(const_cast<void*>(pass_.output.data)) + tables_.begin(pass_.output) +
           static_cast<std::int64_t>(group_ + warp_filter_ + filter) * pass_.output.strides[1];
  }

  // Piece after piece: while one is computed, the one before is on its way through staging memory.
  template <typename Evaluate>
  __device__ __forceinline__ void store_all(const float (&accumulators)[kAccumulators],
                                            Evaluate&& evaluate_piece) const {
    visit_store(pass_, [&]<typename Stored, StoreKind kKind>() {
      using Piece = PieceStore<Stored, kKind>;
      const std::int64_t step = static_cast<std::int64_t>(Piece::kFilterStep) * pass_.output.strides[1];
      const int filters = tables_.g.filters - group_ - warp_filter_;
      Piece before(tables_.offsets, staging_, lane_);
      Stored* const to = output<Stored>(before.first_filter());
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const Piece current(tables_.offsets + piece * kPiecePixels, staging_ + piece % 2 * kPieceStagingBytes,
                            lane_);
        float values[kPieceAccumulators];
        take<false>(accumulators, piece, values);
        evaluate_piece(piece, values);
        if (piece > 0) {
          __syncwarp();
          before.run(to, step, filters);
        }
        current.stage(values);
        before = current;
      }
      __syncwarp();
      before.run(to, step, filters);
    });
  }

  // The same with an interpreter, whose code is too long to stand here for each piece or each way to store.
  __device__ __forceinline__ void store_each(const float (&accumulators)[kAccumulators]) const {
#pragma unroll 1
    for (int piece = 0; piece < kPieces; ++piece) {
      float values[kPieceAccumulators];
#pragma unroll
      for (int c = 0; c < kPieces; ++c) {
        if (c != piece) continue;
        take<true>(accumulators, c, values);
      }
      evaluate(piece, nullptr, values);
      visit_store(pass_, [&]<typename Stored, StoreKind kKind>() {
        using Piece = PieceStore<Stored, kKind>;
        const Piece current(tables_.offsets + piece * kPiecePixels, staging_, lane_);
        current.stage(values);
        __syncwarp();
        current.run(output<Stored>(current.first_filter()),
                    static_cast<std::int64_t>(Piece::kFilterStep) * pass_.output.strides[1],
                    tables_.g.filters - group_ - warp_filter_);
        __syncwarp();
      });
    }
  }

  const EpilogueParameters& pass_;
  const TileTables& tables_;
  const std::int32_t group_;
  const std::int32_t warp_filter_;
  std::uint8_t* const staging_;
  const int lane_;
};

}  // namespace epiconv::sm90
