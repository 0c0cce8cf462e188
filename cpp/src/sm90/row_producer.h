// Loads the boxes of an input whose pixels lie side by side, in rows that begin at multiples of 16 bytes. The
// copy engine brings rows as they lie, zeros where they lie outside, into small stages; three warps turn
// them: they round elements to what the tensor cores multiply, and write 16 bytes of channels per pixel.
//
// Each warp has raw stages of its own, and asks for rows of the next unit while it waits for a slot.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "device/ptx/keep_here.h"
#include "device/ptx/ldmatrix.h"
#include "device/ptx/stmatrix.h"
#include "sm90/conv_parameters.h"
#include "sm90/kept_rows.h"
#include "sm90/math.h"
#include "sm90/pipeline.h"
#include "sm90/raw_rows.h"

namespace epiconv::sm90 {

template <typename Math, typename In, bool kGeneral>
class RowProducer {
 public:
  __device__ __forceinline__ RowProducer(const ConvParameters& p, const SharedMemory& shared,
                                         std::uint8_t* memory, int thread)
      : p_(p),
        g_(p.geometry),
        shared_(shared),
        memory_(memory),
        thread_(thread),
        warp_(__shfl_sync(0xFFFFFFFF, thread / 32, 0)),
        lane_(Lane::of(p.geometry, thread % 32)) {}

  __device__ __forceinline__ void run() {
    RawRowWalk<kGeneral> ahead(UnitWalk<kGeneral>(block_tiles(p_)), warp_);
    const bool whole = g_.pitch.divisor % (kBatch * 32) == 0;
    Stages stages{RingPlace(g_.raw_stages_per_warp), 0};
    RingPlace place(g_.num_slots);
    const RowKeeper<kKeepBatch, kGeneral> keeper(shared_, memory_, thread_);
    while (ahead.turn_next()) {
      RawRows rows = ahead.entered();
      const KeptRows kept = ahead.kept;
      for (bool is_first = true;; is_first = false) {
        load(ahead, stages);
        if (is_first) {
          int slot = place.index();
          ptx::keep_here(slot);  // else its barrier's address takes a register while rows are loaded
          ptx::mbarrier_wait(shared_.slot_empty(slot), place.empty_parity(), "empty slot", slot);
          keeper.begin(kept, place);
        }
        if (!rows.in_unit()) break;
        const int stage = stages.first.index();
        ptx::mbarrier_wait(shared_.raw_full(warp_, stage), stages.first.full_parity(), "raw row", stage);
        if (whole) {
          turn<true>(raw_stage(g_, warp_, stage), rows, place.index() * g_.slot_bytes);
        } else {
          turn<false>(raw_stage(g_, warp_, stage), rows, place.index() * g_.slot_bytes);
          ptx::fence_async_shared();  // the stage may have been written to
        }
        __syncwarp();  // all lanes have read the stage
        stages.first.next();
        --stages.loaded;
        rows.advance();
      }
      keeper.end(kept, place);
      ptx::fence_async_shared();
      __syncwarp();
      if (thread_ % 32 == 0) ptx::mbarrier_arrive(shared_.slot_full(place.index()));
      place.next();
    }
  }

 private:
  static constexpr bool kIsRounded = sizeof(In) == 4;
  using Lane = std::conditional_t<kIsRounded, RawLane, RawMatrixLane>;
  static constexpr int kPieceChannels = Math::kPieceChannels;
  static constexpr int kKeepBatch = kIsRounded ? 3 : 6;                // as many as there are registers for
  static constexpr int kBatch = kIsRounded ? 16 / kPieceChannels : 4;  // times 32 pixels, read at a time

  // Where row y of a box lies in its slot, in rows of the box.
  __device__ __forceinline__ int line(int y) const { return kGeneral ? g_.slot_line(y) : y; }

  struct Stages {
    RingPlace first;  // to be turned
    int loaded;       // from that one on
  };

