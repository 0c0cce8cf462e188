// Where everything of a convolution lies while it is computed from halo tiles: index arithmetic only, shared
// by the planner, the kernel and the host model.
//
// Output pixels are numbered along a raster of virtual rows, each `pitch` wide: the output columns of one
// strip of the image, then the columns that only the filter's halo needs. A tile is a run of kTilePixels
// numbers of the raster; the columns beyond the strip are computed too, and dropped. Small images are stacked
// into one raster, each `image_rows` high; large ones have a raster each.
//
// The slot of a tile holds the input under it: box rows of `pitch` pixels, one row of `row_bytes` bytes of
// channels per pixel, swizzled as TMA and wgmma do. Since the raster is that of the input box, a filter tap
// is a shift by whole rows:
//   raster number i, tap (r, s) of the group  ->  slot row i - first_row * pitch + r * dilation * pitch +
//                                                 s * dilation
// Filters too large for one box are cut into groups of taps, each of which loads a box of its own. A unit is
// what one slot is for: a block of channels and a group of taps of one tile.
//
// A transposed convolution of stride s is s x s convolutions of stride 1 over the same input, its phases: of
// output row s * a + phase, only every s-th tap meets the input. Raster and box are those of rows and columns
// a; a tap is at the place from which it reads. Row phases are computed like further filters. Column phases
// lie in the same accumulators, so that rows of the output are stored as they lie: a tile then has fewer
// numbers of the raster, and several positions for each.
//
// Few filters would leave rows of the wgmma's M empty. They hold the same filters in several output rows
// instead, joint rows: of 2, a row of the raster is output rows 2 a and 2 a + 1, the upper half of M has its
// taps at places 0 to R - 1 of the filter's height, the lower half at 1 to R, and weights are zero at the
// others. The slot keeps box rows in as many planes, every second row in one, so that a tap is still a shift.
// An infinity or NaN times such a zero is NaN; so where an accumulator is not finite, the tile is multiplied
// again for each of the joint rows alone, from the slot and the weights that it still has: joint rows are of
// tiles with one unit, and of weights that stay.
#pragma once

#include <cstdint>
#include <string>

#include "ceilings.h"
#include "device/divisor.h"
#include "epiconv/export.h"

namespace epiconv::sm90 {

inline constexpr int kTilePixels = 256;   // positions of a tile: N of the wgmma, times column phases
inline constexpr int kGroupFilters = 64;  // M of the wgmma: one warpgroup's
inline constexpr int kWarpFilters = 16;   // those of one of its warps
inline constexpr int kMaxPhases = 4;      // of a dimension
inline constexpr int kMaxJointShift = 2;  // log2 of joint rows: a warp has the 16 filters of one
inline constexpr int kMaxSlots = 4;
inline constexpr int kMaxWeightStages = 32;
inline constexpr int kMaxPitch = 256;        // of a TMA box
inline constexpr int kStepBytes = 32;        // of a row, that one wgmma multiplies
inline constexpr int kSwizzleAtom = 1024;    // bytes after which a swizzle repeats
inline constexpr int kSharedLimit = 232448;  // bytes of dynamic shared memory that a block may have
inline constexpr int kBarrierBytes = 688;
inline constexpr int kBoxTables = 3;           // of the gather producer
inline constexpr int kLoaderWarps = 3;         // that load boxes by rows or by gathering
inline constexpr int kMaxRawStages = 4;        // of each of them, by rows
inline constexpr int kConsumerWarps = 8;       // of two warpgroups
inline constexpr int kNumFilterOperands = 16;  // as many as there are places for operands
// Of a consumer warp, on the way to the output: its share of its warpgroup's boxes, which is more than a
// piece whose filters lie side by side; or a run of pixels, of elements of so many bytes (fragments.h).
EPICONV_HOST_DEVICE constexpr int filters_staging_bytes() { return 4096; }
EPICONV_HOST_DEVICE constexpr int pixels_staging_bytes(int size) { return 1024 * size; }
// Of a consumer: operands of filters (store.h), where pairs of pixels lie (stored_pairs.h), a norm's
// statistics (statistics.h), offsets of positions in the output, and where its warps are.
inline constexpr int kPairTableBytes = 144;
inline constexpr int kNormBytes = kGroupFilters * 8 + kConsumerWarps / 2 * 4;
inline constexpr int kOfFiltersBytes = kNumFilterOperands * kGroupFilters * 4;
inline constexpr int kOffsetTableBytes = kTilePixels * 4;  // of each of the joint rows
inline constexpr int kWalkBytes = 64;                      // of a warp, where it is among its tiles
EPICONV_HOST_DEVICE constexpr int tile_memory_bytes(int joint_rows) {
  return kOfFiltersBytes + kPairTableBytes + kNormBytes + joint_rows * kOffsetTableBytes +
         kConsumerWarps / 2 * kWalkBytes;
}

// How boxes of the input come into their slots.
enum class InputLoad : std::uint8_t {
  kBoxes,   // by TMA: pixels whose channels lie side by side
  kRows,    // by TMA as they come, rows of pixels that lie side by side; threads turn them into slot rows
  kGather,  // by threads, from any strides and padding
};

struct HaloProblem {
  std::int32_t batch, channels, height, width;
  std::int32_t filters, taps_r, taps_s;
  std::int32_t dilation_h, dilation_w;  // 1 of a transposed convolution
  std::int32_t pad_top, pad_left;
  std::int32_t out_height, out_width;
  std::int32_t element_bytes;  // of what wgmma multiplies: 4 (tf32) or 2
  std::int32_t input_bytes;    // of the input's elements
  InputLoad load;
  bool stores_filters;        // those of an output pixel lie side by side
  std::int32_t output_bytes;  // of the output's elements
  bool transposed = false;
  std::int32_t stride_h = 1, stride_w = 1;  // of a transposed convolution, kMaxPhases at most
  bool by_image = false;                    // no tile may have positions of several images
};

// The places of one dimension at which a phase has taps: `count` from `first` on. The filter's tap at the
// first of them, and what is added to it from one to the next.
struct PhaseTaps {
  std::int32_t first, count;
  std::int32_t tap, step;
};

// Places from `first` up to `end`, of a group.
struct PlaceSpan {
  std::int32_t first, end;

