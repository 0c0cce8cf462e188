// How the host model stores the output: as the kernel, through the warps' staging memory.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "host_model/halo_memory.h"
#include "host_model/halo_model.h"
#include "sm90/halo_conv.h"
#include "sm90/stored_pairs.h"

namespace epiconv::host_model {

using Accumulators = float[sm90::kGroupFilters][sm90::kTilePixels];  // of a warpgroup

class OutputTiles {
 public:
  OutputTiles(const HaloRun& run, SharedMemory& shared);

  void store(const sm90::Tile& tile, std::int32_t sharer, const Accumulators& accumulators);
  // When a block ends.
  void finish();
  std::vector<float> take() { return output_.take(); }

 private:
  using PieceValues = float[32][sm90::kPieceAccumulators];  // of the lanes of a warp
  using Addresses = std::uint32_t[32];
  using Matrices = std::uint32_t[32][4];
  // A box that the copy engine has been asked to store, and where to.
  struct Box {
    std::uint32_t address;
    std::int32_t group;  // its first filter
    sm90::BoxTarget target;
  };

  void take_piece(const Accumulators& accumulators, std::int32_t warp, std::int32_t piece,
                  PieceValues& values) const;
  std::uint32_t group_staging(std::int32_t sharer) const;
  std::uint8_t* staged(std::uint32_t address, std::int32_t size);
  void store_matrices(const Addresses& rows, const Matrices& matrices, bool transposed);

  void store_boxes(const sm90::Tile& tile, std::int32_t image, std::int32_t sharer, const sm90::Share& share,
                   const Accumulators& accumulators);
  void stage_box(std::uint32_t box, std::int32_t warp, const PieceValues& values);
  void complete(const Box& box);
  void copy_line(const Box& box, std::int32_t first);

  std::uint32_t fill_offsets(const sm90::Tile& tile, std::int32_t image, std::int32_t row_phase,
                             std::int32_t first_row, std::int32_t sharer, std::int32_t joint);
  void store_pieces(sm90::StoreKind kind, std::uint32_t staging, std::uint32_t offsets, std::int64_t to,
                    std::int32_t filters, std::int32_t warp, const Accumulators& accumulators);
  void store_registers(std::int32_t width, std::uint32_t offsets, std::int64_t to, std::int32_t warp,
                       const Accumulators& accumulators);
  std::uint32_t fill_pairs(const sm90::Tile& tile, std::int32_t sharer);
  void store_sectors(std::uint32_t staging, std::uint32_t pairs, std::int64_t to, std::int32_t warp,
                     const Accumulators& accumulators);
  void stage_ring(std::uint32_t staging, std::uint32_t places, std::int64_t to, const PieceValues& values);
  void store_ring(std::uint32_t staging, std::int64_t to, std::int32_t begin, std::int32_t end,
                  std::int32_t all);
  std::int32_t sector_shift(std::int64_t to, std::int32_t filter) const;
  // What the kernel knows of phases when it is compiled, called with that.
  template <typename Visitor>
  auto visit_phases(Visitor&& visitor) const;
  std::int32_t piece_position(std::int32_t lane, std::int32_t i) const;
  std::int32_t matrix_position(std::int32_t lane) const;
  std::uint32_t staging_offset(bool is_filters, std::int32_t filter, std::int32_t pixel) const;
  void stage_piece(bool is_filters, std::uint32_t staging, std::int32_t part, const PieceValues& values);
  void stage_matrices(bool is_filters, std::uint32_t staging, std::int32_t part, std::int32_t half,
                      const PieceValues& values);
  void stage_pixels(std::uint32_t staging, std::int32_t part, std::int32_t half, const PieceValues& values);
  void store_staged(sm90::StoreKind kind, std::uint32_t staging, std::uint32_t offsets, std::int64_t to,
                    std::int32_t filters);

  const HaloRun& run_;
  const sm90::HaloGeometry& g_;
  SharedMemory& shared_;
  const sm90::TensorLayout layout_;
  const sm90::StoreKind kind_;
  Output output_;
  std::array<std::deque<Box>, 2> boxes_;  // on their way, of each sharer
};

}  // namespace epiconv::host_model
