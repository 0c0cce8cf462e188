// Loads by rows: which rows of the input a warp loads into its raw stages, and which lane turns what of a
// stage. Index arithmetic only, shared by the kernel and the host model.
#pragma once

#include "sm90/unit_walk.h"

namespace epiconv::sm90 {

// A warp's raw rows of a unit, of which raw row `chunk` of row y of the box is the next. The rows of a block
// are numbered unit after unit, row after row of the box and chunk after chunk of raw_channels channels, and
// warps take them in turns. Rows that are kept from the tile before are left out.
struct RawRows {
  std::int32_t rows = 0, chunks = 1;  // of the unit
  std::int32_t y = 0, chunk = 0;
  std::int32_t shift = 0;  // columns of a raw row that lie before the box

  EPICONV_HOST_DEVICE bool in_unit() const { return y < rows; }
  // Calls down() for each row of the box that it moves down.
  template <typename Down>
  EPICONV_HOST_DEVICE void settle(const Down& down) {
    for (; chunk >= chunks; chunk -= chunks) {
      ++y;
      down();
    }
  }
  template <typename Down>
  EPICONV_HOST_DEVICE void advance(const Down& down) {
    chunk += kLoaderWarps;
    settle(down);
  }
  EPICONV_HOST_DEVICE void advance() {
    advance([] {});
  }
};

// What of a block a warp loads into its raw stages: rows of the unit that it turns, and of the next one.
template <bool kGeneral>
struct RawRowWalk {
  UnitWalk<kGeneral> units;
  bool is_next = true;       // the unit is the one behind that which is turned
  KeptRows kept;             // of the unit
  std::int32_t first_chunk;  // of the warp, counted from the unit's first raw row
  RawRows at;
  BoxRow from = {};  // of row at.y

  EPICONV_HOST_DEVICE RawRowWalk(const UnitWalk<kGeneral>& walk, std::int32_t warp)
      : units(walk), first_chunk(warp) {
    enter_unit();
  }
  // To the next unit to turn, whose raw rows are `entered`; those of the one before have been loaded. False
  // behind the last.
  EPICONV_HOST_DEVICE bool turn_next() {
    is_next = false;
    return !units.ended();
  }
  EPICONV_HOST_DEVICE RawRows entered() const {
    RawRows first{at.rows, at.chunks, kept.count, first_chunk, at.shift};
    first.settle([] {});
    return first;
  }
  // To a raw row to load. False if there is none yet; the unit then is the next one.
  EPICONV_HOST_DEVICE bool find_row() {
    while (!at.in_unit()) {
      if (is_next) return false;
      next_unit();
      is_next = true;
    }
    return true;
  }
  EPICONV_HOST_DEVICE void advance() {
    at.advance([&] { from.advance(units.g); });
  }

  EPICONV_HOST_DEVICE std::int32_t column() const {
    return box_column(units.g, units.tile(), units.unit) - at.shift;
  }
  EPICONV_HOST_DEVICE std::int32_t channel() const {
    return (units.unit.channel_block * units.g.raw_chunks + at.chunk) * units.g.raw_channels;
  }

 private:
  EPICONV_HOST_DEVICE void next_unit() {
    first_chunk = at.chunk + (at.y - at.rows) * at.chunks;
    units.advance();
    enter_unit();
  }
  EPICONV_HOST_DEVICE void enter_unit() {
    if (units.ended()) return;
    const HaloGeometry& g = units.g;
    kept = units.kept_rows();
    at.rows = units.box_rows();
    at.chunks = units.unit.channel_block + 1 == g.channel_blocks ? g.last_raw_chunks : g.raw_chunks;
    at.shift = box_column(g, units.tile(), units.unit) & (g.raw_line - 1);
    at.y = kept.count;
    at.chunk = first_chunk;
    from = BoxRow::of(g, units.tile(), units.unit, at.y);
    at.settle([&] { from.advance(g); });
  }
};

// What a lane turns of each raw stage: an element of each of a piece's channels at a time, lanes along a row.
// Where a row has 16 pixels or fewer, several pieces at once.
struct RawLane {
  std::int32_t pixel;  // the first; then every 32nd
  std::int32_t piece, piece_step;

  EPICONV_HOST_DEVICE static RawLane of(const HaloGeometry& g, std::int32_t lane) {
    const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
    std::int32_t shift = 5;
    while (shift > 0 && pitch <= 1 << (shift - 1)) --shift;
    return {lane & ((1 << shift) - 1), lane >> shift, 32 >> shift};
  }
};

// The same of elements of 16 bits, which are turned as matrices of a piece's 8 channels and 8 pixels, four at
// a time: those of 32 pixels, or, where a row has 16 or fewer, of several pieces. A lane gives the address of
// channel `row` of its matrix, then that of pixel `row`.
inline constexpr int kMatrixPixels = 8;
struct RawMatrixLane {
  std::int32_t row;
  std::int32_t pixel;  // the first of the matrix; then every 32nd
  std::int32_t piece, piece_step;

  EPICONV_HOST_DEVICE static RawMatrixLane of(const HaloGeometry& g, std::int32_t lane) {
    const auto pitch = static_cast<std::int32_t>(g.pitch.divisor);
    const std::int32_t shift = pitch <= kMatrixPixels ? 0 : pitch <= 2 * kMatrixPixels ? 1 : 2;
    const std::int32_t matrix = lane / kMatrixPixels;
    return {lane % kMatrixPixels, (matrix & ((1 << shift) - 1)) * kMatrixPixels, matrix >> shift, 4 >> shift};
  }
  // In a raw stage, in bytes: what the lane reads of its first piece.
  EPICONV_HOST_DEVICE std::int32_t from(const HaloGeometry& g) const {
    return ((piece * kMatrixPixels + row) * g.raw_width + pixel) * 2;
  }
  // Whether matrix and pixel exist, where `left` pixels of the row are left from the warp's first one on. A
  // lane of a pixel that does not writes to the begin of the stage instead, which has been read.
  EPICONV_HOST_DEVICE bool reads(std::int32_t left, bool piece_exists) const {
    return piece_exists && pixel < left;
  }
  EPICONV_HOST_DEVICE bool writes(std::int32_t left, bool piece_exists) const {
    return piece_exists && pixel + row < left;
  }
};

// Offset of a raw stage of a warp.
EPICONV_HOST_DEVICE std::int32_t raw_stage(const HaloGeometry& g, std::int32_t warp, std::int32_t stage) {
  return g.raw_offset + (warp * g.raw_stages_per_warp + stage) * g.raw_stage_bytes;
}

}  // namespace epiconv::sm90
