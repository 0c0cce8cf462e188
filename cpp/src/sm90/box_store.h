// Stores a channels_last output with the copy engine, in boxes of 64 filters and 64 or 32 pixels: the
// four warps of a warpgroup stage their filters, and one of them stores the box while the next is computed.
// That is half of the shared memory's traffic that reading boxes back would take, none of the instructions,
// and whole lines.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "device/ptx/fences.h"
#include "device/ptx/stmatrix.h"
#include "device/ptx/store_shared.h"
#include "sm90/consumer_warp.h"
#include "sm90/conv_chunk.h"
#include "sm90/store_target.h"

namespace epiconv::sm90 {

template <typename Stored, int kPhases>
class BoxStore {
 public:
  __device__ __forceinline__ BoxStore(const ConvParameters& p, const TileTables& tables, std::int32_t group,
                                      const ConsumerWarp& warp, int lane)
      : p_(p),
        tables_(tables),
        group_(group),
        warp_(warp),
        staging_(ptx::shared_address(warp.group_staging())),
        lane_(lane) {}

  __device__ __forceinline__ void put(int piece, bool, const float (&values)[kPieceAccumulators]) const {
    const int number = piece / kBoxPieces, part = piece % kBoxPieces;
    const std::uint32_t box = staging_ + number % kBoxes * kBoxBytes;
    stage(box + part * kPiecePixels * kLineBytes, values);
    if (part + 1 < kBoxPieces) return;
    ptx::fence_async_shared();
    // All know from the barrier that the other box is free: it has been stored and read.
    if (stores(number - 1)) ptx::bulk_store_wait_read();
    warp_.sync_group();
    if (stores(number)) store(number, box);
  }
  __device__ __forceinline__ void finish(int) const {}

 private:
  static constexpr int kSize = sizeof(Stored);
  static constexpr int kBoxPieces = box_pieces(kSize);

  // Whether this thread stores that box, of this tile or, below 0, of the one before: the warps take turns.
  __device__ __forceinline__ bool stores(int number) const {
    return warp_.index == (number & (kWarpsPerGroup - 1)) && lane_ == 0;
  }

  __device__ __forceinline__ void stage(std::uint32_t box, const float (&values)[kPieceAccumulators]) const {
    const int warp_filter = warp_.index * kWarpFilters;
    if constexpr (kSize == 2) {
      const std::uint32_t row = box + box_offset(kSize, matrix_position<kPhases>(lane_), warp_filter);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t matrices[4];
        pack_matrices<Stored>(values + h * kPieceWord, matrices);
        ptx::stmatrix_4(row ^ (16 * h), matrices, true);  // the next 8 filters
      }
    } else {
      // Positions a multiple of 8 apart are swizzled alike.
      constexpr int kTogether = kPhases == 1 ? 2 : 4;
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        const std::uint32_t row =
            box + box_offset(kSize, piece_position<kPhases>(lane_ % 4, e), warp_filter + lane_ / 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int i = e; i < kPieceWord; i += kTogether) {
            const int behind = piece_position<kPhases>(0, i) - piece_position<kPhases>(0, e);
            // Four positions farther the swizzle differs.
            const std::uint32_t other = behind % 8 == 0 ? 0 : 64;
            ptx::store_shared((row ^ (32 * h) ^ other) + behind * kLineBytes, values[h * kPieceWord + i]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store(int number, std::uint32_t box) const {
    const BoxTarget to =
        BoxTarget::of(tables_.g, tables_.tile, tables_.row_phase, tables_.image, number * box_pixels(kSize));
#pragma unroll
    for (int first = 0; first < kGroupFilters; first += line_filters(kSize)) {
      ptx::tensor_store(&p_.output_map, box + box_offset(kSize, 0, first), group_ + first, to.q, to.p, to.n);
    }
    ptx::bulk_store_commit();
  }

  const ConvParameters& p_;
  const TileTables& tables_;
  const std::int32_t group_;
  const ConsumerWarp& warp_;
  const std::uint32_t staging_;
  const int lane_;
};

}  // namespace epiconv::sm90
