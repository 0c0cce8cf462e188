// Stores pieces of 32 pixels in a way that any output allows: through the warp's own staging memory, so that
// its stores are wide. They are read back in the order in which they are stored, and stored when the next
// piece has been computed, since reading takes long beside the tensor cores.
#pragma once

#include <type_traits>

#include "device/ptx/stmatrix.h"
#include "device/ptx/store_global.h"
#include "device/ptx/store_shared.h"
#include "sm90/store_target.h"

namespace epiconv::sm90 {

// Values of a piece are in the order of a chunk's words: this many of each of two filters.
inline constexpr int kPieceWord = kPieceAccumulators / 2;

template <typename Stored>
__device__ __forceinline__ void pack_matrices(const float* values, std::uint32_t (&matrices)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) matrices[j] = packed_pair<Stored>(values[2 * j], values[2 * j + 1]);
}

// 16 bytes of filters at a time, all of which exist.
template <typename Stored>
class FilterStore {
 public:
  __device__ __forceinline__ explicit FilterStore(const StoreTarget<Stored>& target)
      : target_(target), to_(target.filter(elements(0).filter)) {}

  // `is_first`: of those that this object stores.
  __device__ __forceinline__ void put(int piece, bool is_first, const float (&values)[kPieceAccumulators]) {
    if (!is_first) store();
    stage(values);
    __syncwarp();
    read(target_.offsets + piece * kPiecePixels);
    __syncwarp();  // before the next piece is staged
  }
  __device__ __forceinline__ void finish(int) const { store(); }

 private:
  static constexpr int kSize = sizeof(Stored);
  static constexpr int kWidth = 16 / kSize;
  static constexpr int kTurns = stored_turns(kWidth);

  __device__ __forceinline__ StoredElements elements(int turn) const {
    return StoredElements::filters(kWidth, target_.lane, turn);
  }

  __device__ __forceinline__ void stage(const float (&values)[kPieceAccumulators]) const {
    const std::uint32_t staging = ptx::shared_address(target_.staging);
    if constexpr (kSize == 2) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t matrices[4];
        pack_matrices<Stored>(values + h * kPieceWord, matrices);
        ptx::stmatrix_4(staging + filters_offset(kSize, 8 * h, target_.lane), matrices, true);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPieceAccumulators; ++i) {
        const std::int32_t offset =
            filters_offset(kSize, accumulator_filter(target_.lane, i), accumulator_position(target_.lane, i));
        ptx::store_shared(staging + offset, values[i / 2 % 2 * kPieceWord + i / 4 * 2 + i % 2]);
      }
    }
  }

  __device__ __forceinline__ void read(const std::int32_t* offsets) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [filter, pixel] = elements(turn);
      offsets_[turn] = offsets[pixel];
      words_[turn] = *reinterpret_cast<const uint4*>(target_.staging + filters_offset(kSize, filter, pixel));
    }
  }

  __device__ __forceinline__ void store() const {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (offsets_[turn] >= 0) {
        ptx::store_global(to_ + static_cast<std::uint32_t>(offsets_[turn]), words_[turn]);
      }
    }
  }

  const StoreTarget<Stored> target_;
  Stored* const to_;
  std::int32_t offsets_[kTurns];
  uint4 words_[kTurns];
};

// kWidth pixels at a time, of runs of two pieces, half of whose filters are read and stored at a time: what
// is read of a run last is read before the next run's first piece is staged.
template <typename Stored, int kWidth>
class PixelStore {
 public:
  __device__ __forceinline__ explicit PixelStore(const StoreTarget<Stored>& target) : target_(target) {}

  // Pieces from the first of a run on, one after another. `is_first`: of those that this object stores.
  __device__ __forceinline__ void put(int piece, bool is_first, const float (&values)[kPieceAccumulators]) {
    if (piece % kRunPieces == 0) {
      if (!is_first) {
        store(0);
        read(1);
        __syncwarp();
      }
      stage(0, values);
    } else {
      if (piece != 1 && !is_first) store(1);
      stage(1, values);
      __syncwarp();
      read_offsets(piece / kRunPieces);
      read(0);
    }
  }
  // Stores what is left of the run, if that was its last piece.
  __device__ __forceinline__ void finish(int piece) {
    if (piece % kRunPieces + 1 < kRunPieces) return;
    store(0);
    read(1);
    __syncwarp();
    store(1);
  }

 private:
  static constexpr int kSize = sizeof(Stored);
  static constexpr int kTurns = stored_turns(kWidth);        // of half of the filters
  static constexpr int kParts = kRunPixels / (32 * kWidth);  // turns of a filter
  using Word = Packed<Stored, kWidth>;

  // The warp's pieces of a run lie side by side.
  __device__ __forceinline__ void stage(int part, const float (&values)[kPieceAccumulators]) const {
    const std::uint32_t staging = ptx::shared_address(target_.staging);
    const int lane = target_.lane;
    if constexpr (kSize == 2) {
      const std::uint32_t row = staging + pixels_offset(kSize, lane % 8, part * kPiecePixels + lane / 8 * 8);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t matrices[4];
        pack_matrices<Stored>(values + h * kPieceWord, matrices);
        ptx::stmatrix_4(row + h * 8 * kRunPixels * kSize, matrices, false);
      }
    } else {
      const std::uint32_t row =
          staging + pixels_offset(kSize, lane / 4, part * kPiecePixels + 2 * (lane % 4));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < kPiecePixels / 8; ++j) {
          ptx::store_shared((row ^ (32 * j)) + h * 8 * kRunPixels * kSize, values[h * kPieceWord + 2 * j],
                            values[h * kPieceWord + 2 * j + 1]);
        }
      }
    }
  }

  // Of the run's positions that this lane stores, for every filter the same.
  __device__ __forceinline__ void read_offsets(int run) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      offsets_[part] =
          target_.offsets[run * kRunPixels + StoredElements::pixels(kWidth, target_.lane, part).pixel];
    }
  }

  // The first or second half of the filters.
  __device__ __forceinline__ void read(int half) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [filter, pixel] = StoredElements::pixels(kWidth, target_.lane, half * kTurns + turn);
      words_[turn] = *reinterpret_cast<const Word*>(target_.staging + pixels_offset(kSize, filter, pixel));
    }
  }

  __device__ __forceinline__ void store(int half) const {
    Stored* to[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      to[part] = target_.output + half * kTurns / kParts * target_.filter_stride +
                 static_cast<std::uint32_t>(offsets_[part]);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int part = turn % kParts, filter = half * kTurns / kParts + turn / kParts;
      if (offsets_[part] >= 0 && (kWidth > 1 || filter < target_.filters)) {
        ptx::store_global(to[part], words_[turn]);
      }
      to[part] += target_.filter_stride;
      // One from the other: the compiler would multiply, at twice the instructions.
      ptx::keep_here(to[part]);
    }
  }

  const StoreTarget<Stored> target_;
  std::int32_t offsets_[kParts];
  Word words_[kTurns];
};

}  // namespace epiconv::sm90