  EPICONV_HOST_DEVICE static PlaceSpan of(const PhaseTaps& taps, std::int32_t begin, std::int32_t size) {
    const std::int32_t first = taps.first - begin, end = first + taps.count;
    const std::int32_t from = first > 0 ? first : 0, to = end < size ? end : size;
    return {from, to > from ? to : from};
  }
  EPICONV_HOST_DEVICE std::int32_t count() const { return end - first; }
};

struct HaloGeometry {
  std::int32_t batch, channels, height, width;
  std::int32_t filters, out_height, out_width;
  std::int32_t dilation_h, dilation_w;
  std::int32_t pad_top, pad_left;

  std::int32_t element_bytes;
  std::int32_t row_bytes;               // 32, 64 or 128, which is also the swizzle
  std::int32_t channel_blocks;          // of row_bytes
  std::int32_t full_steps, last_steps;  // of kStepBytes in a block, and in the last one

  std::int32_t taps_r, taps_s;           // places of taps; without phases each tap has its own
  std::int32_t group_r, group_s;         // places of a group, at most
  std::int32_t groups_r, groups_s;       // how many groups
  std::int32_t units;                    // of a tile
  std::int32_t phases_h, phases_w;       // 1 unless transposed
  Divisor row_phases;                    // phases_h
  std::int32_t joint_rows, joint_shift;  // output rows in M, 1 unless filters are few; its log2
  std::int32_t plane_rows;               // box rows of a slot's plane, of which there is one for each of them
  PhaseTaps row_taps[kMaxPhases], column_taps[kMaxPhases];
  std::int32_t columns;                  // taps of a filter's row
  std::int32_t taps;                     // of a filter, over all blocks of channels
  std::int32_t phase_taps[kMaxPhases];   // those of a row phase
  std::int32_t taps_before[kMaxPhases];  // those of the row phases before

