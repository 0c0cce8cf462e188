// Stores pieces of 32 pixels in a way that any output allows: through the warp's own staging memory, so that
// its stores are wide.
#pragma once

#include <type_traits>

#include "device/ptx/stmatrix.h"
#include "device/ptx/store_global.h"
#include "sm90/store_target.h"

namespace epiconv::sm90 {

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
      ptx::stmatrix_4(ptx::shared_address(staging) + staging_offset(channels_last, kSize, filter, pixel),
                      matrices, channels_last);
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

// How a piece's elements are stored: 16 bytes of filters, or two pixels at a time, which take a warp whose
// filters all exist; or one element at a time.
enum class PieceWords { kFilters, kPairsOfPixels, kPixels };

// Pieces are staged, read back in the order in which they are stored, and stored when the next one has been
// computed, since reading takes long beside the tensor cores.
template <typename Stored, PieceWords kWords>
class PieceStore {
 public:
  __device__ __forceinline__ explicit PieceStore(const StoreTarget<Stored>& target)
      : target_(target), to_(target.filter(elements(0).filter)), step_(kFilterStep * target.filter_stride) {}

  // `is_first`: of those that this object stores.
  __device__ __forceinline__ void put(int piece, bool is_first, const float (&values)[kPieceAccumulators]) {
    if (!is_first) store();
    stage_piece<Stored>(target_.staging, kChannelsLast, target_.lane, values);
    __syncwarp();
    read(target_.offsets + piece * kPiecePixels);
    __syncwarp();  // before the next piece is staged
  }
  __device__ __forceinline__ void finish() const { store(); }

 private:
  static constexpr bool kChannelsLast = kWords == PieceWords::kFilters;
  static constexpr int kWidth = kChannelsLast                          ? 16 / sizeof(Stored)
                                : kWords == PieceWords::kPairsOfPixels ? 2
                                                                       : 1;
  using Word = Packed<Stored, kWidth>;
  static constexpr int kTurns = stored_turns(kWidth);
  static constexpr int kFilterStep = kChannelsLast ? 0 : kWidth;  // from one turn to the next

  __device__ __forceinline__ StoredElements elements(int turn) const {
    return kChannelsLast ? StoredElements::filters(kWidth, target_.lane, turn)
                         : StoredElements::pixels(kWidth, target_.lane, turn);
  }

  __device__ __forceinline__ void read(const std::int32_t* offsets) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [filter, pixel] = elements(turn);
      offsets_[turn] = offsets[pixel];
      words_[turn] = *reinterpret_cast<const Word*>(
          target_.staging + staging_offset(kChannelsLast, sizeof(Stored), filter, pixel));
    }
  }

  __device__ __forceinline__ void store() const {
    Stored* to = to_;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (offsets_[turn] >= 0 && (kWords != PieceWords::kPixels || elements(turn).filter < target_.filters)) {
        ptx::store_global(to + static_cast<std::uint32_t>(offsets_[turn]), words_[turn]);
      }
      if constexpr (!kChannelsLast) to += step_;
    }
  }

  const StoreTarget<Stored> target_;
  Stored* const to_;
  const std::int64_t step_;
  std::int32_t offsets_[kTurns];
  Word words_[kTurns];
};

}  // namespace epiconv::sm90
