// How the host model loads the input's boxes into their slots.
#pragma once

#include <cstdint>
#include <vector>

#include "host_model/halo_memory.h"
#include "host_model/halo_model.h"
#include "sm90/raw_rows.h"

namespace epiconv::host_model {

class InputBoxes {
 public:
  static constexpr std::int32_t kPieceBytes = 16;  // what a swizzle moves as one

  InputBoxes(const HaloRun& run, SharedMemory& shared);

  // Of a block that computes these tiles.
  void begin(const sm90::BlockTiles& tiles);
  // The box of the block's next unit. Returns the address of the slot.
  std::uint32_t load(const sm90::Tile& tile, const sm90::Unit& unit);

 private:
  // Where in the input a raw stage begins.
  struct RawRow {
    std::int32_t column, h, channel, n;
    bool operator==(const RawRow&) const = default;
  };
  struct RawStage {
    bool full = false;
    RawRow row = {};
  };
  // That loads by rows.
  struct Warp {
    sm90::RawRowWalk<false> ahead;
    Ring to_load, to_turn;  // stages
    std::int32_t loaded;
    std::vector<RawStage> stages;
  };

  void check_boxes_map() const;
  void check_rows_map() const;
  void copy_box_row(const sm90::Tile& tile, const sm90::Unit& unit, std::int32_t y, std::uint32_t slot);
  void gather_pixel(const sm90::Tile& tile, const sm90::Unit& unit, std::int32_t position,
                    std::uint32_t slot);
  void load_by_rows(const sm90::Tile& tile, const sm90::Unit& unit, std::int32_t place);
  void keep_rows(const sm90::KeptRows& kept, std::int32_t place);
  RawRow raw_row(const sm90::Tile& tile, const sm90::Unit& unit, const sm90::RawRows& at) const;
  void load_raw(std::int32_t warp);
  void copy_raw_row(std::int32_t warp, std::int32_t stage);
  void turn(std::int32_t warp, const RawRow& row, const sm90::RawRows& at, std::uint32_t slot);
  void turn_elements(std::uint32_t raw, const sm90::RawRows& at, std::int32_t lane, std::uint32_t slot);
  void turn_matrices(std::uint32_t raw, const sm90::RawRows& at, std::uint32_t slot);
  const std::uint8_t* raw_bytes(std::uint32_t raw, std::int32_t offset, std::int32_t size);
  std::uint32_t raw_address(std::int32_t warp, std::int32_t stage) const;
  float read_input(std::int32_t n, std::int32_t h, std::int32_t w, std::int32_t channel) const;
  void read_piece(std::int32_t n, std::int32_t h, std::int32_t w, std::int32_t channel,
                  std::uint8_t (&piece)[kPieceBytes]) const;

  const HaloRun& run_;
  const sm90::HaloGeometry& g_;
  SharedMemory& shared_;
  Ring slots_;
  std::vector<Warp> warps_;
};

}  // namespace epiconv::host_model