  std::int32_t raster_height, raster_width;  // of an image: output_rows() of its rows, phases_w columns
  std::int32_t interleave;                   // log2 of positions for each number of the raster: 0, 1 or 2
  std::int32_t run, step;    // numbers of a tile, and from the begin of one to that of the next
  std::int32_t strip_width;  // raster columns
  Divisor strips;
  Divisor pitch;
  Divisor half_pitch,
      pair_pitch;      // pairs of pixels that a row of the box touches, from an even or odd column on
  Divisor image_rows;  // virtual rows from one image of a raster to the next
  std::int32_t images_per_raster;
  std::int32_t rasters;
  bool stacked;                         // several images in a raster
  std::int32_t run_rows;                // virtual rows that a run touches, at most
  std::int32_t last_row, last_offset;   // first row and offset of a raster's last run
  std::int32_t step_rows, step_offset;  // from the begin of one run to the next: rows, and positions besides
  Divisor runs;                         // tiles along a raster
  std::int32_t box_rows;                // of a slot, at most

  // Warpgroups that compute from a slot: 2 with a share each, or 1. A share is kGroupFilters filters in one
  // row phase; shares of the same filters are consecutive.
  std::int32_t sharers;
  // Whether a consumer keeps the tensor cores for all units of a tile, not for one.
  bool turn_is_tile;
  Divisor filter_tiles;  // of `sharers` shares
  std::int32_t tiles;

  // Shared memory, in this order: slots, weight stages, raw stages, staging, tile memory, tables, barriers.
  std::int32_t slot_bytes, num_slots;
  std::int32_t stage_bytes, num_stages;  // a stage holds one tap's weights for kGroupFilters filters
  bool weights_stay;                     // all weights have a stage of their own and are loaded once
  // Of a load by rows. A raw stage is one row of the box as it lies in the input: [channel][raw_width].
  std::int32_t input_bytes;  // of an element there
  // The copy engine begins at columns that are multiples of 16 bytes, raw_line elements.
  std::int32_t raw_line, raw_width, raw_channels;
  std::int32_t raw_chunks, last_raw_chunks;  // of raw_channels, in a block and in the last one
  std::int32_t raw_stage_bytes, raw_stages_per_warp, raw_offset;
  std::int32_t warp_staging_bytes;
  std::int32_t staging_offset, tile_memory_offset, table_offset, barrier_offset;
  std::int32_t shared_bytes;

  // Of a raster's virtual row.
  EPICONV_HOST_DEVICE std::int32_t image_of(std::int32_t row) const {
    return stacked ? image_rows.quotient(row) : 0;
  }
  // Output rows of a row of the raster, and filters of a share.
  EPICONV_HOST_DEVICE std::int32_t output_rows() const { return phases_h << joint_shift; }
  EPICONV_HOST_DEVICE std::int32_t share_filters() const { return kGroupFilters >> joint_shift; }
  // Where row y of a box lies in its slot, in rows of the box.
  EPICONV_HOST_DEVICE std::int32_t slot_line(std::int32_t y) const {
    return (y & (joint_rows - 1)) * plane_rows + (y >> joint_shift);
  }
  EPICONV_HOST_DEVICE std::int32_t weights_offset() const { return num_slots * slot_bytes; }
  EPICONV_HOST_DEVICE std::int32_t table_bytes() const { return box_rows * 8 + kMaxPitch * 4; }
  EPICONV_HOST_DEVICE std::int32_t filter_groups() const {
    return sharers * static_cast<std::int32_t>(filter_tiles.divisor) / phases_h;
  }
};

// Clocks of the tensor cores for a share, on average: wgmma of 256, 128 or 64 columns.
EPICONV_HOST_DEVICE std::int64_t share_clocks(const HaloGeometry& g) {
  const std::int64_t step_clocks = g.interleave == 0 ? 128 : g.interleave == 1 ? 64 : 40;
  const std::int64_t steps = std::int64_t{g.channel_blocks - 1} * g.full_steps + g.last_steps;
  return steps * (g.taps / g.channel_blocks) * step_clocks / g.phases_h;
}
inline constexpr int kStoreBytesPerClock = 18;  // an SM's share of the memory's rate

// What one warpgroup computes of a tile.
struct Share {
  std::int32_t group;  // of share_filters() filters
  std::int32_t row_phase;

  EPICONV_HOST_DEVICE static Share of(const HaloGeometry& g, std::int32_t number) {
    const std::int32_t group = g.row_phases.quotient(number);
    return {group, number - group * g.phases_h};
  }
  // Taps of the share, over all blocks of channels, and of those before it in packed weights.
  EPICONV_HOST_DEVICE std::int32_t taps(const HaloGeometry& g) const { return g.phase_taps[row_phase]; }
  EPICONV_HOST_DEVICE std::int32_t taps_before(const HaloGeometry& g) const {
    return group * g.taps + g.taps_before[row_phase];
  }
};

// A tile, and what the positions of its run are.
struct Tile {
  std::int32_t filter_tile, strip, raster;
  std::int32_t first_row;  // virtual row of the first position
  std::int32_t offset;     // of the first position in that row

