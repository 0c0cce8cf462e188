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

// 16 bytes of filters at a time, all of which exist, of 16-bit elements. Pieces go to two places in turns, so
// that one is read while the next is computed.
template <typename Stored, int kPhases>
class FilterStore {
 public:
  __device__ __forceinline__ explicit FilterStore(const StoreTarget<Stored>& target)
      : target_(target), to_(target.filter(elements(0).filter)) {}

  // `is_first`: of those that this object stores.
  __device__ __forceinline__ void put(int piece, bool is_first, const float (&values)[kPieceAccumulators]) {
    const int place = filters_place(piece);
    stage(place, values);
    if (!is_first) store();
    __syncwarp();  // all lanes have read the piece before, too
    read(place, target_.offsets + piece * kPiecePixels);
  }
  __device__ __forceinline__ void finish(int) const { store(); }

 private:
  static constexpr int kSize = sizeof(Stored);
  static_assert(kSize == 2);
  static constexpr int kWidth = 16 / kSize;
  static constexpr int kTurns = stored_turns(kWidth);

  __device__ __forceinline__ StoredElements elements(int turn) const {
    return StoredElements::filters(kWidth, target_.lane, turn);
  }

  __device__ __forceinline__ void stage(int place, const float (&values)[kPieceAccumulators]) const {
    const std::uint32_t staging = ptx::shared_address(target_.staging) + place;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t matrices[4];
      pack_matrices<Stored>(values + h * kPieceWord, matrices);
      ptx::stmatrix_4(staging + filters_offset(8 * h, matrix_position<kPhases>(target_.lane)), matrices,
                      true);
    }
  }

  __device__ __forceinline__ void read(int place, const std::int32_t* offsets) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [filter, pixel] = elements(turn);
      offsets_[turn] = offsets[pixel];
      words_[turn] = *reinterpret_cast<const uint4*>(target_.staging + place + filters_offset(filter, pixel));
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

// One filter at a time, straight from the registers: of 32-bit elements eight lanes write a sector, and what
// goes through staging memory waits for it longer than that takes.
template <int kPhases>
class SingleFilterStore {
 public:
  __device__ __forceinline__ explicit SingleFilterStore(const StoreTarget<float>& target)
      : target_(target), to_(target.filter(target.lane / 4)) {}

  __device__ __forceinline__ void put(int piece, bool, const float (&values)[kPieceAccumulators]) const {
    const std::int32_t* const offsets = target_.offsets + piece * kPiecePixels;
#pragma unroll
    for (int i = 0; i < kPieceWord; i += 2) {
      const auto pair =
          *reinterpret_cast<const int2*>(offsets + piece_position<kPhases>(target_.lane % 4, i));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const std::int32_t offset = j == 0 ? pair.x : pair.y;
        if (offset < 0) continue;
        float* const to = to_ + static_cast<std::uint32_t>(offset);
        ptx::store_global(to, values[i + j]);
        ptx::store_global(to + 8, values[kPieceWord + i + j]);
      }
    }
  }
  __device__ __forceinline__ void finish(int) const {}

 private:
  const StoreTarget<float> target_;
  float* const to_;
};

// kWidth pixels at a time, of runs of two pieces, half of whose filters are read and stored at a time: what
// is read of a run last is read before the next run's first piece is staged.
template <typename Stored, int kWidth, int kPhases>
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
    constexpr int kFilters = 8 * kRunPixels * kSize;  // bytes of them
    if constexpr (kSize == 2 && kPhases == 1) {
      const std::uint32_t row = staging + offset(lane % 8, part * kPiecePixels + lane / 8 * 8);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t matrices[4];
        pack_matrices<Stored>(values + h * kPieceWord, matrices);
        ptx::stmatrix_4(row + h * kFilters, matrices, false);
      }
    } else {
      constexpr int kTogether = 2 * kPhases;         // values, side by side
      constexpr int kWords = kTogether * kSize / 4;  // of 4 bytes
      constexpr int kStep = 4 * kTogether * kSize;   // bytes to the lane's next ones
      constexpr int kWordsAtOnce = kWords < 4 ? kWords : 4;
      const std::uint32_t row =
          staging + offset(lane / 4, part * kPiecePixels + piece_position<kPhases>(lane % 4, 0));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t words[kPieceWord * kSize / 4];
        pack_words(values + h * kPieceWord, words);
#pragma unroll
        for (int j = 0; j < kPieceWord * kSize / 4; j += kWordsAtOnce) {
          const std::uint32_t to = (row ^ (j / kWords * kStep + j % kWords * 4)) + h * kFilters;
          if constexpr (kWordsAtOnce == 4) {
            ptx::store_shared(to, words[j], words[j + 1], words[j + 2], words[j + 3]);
          } else {
            ptx::store_shared(to, words[j], words[j + 1]);
          }
        }
      }
    }
  }

  // A filter's values as they are stored.
  static __device__ __forceinline__ void pack_words(const float* values,
                                                    std::uint32_t (&words)[kPieceWord * kSize / 4]) {
    if constexpr (kSize == 2) {
      pack_matrices<Stored>(values, words);
    } else {
#pragma unroll
      for (int i = 0; i < kPieceWord; ++i) words[i] = __float_as_uint(values[i]);
    }
  }

  static __device__ __forceinline__ std::int32_t offset(std::int32_t filter, std::int32_t pixel) {
    return pixels_offset<kPhases>(kSize, filter, pixel);
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
      words_[turn] = *reinterpret_cast<const Word*>(target_.staging + offset(filter, pixel));
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

// Four pixels of a filter at a time, straight from the registers: with two column phases or more a lane has
// them side by side, and four lanes have 64 bytes. float32.
template <int kPhases>
class QuadStore {
 public:
  __device__ __forceinline__ explicit QuadStore(const StoreTarget<float>& target) : target_(target) {}

  __device__ __forceinline__ void put(int piece, bool, const float (&values)[kPieceAccumulators]) const {
#pragma unroll
    for (int first = 0; first < kPieceWord; first += 4) {
      const std::int32_t offset =
          target_.offsets[piece * kPiecePixels + piece_position<kPhases>(target_.lane % 4, first)];
      if (offset < 0) continue;
      float* to =
          target_.output + target_.lane / 4 * target_.filter_stride + static_cast<std::uint32_t>(offset);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* const from = values + h * kPieceWord + first;
        ptx::store_global(to, float4{from[0], from[1], from[2], from[3]});
        to += 8 * target_.filter_stride;
      }
    }
  }
  __device__ __forceinline__ void finish(int) const {}

 private:
  const StoreTarget<float> target_;
};

}  // namespace epiconv::sm90
