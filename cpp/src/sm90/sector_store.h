// Stores pieces of 32 pixels of 32-bit elements in whole sectors of 32 bytes, by way of rings of pairs in the
// warp's own staging memory (stored_pairs.h), 128 bytes of four filters at a time.
#pragma once

#include "device/ptx/load_shared.h"
#include "device/ptx/store_global.h"
#include "device/ptx/store_shared.h"
#include "sm90/conv_chunk.h"
#include "sm90/store_target.h"

namespace epiconv::sm90 {

class SectorStore {
 public:
  __device__ __forceinline__ SectorStore(const StoreTarget<float>& target, const TileTables& tables)
      : target_(target),
        pairs_(*tables.pairs),
        to_(target.output + min(tables.tile.offset, tables.g.out_width)) {}

  // Pieces from any on, one after another.
  __device__ __forceinline__ void put(int piece, bool is_first, const float (&values)[kPieceAccumulators]) {
    if (is_first) {
      behind_ = pairs_.before[piece];
      prepare(piece);
    }
    stage(values);
    if (!is_first) store(piece - 1);
    __syncwarp();
    read(whole_sectors(next_behind_));
    if (piece + 1 < kPieces) prepare(piece + 1);
    __syncwarp();  // before the next piece is staged
  }
  __device__ __forceinline__ void finish(int piece) {
    store(piece);
    if (piece + 1 < kPieces) return;
    read(kTilePixels);
    store(kPieces);
    __syncwarp();  // before the next tile is staged
  }

 private:
  static constexpr int kVectorPairs = 2;
  static constexpr int kLanes = kPiecePairs / kVectorPairs;  // of a filter
  static constexpr int kAtOnce = 32 / kLanes;                // filters
  static constexpr int kTurns = kWarpFilters / kAtOnce;
  static_assert(kAtOnce * kPairBytes % kSectorBytes == 0);  // filters so far apart have the same shift

  // Address of a filter's pair 0.
  __device__ __forceinline__ std::uintptr_t filter(int index) const {
    return reinterpret_cast<std::uintptr_t>(to_ + index * target_.filter_stride);
  }
  __device__ __forceinline__ std::uint32_t shift(int index) const {
    return static_cast<std::uint32_t>(filter(index)) % kSectorBytes / kPairBytes;
  }

  // Reads what the next piece needs of the tables: early, since it takes long beside the tensor cores.
  __device__ __forceinline__ void prepare(int piece) {
    places_ = pairs_.places[piece][target_.lane % 4];
    next_behind_ = pairs_.before[piece + 1];
  }

  __device__ __forceinline__ void stage(const float (&values)[kPieceAccumulators]) const {
    const int row = target_.lane / 4;  // and 8 farther, which has the same shift and turn
    const std::uint32_t ring = ptx::shared_address(target_.staging) + row * kRingBytes;
    const std::uint32_t places = turned_places(places_, ring_turn(row, shift(row)));
#pragma unroll
    for (int j = 0; j < kPieceWord / 2; ++j) {
      const std::uint32_t to = __byte_perm(places, ring, 0x7650 + j);  // the ring's first byte is 0
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        ptx::store_shared(to + h * 8 * kRingBytes, values[h * kPieceWord + 2 * j],
                          values[h * kPieceWord + 2 * j + 1]);
      }
    }
  }

  // From where reading ended before up to number `end`.
  __device__ __forceinline__ void read(std::int32_t end) {
    const int row = target_.lane / kLanes;
    const std::int32_t pair = whole_sectors(behind_) + target_.lane % kLanes * kVectorPairs;
    const std::uint32_t place = pair - shift(row) + ring_turn(row, shift(row));
    const std::uint32_t from = ptx::shared_address(target_.staging) + row * kRingBytes;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const std::uint32_t of_turn = (place + ring_turn(turn * kAtOnce, 0)) % kRingPairs * kPairBytes;
      words_[turn] = ptx::load_shared(from + of_turn + turn * kAtOnce * kRingBytes);
    }
    pair_ = pair < end ? pair : -1;
    behind_ = end;
  }

  // What has been read behind piece number `piece`, or behind the last. Before the first pair and behind the
  // last there are others' pairs in the sector.
  __device__ __forceinline__ void store(int piece) const {
    const int row = target_.lane / kLanes;
    std::uintptr_t to =
        filter(row) / kSectorBytes * kSectorBytes + static_cast<std::uint32_t>(pair_ * kPairBytes);
    const bool is_edge = piece == 0 || piece == kPieces;
    const std::uint32_t number = pair_ - shift(row), all = is_edge ? pairs_.before[kPieces] : 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!is_edge) {
        if (pair_ >= 0) ptx::store_global(reinterpret_cast<void*>(to), words_[turn]);
      } else {
        const uint4 word = words_[turn];
        if (pair_ >= 0 && number < all) ptx::store_global(reinterpret_cast<void*>(to), uint2{word.x, word.y});
        if (pair_ >= 0 && number + 1 < all) {
          ptx::store_global(reinterpret_cast<void*>(to + kPairBytes), uint2{word.z, word.w});
        }
      }
      to += kAtOnce * sizeof(float) * target_.filter_stride;
      ptx::keep_here(to);
    }
  }

  const StoreTarget<float> target_;
  const PairTable& pairs_;
  float* const to_;
  std::uint32_t places_;
  std::int32_t next_behind_;
  std::int32_t behind_;  // of pairs that have been read
  std::int32_t pair_;    // the lane's first, of those read last
  uint4 words_[kTurns];
};

}  // namespace epiconv::sm90