  // The warp's next raw rows into its free stages.
  __device__ __forceinline__ void load(RawRowWalk<kGeneral>& ahead, Stages& stages) const {
    while (ahead.find_row() && stages.loaded < g_.raw_stages_per_warp) {
      int stage = stages.first.index() + stages.loaded;
      if (stage >= g_.raw_stages_per_warp) stage -= g_.raw_stages_per_warp;
      if (thread_ % 32 == 0) {
        const std::uint32_t full = shared_.raw_full(warp_, stage);
        ptx::mbarrier_arrive_expect(full, g_.raw_width * g_.raw_channels * sizeof(In));
        ptx::tensor_copy(shared_.base + raw_stage(g_, warp_, stage), &p_.input_map, ahead.column(),
                         ahead.from.h, ahead.channel(), ahead.from.n, full);
      }
      ahead.advance();
      ++stages.loaded;
    }
  }

  // A raw stage into the slot, both by their offsets in shared memory. Pixels that a lane reads at a time are
  // 32 apart, and so their rows are exchanged alike. `kWhole`: every lane has whole batches of them.
  template <bool kWhole>
  __device__ __forceinline__ void turn(int raw, const RawRows& at, int slot) const {
    if constexpr (kIsRounded) {
      turn_rounded<kWhole>(memory_ + raw, at, memory_ + slot);
    } else {
      turn_matrices<kWhole>(shared_.base + raw, at, shared_.base + slot);
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void turn_rounded(const std::uint8_t* raw, const RawRows& at,
                                               std::uint8_t* slot) const {
    const int pitch = static_cast<int>(g_.pitch.divisor);
    const int pieces = g_.raw_channels / kPieceChannels;
    const SlotRow row = SlotRow::of(g_, line(at.y) * pitch + lane_.pixel);
    const int step = 32 * g_.row_bytes;
#pragma unroll 1
    for (int piece = lane_.piece; piece < pieces; piece += lane_.piece_step) {
      const auto* from = reinterpret_cast<const float*>(raw) + at.shift + lane_.pixel;
      from += piece * kPieceChannels * g_.raw_width;
      std::uint8_t* to = slot + row.piece(at.chunk * pieces + piece);
#pragma unroll 1
      for (int left = pitch - lane_.pixel; left > 0; left -= kBatch * 32) {
        float values[kBatch][kPieceChannels];
#pragma unroll
        for (int e = 0; e < kPieceChannels; ++e) {
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            if (kWhole || left > j * 32) values[j][e] = from[e * g_.raw_width + j * 32];
          }
        }
        from += kBatch * 32;
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (kWhole || left > j * 32) *reinterpret_cast<uint4*>(to) = Math::pack(values[j]);
          to += step;
        }
      }
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void turn_matrices(std::uint32_t raw, const RawRows& at,
                                                std::uint32_t slot) const {
    const int pitch = static_cast<int>(g_.pitch.divisor);
    const int pieces = g_.raw_channels / kPieceChannels;
    const SlotRow row = SlotRow::of(g_, line(at.y) * pitch + lane_.pixel + lane_.row);
    const int step = 32 * g_.row_bytes;
    const int piece_step = lane_.piece_step * kPieceChannels * g_.raw_width * static_cast<int>(sizeof(In));
    std::uint32_t piece_from = raw + lane_.from(g_);
#pragma unroll 1
    for (int first = 0; first < pieces; first += lane_.piece_step) {
      const bool exists = kWhole || first + lane_.piece < pieces;
      std::uint32_t from = piece_from;
      std::uint32_t to = slot + row.piece(at.chunk * pieces + first + lane_.piece);
#pragma unroll 1
      for (int left = pitch; left > 0; left -= kBatch * 32) {
        std::uint32_t matrices[kBatch][4];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (!kWhole && left <= j * 32) break;
          const bool reads = kWhole || lane_.reads(left - j * 32, exists);
          ptx::ldmatrix_4_transposed(reads ? from + j * 32 * sizeof(In) : raw, matrices[j]);
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (!kWhole && left <= j * 32) break;
          const bool writes = kWhole || lane_.writes(left - j * 32, exists);
          ptx::stmatrix_4(writes ? to : raw, matrices[j], false);
          to += step;
        }
        from += kBatch * 32 * sizeof(In);
      }
      piece_from += piece_step;
    }
  }

  const ConvParameters& p_;
  const HaloGeometry& g_;
  const SharedMemory shared_;
  std::uint8_t* const memory_;
  const int thread_, warp_;
  const Lane lane_;
};

}  // namespace epiconv::sm90