  // Consecutive tiles: first the filters of one run, then the runs of one raster.
  EPICONV_HOST_DEVICE static Tile of(const HaloGeometry& g, std::int32_t index) {
    const auto remainder = [](std::int32_t value, std::int32_t quotient, const Divisor& by) {
      return value - quotient * static_cast<std::int32_t>(by.divisor);
    };
    Tile tile;
    const std::int32_t pixels = g.filter_tiles.quotient(index);
    tile.filter_tile = remainder(index, pixels, g.filter_tiles);
    const std::int32_t strip = g.runs.quotient(pixels);
    const std::int32_t run = remainder(pixels, strip, g.runs);
    tile.raster = g.strips.quotient(strip);
    tile.strip = remainder(strip, tile.raster, g.strips);
    tile.first_row = g.pitch.quotient(run * g.step);
    tile.offset = run * g.step - tile.first_row * static_cast<std::int32_t>(g.pitch.divisor);
    return tile;
  }

  // The next one, without a division: those are products of 64 bits, which slow the tensor cores down.
  EPICONV_HOST_DEVICE void advance(const HaloGeometry& g) {
    if (++filter_tile < static_cast<std::int32_t>(g.filter_tiles.divisor)) return;
    filter_tile = 0;
    first_row += g.step_rows;
    offset += g.step_offset;
    if (offset >= static_cast<std::int32_t>(g.pitch.divisor)) {
      offset -= static_cast<std::int32_t>(g.pitch.divisor);
      ++first_row;
    }
    if (first_row < g.last_row || (first_row == g.last_row && offset <= g.last_offset)) return;
    first_row = offset = 0;
    if (++strip < static_cast<std::int32_t>(g.strips.divisor)) return;
    strip = 0;
    ++raster;
  }

  // The image of the first position.
  EPICONV_HOST_DEVICE std::int32_t image(const HaloGeometry& g) const {
    return raster * g.images_per_raster + g.image_of(first_row);
  }

  // Input rows that the box of a group of `group_r` tap rows has. The run ends where the next one begins:
  // step_rows below, `end` behind the begin of that row, which may be one row farther.
  EPICONV_HOST_DEVICE std::int32_t box_rows(const HaloGeometry& g, std::int32_t group_r) const {
    const std::int32_t end = offset + g.step_offset;
    const std::int32_t run_rows =
        g.step_rows + (end > 0 ? 1 : 0) + (end > static_cast<std::int32_t>(g.pitch.divisor) ? 1 : 0);
    return ((run_rows - 1) << g.joint_shift) + (group_r - 1) * g.dilation_h + 1;
  }
};

// The block of channels and the group of taps of one slot.
struct Unit {
  std::int32_t channel_block, group_r, group_s;

  // The units of a tile, in order.
  EPICONV_HOST_DEVICE static Unit first() { return {0, 0, 0}; }
  EPICONV_HOST_DEVICE void advance(const HaloGeometry& g) {
    if (++group_s < g.groups_s) return;
    group_s = 0;
    if (++group_r < g.groups_r) return;
    group_r = 0;
    ++channel_block;
  }

