#include "host_model/halo_input.h"

#include <cstring>

namespace epiconv::host_model {

using sm90::BoxRow;
using sm90::HaloGeometry;
using sm90::InputLoad;
using sm90::KeptRows;
using sm90::kMatrixPixels;
using sm90::kStepBytes;
using sm90::RawLane;
using sm90::RawMatrixLane;
using sm90::RawRows;
using sm90::RawRowWalk;
using sm90::SlotRow;
using sm90::Tile;
using sm90::Unit;
using sm90::UnitWalk;

namespace {

constexpr std::int32_t kTmaAlignment = 128;
constexpr std::int32_t kTmaExtent = 256;

}  // namespace

InputBoxes::InputBoxes(const HaloRun& run, SharedMemory& shared)
    : run_(run), g_(run.geometry), shared_(shared), slots_(run.geometry.num_slots) {
  if (run.load == InputLoad::kBoxes) check_boxes_map();
  if (run.load == InputLoad::kRows) check_rows_map();
}

void InputBoxes::begin(const sm90::BlockTiles& tiles) {
  slots_ = Ring(g_.num_slots);
  warps_.clear();
  if (run_.load != InputLoad::kRows) return;
  for (std::int32_t warp = 0; warp < sm90::kLoaderWarps; ++warp) {
    warps_.push_back({RawRowWalk<false>(UnitWalk<false>(tiles), warp), Ring(g_.raw_stages_per_warp),
                      Ring(g_.raw_stages_per_warp), 0,
                      std::vector<RawStage>(static_cast<std::size_t>(g_.raw_stages_per_warp))});
  }
}

std::uint32_t InputBoxes::load(const Tile& tile, const Unit& unit) {
  const std::int32_t place = slots_.take();
  const auto slot = static_cast<std::uint32_t>(place * g_.slot_bytes);
  const auto pitch = static_cast<std::int32_t>(g_.pitch.divisor);
  const std::int32_t rows = tile.box_rows(g_, unit.rows(g_));
  for (std::int32_t y = 0; y < rows; ++y) {
    require((g_.slot_line(y) + 1) * pitch * g_.row_bytes <= g_.slot_bytes, "row ", y, " of a box of ", rows,
            " does not fit its slot");
  }
  if (run_.load == InputLoad::kRows) {
    load_by_rows(tile, unit, place);
    return slot;
  }
  shared_.clear(slot, g_.slot_bytes);
  if (run_.load == InputLoad::kGather) {
    for (std::int32_t i = 0; i < rows * pitch; ++i) gather_pixel(tile, unit, i, slot);
  } else {
    for (std::int32_t y = 0; y < rows; ++y) copy_box_row(tile, unit, y, slot);
  }
  return slot;
}

// ---- By boxes.

// What cuTensorMapEncodeTiled would refuse.
void InputBoxes::check_boxes_map() const {
  const auto& strides = run_.input.strides;
  require(run_.padding == Padding::kZeros && strides[1] == 1, "boxes are of NHWC and zeros only");
  for (const std::size_t dimension : {0, 2, 3}) {
    require(strides[dimension] * g_.element_bytes % kPieceBytes == 0, "stride ", strides[dimension],
            " of TMA is no multiple of 16 bytes");
  }
  require(g_.pitch.divisor <= kTmaExtent, "a TMA box of ", g_.pitch.divisor, " pixels");
}

// One copy of TMA: a box of row_bytes of channels and `pitch` pixels.
void InputBoxes::copy_box_row(const Tile& tile, const Unit& unit, std::int32_t y, std::uint32_t slot) {
  const auto pitch = static_cast<std::int32_t>(g_.pitch.divisor);
  const auto to = slot + static_cast<std::uint32_t>(g_.slot_line(y) * pitch * g_.row_bytes);
  require(to % kTmaAlignment == 0, "TMA writes to address ", to);
  const BoxRow row = BoxRow::of(g_, tile, unit, y);
  const std::int32_t first_column = sm90::box_column(g_, tile, unit);
  const std::int32_t channels = g_.row_bytes / g_.element_bytes;
  for (std::int32_t x = 0; x < pitch; ++x) {
    for (std::int32_t b = 0; b < g_.row_bytes; b += kPieceBytes) {
      std::uint8_t piece[kPieceBytes];
      read_piece(row.n, row.h, first_column + x, unit.channel_block * channels + b / g_.element_bytes, piece);
      const auto address = to + static_cast<std::uint32_t>(x * g_.row_bytes + b);
      shared_.write(sm90::swizzled(address, g_.row_bytes), piece, kPieceBytes);
    }
  }
}

// ---- By gathering.

// A thread's work for one pixel of a box: only what the steps will multiply.
void InputBoxes::gather_pixel(const Tile& tile, const Unit& unit, std::int32_t position, std::uint32_t slot) {
  const std::int32_t y = g_.pitch.quotient(position);
  const std::int32_t x = position - y * static_cast<std::int32_t>(g_.pitch.divisor);
  const BoxRow row = BoxRow::of(g_, tile, unit, y);
  const std::int32_t h = padded(row.h, g_.height, run_.padding);
  const std::int32_t w = padded(sm90::box_column(g_, tile, unit) + x, g_.width, run_.padding);
  const std::int32_t channels = g_.row_bytes / g_.element_bytes;
  const SlotRow to = SlotRow::of(g_, g_.slot_line(y) * static_cast<std::int32_t>(g_.pitch.divisor) + x);
  for (std::int32_t i = 0; i < unit.steps(g_) * kStepBytes / kPieceBytes; ++i) {
    std::uint8_t piece[kPieceBytes];
    read_piece(row.n, h, w, unit.channel_block * channels + i * kPieceBytes / g_.element_bytes, piece);
    shared_.write(slot + to.piece(i), piece, kPieceBytes);
  }
}

// ---- By rows.

// Of a unit: raw row at.chunk of row at.y of its box.
InputBoxes::RawRow InputBoxes::raw_row(const Tile& tile, const Unit& unit, const RawRows& at) const {
  const BoxRow row = BoxRow::of(g_, tile, unit, at.y);
  return {sm90::box_column(g_, tile, unit) - at.shift, row.h,
          (unit.channel_block * g_.raw_chunks + at.chunk) * g_.raw_channels, row.n};
}

// What cuTensorMapEncodeTiled would refuse.
void InputBoxes::check_rows_map() const {
  const auto& strides = run_.input.strides;
  require(run_.padding == Padding::kZeros && (strides[3] == 1 || g_.width == 1),
          "rows are of NCHW and zeros");
  for (const std::size_t dimension : {0, 1, 2}) {
    require(strides[dimension] * g_.input_bytes % kPieceBytes == 0, "stride ", strides[dimension],
            " of TMA is no multiple of 16 bytes");
  }
  require(g_.raw_width * g_.input_bytes % kPieceBytes == 0, "a TMA box of ", g_.raw_width, " pixels");
  require(g_.raw_width <= kTmaExtent && g_.raw_channels <= kTmaExtent, "a TMA box of ", g_.raw_width,
          " pixels of ", g_.raw_channels, " channels");
}

void InputBoxes::load_by_rows(const Tile& tile, const Unit& unit, std::int32_t place) {
  const auto slot = static_cast<std::uint32_t>(place * g_.slot_bytes);
  for (std::int32_t warp = 0; warp < sm90::kLoaderWarps; ++warp) {
    RawRowWalk<false>& ahead = warps_[static_cast<std::size_t>(warp)].ahead;
    require(ahead.is_next && ahead.turn_next(), "warp ", warp, " has ended, or loads another unit");
    const Tile& at = ahead.units.tile();
    require(at.first_row == tile.first_row && at.offset == tile.offset && at.strip == tile.strip &&
                at.raster == tile.raster && at.filter_tile == tile.filter_tile &&
                ahead.units.unit.channel_block == unit.channel_block &&
                ahead.units.unit.group_r == unit.group_r && ahead.units.unit.group_s == unit.group_s,
            "warp ", warp, " is at another unit");
    if (warp == 0) keep_rows(ahead.kept, place);
    RawRows rows = ahead.entered();
    load_raw(warp);
    for (; rows.in_unit(); rows.advance()) turn(warp, raw_row(tile, unit, rows), rows, slot);
  }
}

// What is copied from the slot of the tile before; nothing else stays in the slot.
void InputBoxes::keep_rows(const KeptRows& kept, std::int32_t place) {
  const auto slot = static_cast<std::uint32_t>(place * g_.slot_bytes);
  const std::int32_t row = static_cast<std::int32_t>(g_.pitch.divisor) * g_.row_bytes;
  const std::int32_t plane = g_.plane_rows * row, first = (kept.moved >> g_.joint_shift) * row;
  std::vector<std::vector<std::uint8_t>> planes;
  for (std::int32_t i = 0; i < g_.joint_rows; ++i) {
    const std::int32_t size = kept.count_of(g_, i) * row;
    require(size == 0 || first + size <= plane, "rows are kept from behind a plane");
    const auto from =
        static_cast<std::uint32_t>(KeptRows::place_before(g_, place) * g_.slot_bytes + i * plane + first);
    const std::uint8_t* const begin = shared_.at(size == 0 ? slot : from, size);
    planes.emplace_back(begin, begin + size);
  }
  shared_.clear(slot, g_.slot_bytes);
  for (std::int32_t i = 0; i < g_.joint_rows; ++i) {
    const auto& bytes = planes[static_cast<std::size_t>(i)];
    shared_.write(slot + static_cast<std::uint32_t>(i * plane), bytes.data(),
                  static_cast<std::int32_t>(bytes.size()));
  }
}

std::uint32_t InputBoxes::raw_address(std::int32_t warp, std::int32_t stage) const {
  const std::int32_t address = sm90::raw_stage(g_, warp, stage);
  require(address % kTmaAlignment == 0, "TMA writes to address ", address);
  require(address >= g_.raw_offset && address + g_.raw_stage_bytes <= g_.staging_offset, "raw stage ", stage,
          " of warp ", warp, " lies at ", address);
  return static_cast<std::uint32_t>(address);
}

// The warp's next raw rows into its free stages.
void InputBoxes::load_raw(std::int32_t warp) {
  Warp& of = warps_[static_cast<std::size_t>(warp)];
  for (; of.ahead.find_row() && of.loaded < g_.raw_stages_per_warp; ++of.loaded) {
    copy_raw_row(warp, of.to_load.take());
    of.ahead.advance();
  }
}

// One copy of TMA: a row of raw_width elements of each of raw_channels channels.
void InputBoxes::copy_raw_row(std::int32_t warp, std::int32_t stage) {
  const RawRowWalk<false>& ahead = warps_[static_cast<std::size_t>(warp)].ahead;
  RawStage& to = warps_[static_cast<std::size_t>(warp)].stages[static_cast<std::size_t>(stage)];
  require(!to.full, "raw stage ", stage, " is written before it is read");
  to = {true, {ahead.column(), ahead.from.h, ahead.channel(), ahead.from.n}};
  require(ahead.column() * g_.input_bytes % kPieceBytes == 0, "a raw row begins at column ", ahead.column());
  const std::uint32_t address = raw_address(warp, stage);
  const std::int32_t row_bytes = g_.raw_width * g_.input_bytes;
  require(g_.raw_channels * row_bytes <= g_.raw_stage_bytes, "a raw row does not fit its stage");
  for (std::int32_t c = 0; c < g_.raw_channels; ++c) {
    for (std::int32_t x = 0; x < g_.raw_width; ++x) {
      std::uint8_t element[4];
      store_element(g_.input_bytes, read_input(to.row.n, to.row.h, to.row.column + x, to.row.channel + c),
                    element);
      shared_.write(address + static_cast<std::uint32_t>(c * row_bytes + x * g_.input_bytes), element,
                    g_.input_bytes);
    }
  }
}

// A warp's next raw stage, which holds `row`, into the slot; then the stage is loaded anew.
void InputBoxes::turn(std::int32_t warp, const RawRow& row, const RawRows& at, std::uint32_t slot) {
  Warp& of = warps_[static_cast<std::size_t>(warp)];
  const std::int32_t index = of.to_turn.take();
  RawStage& stage = of.stages[static_cast<std::size_t>(index)];
  require(stage.full && stage.row == row, "raw stage ", index, " of warp ", warp, " holds another row");
  const std::uint32_t raw = raw_address(warp, index);
  if (g_.input_bytes == 2) {
    turn_matrices(raw, at, slot);
  } else {
    for (std::int32_t lane = 0; lane < 32; ++lane) turn_elements(raw, at, lane, slot);
  }
  stage.full = false;
  shared_.clear(raw, g_.raw_stage_bytes);
  --of.loaded;
  load_raw(warp);
}

// `size` bytes of a raw stage.
const std::uint8_t* InputBoxes::raw_bytes(std::uint32_t raw, std::int32_t offset, std::int32_t size) {
  require(offset >= 0 && offset + size <= g_.raw_stage_bytes, "byte ", offset, " of a raw stage is read");
  return shared_.at(raw + static_cast<std::uint32_t>(offset), size);
}

// What a lane rounds.
void InputBoxes::turn_elements(std::uint32_t raw, const RawRows& at, std::int32_t lane, std::uint32_t slot) {
  const auto pitch = static_cast<std::int32_t>(g_.pitch.divisor);
  const std::int32_t channels = kPieceBytes / g_.element_bytes, pieces = g_.raw_channels / channels;
  const RawLane of = RawLane::of(g_, lane);
  for (std::int32_t piece = of.piece; piece < pieces; piece += of.piece_step) {
    for (std::int32_t pixel = of.pixel; pixel < pitch; pixel += 32) {
      std::uint8_t packed[kPieceBytes];
      for (std::int32_t e = 0; e < channels; ++e) {
        const std::int32_t from = ((piece * channels + e) * g_.raw_width + at.shift + pixel) * g_.input_bytes;
        store_element(g_.element_bytes, load_element(g_.input_bytes, raw_bytes(raw, from, g_.input_bytes)),
                      packed + e * g_.element_bytes);
      }
      // Rows of the lane's other pixels lie as far from the first one's as they would without a swizzle.
      const SlotRow to = SlotRow::of(g_, g_.slot_line(at.y) * pitch + of.pixel);
      const auto behind = static_cast<std::uint32_t>((pixel - of.pixel) * g_.row_bytes);
      shared_.write(slot + to.piece(at.chunk * pieces + piece) + behind, packed, kPieceBytes);
    }
  }
}

// ldmatrix.x4, transposed, and stmatrix.x4: lane 8 * m + r brings the address of row r of matrix m.
void InputBoxes::turn_matrices(std::uint32_t raw, const RawRows& at, std::uint32_t slot) {
  const auto pitch = static_cast<std::int32_t>(g_.pitch.divisor);
  const std::int32_t pieces = g_.raw_channels / kMatrixPixels, step = RawMatrixLane::of(g_, 0).piece_step;
  for (std::int32_t first = 0; first < pieces; first += step) {
    for (std::int32_t pixel = 0; pixel < pitch; pixel += 32) {
      std::uint8_t read[32][kPieceBytes];
      for (std::int32_t lane = 0; lane < 32; ++lane) {
        const RawMatrixLane of = RawMatrixLane::of(g_, lane);
        const bool reads = of.reads(pitch - pixel, first + of.piece < pieces);
        const std::int32_t from = of.from(g_) + (first * kMatrixPixels * g_.raw_width + pixel) * 2;
        require(!reads || from % kPieceBytes == 0, "ldmatrix reads at ", from);
        std::memcpy(read[lane], raw_bytes(raw, reads ? from : 0, kPieceBytes), kPieceBytes);
      }
      for (std::int32_t lane = 0; lane < 32; ++lane) {
        const RawMatrixLane of = RawMatrixLane::of(g_, lane);
        std::uint8_t row[kPieceBytes];
        for (std::int32_t c = 0; c < kMatrixPixels; ++c) {
          std::memcpy(row + 2 * c, read[lane - of.row + c] + 2 * of.row, 2);
        }
        // Rows of a lane's other pixels lie as far from the first one's as they would without a swizzle.
        const SlotRow to = SlotRow::of(g_, g_.slot_line(at.y) * pitch + of.pixel + of.row);
        const auto behind = static_cast<std::uint32_t>(pixel * g_.row_bytes);
        const bool writes = of.writes(pitch - pixel, first + of.piece < pieces);
        shared_.write(writes ? slot + to.piece(at.chunk * pieces + first + of.piece) + behind : raw, row,
                      kPieceBytes);
      }
    }
  }
}

// ---- The input.

// Zero outside the tensor.
float InputBoxes::read_input(std::int32_t n, std::int32_t h, std::int32_t w, std::int32_t channel) const {
  const auto inside = [](std::int32_t i, std::int32_t extent) { return i >= 0 && i < extent; };
  if (!inside(n, g_.batch) || !inside(h, g_.height) || !inside(w, g_.width) ||
      !inside(channel, g_.channels)) {
    return 0;
  }
  const auto& strides = run_.input.strides;
  const std::int64_t index = n * strides[0] + channel * strides[1] + h * strides[2] + w * strides[3];
  require(index >= 0 && index < static_cast<std::int64_t>(run_.input.values.size()), "input ", index, " of ",
          run_.input.values.size(), " is read");
  return run_.input.values[static_cast<std::size_t>(index)];
}

// 16 bytes of channels of an input pixel.
void InputBoxes::read_piece(std::int32_t n, std::int32_t h, std::int32_t w, std::int32_t channel,
                            std::uint8_t (&piece)[kPieceBytes]) const {
  for (std::int32_t b = 0; b < kPieceBytes; b += g_.element_bytes, ++channel) {
    store_element(g_.element_bytes, read_input(n, h, w, channel), piece + b);
  }
}

}  // namespace epiconv::host_model