  // Places of this group, which is smaller where the filter ends.
  EPICONV_HOST_DEVICE std::int32_t rows(const HaloGeometry& g) const {
    const std::int32_t left = g.taps_r - group_r * g.group_r;
    return left < g.group_r ? left : g.group_r;
  }
  EPICONV_HOST_DEVICE std::int32_t columns(const HaloGeometry& g) const {
    const std::int32_t left = g.taps_s - group_s * g.group_s;
    return left < g.group_s ? left : g.group_s;
  }
  // Those of a phase's taps.
  EPICONV_HOST_DEVICE PlaceSpan rows_of(const HaloGeometry& g, std::int32_t row_phase) const {
    return PlaceSpan::of(g.row_taps[row_phase], group_r * g.group_r, rows(g));
  }
  EPICONV_HOST_DEVICE PlaceSpan columns_of(const HaloGeometry& g, std::int32_t phase) const {
    return PlaceSpan::of(g.column_taps[phase], group_s * g.group_s, columns(g));
  }
  // Taps of a row, in all column phases, and of a share.
  EPICONV_HOST_DEVICE std::int32_t row_taps(const HaloGeometry& g) const {
    if (g.groups_s == 1) return g.columns;
    std::int32_t count = 0;
    for (std::int32_t phase = 0; phase < g.phases_w; ++phase) count += columns_of(g, phase).count();
    return count;
  }
  EPICONV_HOST_DEVICE std::int32_t taps(const HaloGeometry& g, std::int32_t row_phase) const {
    return rows_of(g, row_phase).count() * row_taps(g);
  }
  EPICONV_HOST_DEVICE std::int32_t steps(const HaloGeometry& g) const {
    return channel_block + 1 == g.channel_blocks ? g.last_steps : g.full_steps;
  }
};

// An output pixel; not valid where it belongs to no output.
struct Pixel {
  std::int32_t n, p, q;
  bool valid;

  // Of position 0 … kTilePixels - 1 of a tile; `row_phase` counts phases and joint rows.
  EPICONV_HOST_DEVICE static Pixel of(const HaloGeometry& g, const Tile& tile, std::int32_t row_phase,
                                      std::int32_t position) {
    Pixel pixel;
    const std::int32_t number = position >> g.interleave, phase = position - (number << g.interleave);
    const std::int32_t linear = tile.offset + number;
    const std::int32_t row = g.pitch.quotient(linear);
    const std::int32_t column = linear - row * static_cast<std::int32_t>(g.pitch.divisor);
    const std::int32_t image = g.image_of(tile.first_row + row);
    pixel.n = tile.raster * g.images_per_raster + image;
    const std::int32_t image_row =
        tile.first_row + row - image * static_cast<std::int32_t>(g.image_rows.divisor);
    pixel.p = image_row * g.output_rows() + row_phase;
    pixel.q = (tile.strip * g.strip_width + column) * g.phases_w + phase;
    pixel.valid = number < g.step && phase < g.phases_w && column < g.strip_width && pixel.q < g.out_width &&
                  pixel.p < g.out_height && pixel.n < g.batch;
    return pixel;
  }
};

// Where row y of a unit's box comes from; h may lie outside the image, which is padding, and n behind the
// last image.
struct BoxRow {
  std::int32_t n, h;
  std::int32_t left;  // virtual rows of the image behind this one

  EPICONV_HOST_DEVICE static BoxRow of(const HaloGeometry& g, const Tile& tile, const Unit& unit,
                                       std::int32_t y) {
    const std::int32_t row = (tile.first_row << g.joint_shift) + y;
    const std::int32_t image = g.image_of(row >> g.joint_shift);
    const std::int32_t image_row = row - image * image_rows(g);
    return {tile.raster * g.images_per_raster + image,
            image_row + unit.group_r * g.group_r * g.dilation_h - g.pad_top, image_rows(g) - 1 - image_row};
  }

  // To the row below.
  EPICONV_HOST_DEVICE void advance(const HaloGeometry& g) {
    ++h;
    if (--left >= 0) return;
    left += image_rows(g);
    h -= image_rows(g);
    ++n;
  }

 private:
  // Input rows from one image of a raster to the next. Of rasters of one image it is not used.
  EPICONV_HOST_DEVICE static std::int32_t image_rows(const HaloGeometry& g) {
    return static_cast<std::int32_t>(g.image_rows.divisor) << g.joint_shift;
  }
};

// The input column of column 0 of a unit's box.
EPICONV_HOST_DEVICE std::int32_t box_column(const HaloGeometry& g, const Tile& tile, const Unit& unit) {
  return tile.strip * g.strip_width + unit.group_s * g.group_s * g.dilation_w - g.pad_left;
}

// The slot row from which tap (r, s) of a unit's group reads position 0.
EPICONV_HOST_DEVICE std::int32_t tap_row(const HaloGeometry& g, const Tile& tile, std::int32_t r,
                                         std::int32_t s) {
  return tile.offset + g.slot_line(r * g.dilation_h) * static_cast<std::int32_t>(g.pitch.divisor) +
         s * g.dilation_w;
}

// What a consumer's warp has of M: filters of one joint row, from `filter` on.
struct WarpRows {
  std::int32_t joint, filter;

  EPICONV_HOST_DEVICE static WarpRows of(const HaloGeometry& g, std::int32_t warp) {
    const std::int32_t filter = warp * kWarpFilters & (g.share_filters() - 1);
    return {(warp * kWarpFilters - filter) / kWarpFilters * g.joint_rows / (kGroupFilters / kWarpFilters),
            filter};
  }
};

// Byte address -> byte address under the swizzle of rows of row_bytes: 16-byte pieces are exchanged within
// row_bytes by the number of the 128-byte line. (PTX ISA, "Tensor swizzling modes")
EPICONV_HOST_DEVICE std::uint32_t swizzled(std::uint32_t address, std::int32_t row_bytes) {
  return address ^ ((address >> 3) & static_cast<std::uint32_t>(row_bytes - 16));
}

// A pixel's row in a slot. It begins at a multiple of its bytes, so that the swizzle exchanges its pieces of
// 16 bytes, the same way in rows a multiple of kSwizzleAtom apart.
struct SlotRow {
  std::uint32_t begin, exchange;  // bytes

  EPICONV_HOST_DEVICE static SlotRow of(const HaloGeometry& g, std::int32_t pixel) {
    const auto begin = static_cast<std::uint32_t>(pixel * g.row_bytes);
    return {begin, swizzled(begin, g.row_bytes) ^ begin};
  }
  EPICONV_HOST_DEVICE std::uint32_t piece(std::int32_t index) const {
    return begin + ((static_cast<std::uint32_t>(index) * 16) ^ exchange);
  }
};

// Packed weights: [share][unit][tap of the unit][row of M][channels of the block], each tap of stage_bytes,
// swizzled as it lies in its stage. A unit's taps go row by row, and in a row one column phase after the
// other.
EPICONV_HOST_DEVICE std::int64_t packed_group_bytes(const HaloGeometry& g) {
  return std::int64_t{g.taps} * g.stage_bytes;
}
// Tap number `index` of a share in packed weights, counted over all blocks of channels: tap (r, s) of the
// filter. With joint rows r is a place, from which each row of M has a tap of its own, or none.
struct PackedTap {
  std::int32_t channel_block, r, s;

  EPICONV_HOST_DEVICE static PackedTap of(const HaloGeometry& g, std::int32_t row_phase, std::int32_t index) {
    const std::int32_t block_taps = g.row_taps[row_phase].count * g.columns;
    const std::int32_t block = index / block_taps;
    std::int32_t rest = index - block * block_taps;
    Unit unit{block, 0, 0};
    for (std::int32_t taps; rest >= (taps = unit.taps(g, row_phase)); unit.advance(g)) rest -= taps;
    const std::int32_t row = rest / unit.row_taps(g);
    rest -= row * unit.row_taps(g);
    std::int32_t phase = 0;
    for (std::int32_t taps; rest >= (taps = unit.columns_of(g, phase).count()); ++phase) rest -= taps;
    const auto tap = [](const PhaseTaps& of, std::int32_t place) {
      return of.tap + (place - of.first) * of.step;
    };
    return {block,
            tap(g.row_taps[row_phase], unit.group_r * g.group_r + unit.rows_of(g, row_phase).first + row),
            tap(g.column_taps[phase], unit.group_s * g.group_s + unit.columns_of(g, phase).first + rest)};
  }
};

// What a row of M is of a share: a filter, and its tap's row at place r; -1 where it has none.
struct PackedRow {
  std::int32_t filter, r;

  EPICONV_HOST_DEVICE static PackedRow of(const HaloGeometry& g, std::int32_t group, std::int32_t row,
                                          std::int32_t r) {
    const std::int32_t joint = row / g.share_filters();
    const bool exists = r >= joint && r - joint <= g.taps_r - g.joint_rows;
    return {group * g.share_filters() + row - joint * g.share_filters(), g.joint_rows == 1 ? r
                                                                         : exists          ? r - joint
                                                                                           : -1};
  }
};

// The geometry with the least cost, or why there is none. Deterministic.
struct HaloPlan {
  std::string why_not;  // "" if there is one
  HaloGeometry geometry;
  PlannedClocks clocks;
  double statistics_clocks = 0;  // of all tiles, about, where each is computed and not stored
};
HaloPlan plan_halo(const HaloProblem& problem);

}  // namespace epiconv::sm90
