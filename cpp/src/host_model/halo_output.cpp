#include "host_model/halo_output.h"

#include <algorithm>
#include <cstring>

namespace epiconv::host_model {

using sm90::BoxTarget;
using sm90::HaloGeometry;
using sm90::kGroupFilters;
using sm90::kLineBytes;
using sm90::kPieceAccumulators;
using sm90::kPiecePixels;
using sm90::kTilePixels;
using sm90::kWarpFilters;
using sm90::Pixel;
using sm90::StoredElements;
using sm90::StoreKind;
using sm90::Tile;

namespace {

constexpr std::int32_t kWarps = kGroupFilters / kWarpFilters;
constexpr std::int32_t kWord = kPieceAccumulators / 2;  // positions of a filter in a piece
constexpr std::int32_t kTmaAlignment = 128;

}  // namespace

OutputTiles::OutputTiles(const HaloRun& run, SharedMemory& shared)
    : run_(run),
      g_(run.geometry),
      shared_(shared),
      layout_(output_layout(g_.filters, g_.out_height, g_.out_width, run.channels_last, run.output_bytes)),
      kind_(sm90::store_kind(g_, layout_)),
      output_(layout_.strides[0] * g_.batch) {
  if (kind_ != StoreKind::kBoxes) return;
  for (const std::size_t dimension : {0, 2, 3}) {  // what cuTensorMapEncodeTiled would refuse
    require(layout_.strides[1] == 1 && layout_.strides[dimension] * run.output_bytes % 16 == 0, "stride ",
            layout_.strides[dimension], " of TMA is no multiple of 16 bytes");
  }
}

void OutputTiles::store(const Tile& tile, std::int32_t sharer, const Accumulators& accumulators) {
  const sm90::Share share = sm90::Share::of(g_, tile.filter_tile * g_.sharers + sharer);
  const std::int32_t group = share.group * g_.share_filters();
  const std::int32_t image = tile.image(g_);
  if (kind_ == StoreKind::kBoxes) {
    store_boxes(tile, image, sharer, share, accumulators);
    return;
  }
  const std::uint32_t pairs = kind_ == StoreKind::kSectors ? fill_pairs(tile, sharer) : 0;
  for (std::int32_t warp = 0; warp < kWarps; ++warp) {
    const sm90::WarpRows rows = sm90::WarpRows::of(g_, warp);
    const std::int32_t filter = group + rows.filter, left = g_.filters - filter;
    if (left <= 0) continue;
    const std::int32_t row_phase = share.row_phase + rows.joint;
    const std::int32_t first_row = (g_.stacked ? 0 : tile.first_row) * g_.output_rows() + row_phase;
    const std::uint32_t offsets = fill_offsets(tile, image, row_phase, first_row, sharer, rows.joint);
    const auto staging = group_staging(sharer) + static_cast<std::uint32_t>(warp * g_.warp_staging_bytes);
    const auto& strides = layout_.strides;
    const std::int64_t to = image * strides[0] + filter * strides[1] + first_row * strides[2];
    if (kind_ == StoreKind::kSectors && first_row >= g_.out_height) continue;
    if (kind_ == StoreKind::kSectors && left >= kWarpFilters) {
      store_sectors(staging, pairs, to + std::min(tile.offset, g_.out_width), warp, accumulators);
    } else if (kind_ == StoreKind::kQuadsOfPixels && left >= kWarpFilters) {
      store_registers(4, offsets, to, warp, accumulators);
    } else if (kind_ == StoreKind::kFilters && run_.output_bytes == 4 && left >= kWarpFilters) {
      store_registers(1, offsets, to, warp, accumulators);
    } else {
      store_pieces(left < kWarpFilters ? StoreKind::kPixels : kind_, staging, offsets, to, left, warp,
                   accumulators);
    }
  }
}

void OutputTiles::finish() {
  for (std::deque<Box>& boxes : boxes_) {
    for (const Box& box : boxes) complete(box);
    boxes.clear();
  }
}

// ---- What both ways to store do.

template <typename Visitor>
auto OutputTiles::visit_phases(Visitor&& visitor) const {
  if (g_.interleave == 0) return visitor.template operator()<1>();
  if (g_.interleave == 1) return visitor.template operator()<2>();
  return visitor.template operator()<4>();
}
std::int32_t OutputTiles::piece_position(std::int32_t lane, std::int32_t i) const {
  return visit_phases([&]<int kPhases>() { return sm90::piece_position<kPhases>(lane % 4, i); });
}
std::int32_t OutputTiles::matrix_position(std::int32_t lane) const {
  return visit_phases([&]<int kPhases>() { return sm90::matrix_position<kPhases>(lane); });
}

// In the order of a chunk's words: word h of a lane's values is that of filter lane / 4 + 8 * h.
void OutputTiles::take_piece(const Accumulators& accumulators, std::int32_t warp, std::int32_t piece,
                             PieceValues& values) const {
  visit_phases([&]<int kPhases>() {
    for (std::int32_t lane = 0; lane < 32; ++lane) {
      for (std::int32_t i = 0; i < kPieceAccumulators; ++i) {
        const std::int32_t from = sm90::piece_accumulator<kPhases>(piece, i / kWord, i % kWord);
        const std::int32_t row = warp * kWarpFilters + sm90::accumulator_filter(lane, from);
        values[lane][i] = accumulators[row][sm90::accumulator_position<kPhases>(lane, from)];
      }
    }
  });
}

std::uint32_t OutputTiles::group_staging(std::int32_t sharer) const {
  return static_cast<std::uint32_t>(g_.staging_offset + sharer * kWarps * g_.warp_staging_bytes);
}

// `size` bytes of staging memory, for one access.
std::uint8_t* OutputTiles::staged(std::uint32_t address, std::int32_t size) {
  const std::int64_t offset = std::int64_t{address} - g_.staging_offset;
  require(offset >= 0 && offset + size <= sm90::kConsumerWarps * g_.warp_staging_bytes, size,
          " bytes are accessed at ", offset, " of staging memory");
  require(address % static_cast<std::uint32_t>(size) == 0, size, " bytes at ", address, " of shared memory");
  return shared_.at(address, size);
}

// stmatrix.x4. Lane 8 * m + r brings the address of row r of matrix m.
void OutputTiles::store_matrices(const Addresses& rows, const Matrices& matrices, bool transposed) {
  for (std::int32_t m = 0; m < 4; ++m) {
    for (std::int32_t r = 0; r < 8; ++r) {
      std::uint8_t* const to = staged(rows[8 * m + r], 16);
      for (std::int32_t c = 0; c < 8; ++c) {
        const std::int32_t row = transposed ? c : r, column = transposed ? r : c;
        const std::uint32_t pair = matrices[4 * row + column / 2][m];
        const auto element = static_cast<std::uint16_t>(column % 2 == 0 ? pair : pair >> 16);
        std::memcpy(to + 2 * c, &element, 2);
      }
    }
  }
}

// ---- In boxes.

void OutputTiles::store_boxes(const Tile& tile, std::int32_t image, std::int32_t sharer,
                              const sm90::Share& share, const Accumulators& accumulators) {
  const std::int32_t size = run_.output_bytes, box_pieces = sm90::box_pieces(size);
  require(sm90::kBoxes * sm90::kBoxBytes <= kWarps * g_.warp_staging_bytes,
          "boxes run out of staging memory");
  std::deque<Box>& boxes = boxes_[static_cast<std::size_t>(sharer)];
  for (std::int32_t number = 0; number < sm90::kPieces / box_pieces; ++number) {
    const auto place = static_cast<std::uint32_t>(number % sm90::kBoxes * sm90::kBoxBytes);
    const Box box{group_staging(sharer) + place, share.group * kGroupFilters,
                  BoxTarget::of(g_, tile, share.row_phase, image, number * sm90::box_pixels(size))};
    require(box.target.q >= 0, "a box begins at column ", box.target.q);  // an illegal instruction
    shared_.clear(box.address, sm90::kBoxBytes);
    for (std::int32_t part = 0; part < box_pieces; ++part) {
      for (std::int32_t warp = 0; warp < kWarps; ++warp) {
        PieceValues values;
        take_piece(accumulators, warp, number * box_pieces + part, values);
        stage_box(box.address + static_cast<std::uint32_t>(part * kPiecePixels * kLineBytes), warp, values);
      }
    }
    // Copies take until they are waited for.
    for (; static_cast<std::int32_t>(boxes.size()) > sm90::kBoxes - 2; boxes.pop_front()) {
      complete(boxes.front());
    }
    boxes.push_back(box);
  }
}

// A warp's filters.
void OutputTiles::stage_box(std::uint32_t box, std::int32_t warp, const PieceValues& values) {
  const std::int32_t size = run_.output_bytes, warp_filter = warp * kWarpFilters;
  if (size == 2) {
    for (std::uint32_t h = 0; h < 2; ++h) {
      Addresses rows;
      Matrices matrices;
      for (std::int32_t lane = 0; lane < 32; ++lane) {
        for (std::uint32_t j = 0; j < 4; ++j) {
          const float* const pair = &values[lane][h * kWord + 2 * j];
          matrices[lane][j] = packed_pair(pair[0], pair[1]);
        }
        rows[lane] = (box + sm90::box_offset(size, matrix_position(lane), warp_filter)) ^ (16 * h);
      }
      store_matrices(rows, matrices, true);
    }
    return;
  }
  for (std::int32_t lane = 0; lane < 32; ++lane) {
    for (std::int32_t i = 0; i < kPieceAccumulators; ++i) {
      const std::int32_t filter = warp_filter + lane / 4 + i / kWord * 8;
      const std::uint32_t to = box + sm90::box_offset(size, piece_position(lane, i % kWord), filter);
      std::memcpy(staged(to, 4), &values[lane][i], 4);
    }
  }
}

void OutputTiles::complete(const Box& box) {
  for (std::int32_t first = 0; first < kGroupFilters; first += sm90::line_filters(run_.output_bytes)) {
    copy_line(box, first);
  }
}

// One store of TMA: a line's filters of a box's pixels, without those outside of the output. The copy
// engine swizzles addresses.
void OutputTiles::copy_line(const Box& box, std::int32_t first) {
  const BoxTarget& to = box.target;
  const std::int32_t size = run_.output_bytes;
  const std::uint32_t from = box.address + sm90::box_offset(size, 0, first);
  require(from % kTmaAlignment == 0, "TMA reads from address ", from);
  if (to.n < 0 || to.n >= g_.batch || to.p < 0 || to.p >= g_.out_height) return;
  for (std::int32_t x = 0; x < sm90::box_pixels(size) && to.q + x < g_.out_width; ++x) {
    for (std::int32_t e = 0; e < sm90::line_filters(size); ++e) {
      const std::int32_t filter = box.group + first + e;
      if (filter >= g_.filters) break;
      const auto& strides = layout_.strides;
      const auto address = from + static_cast<std::uint32_t>(x * kLineBytes + e * size);
      output_.write(to.n * strides[0] + filter * strides[1] + to.p * strides[2] + (to.q + x) * strides[3], 1,
                    size, staged(sm90::swizzled(address, kLineBytes), size));
    }
  }
}

// ---- In pieces, each warp on its own.

// Returns the address of the table.
std::uint32_t OutputTiles::fill_offsets(const Tile& tile, std::int32_t image, std::int32_t row_phase,
                                        std::int32_t first_row, std::int32_t sharer, std::int32_t joint) {
  const auto offsets = static_cast<std::uint32_t>(
      g_.tile_memory_offset + sharer * sm90::tile_memory_bytes(g_.joint_rows) + sm90::kOfFiltersBytes +
      sm90::kPairTableBytes + sm90::kNormBytes + joint * sm90::kOffsetTableBytes);
  const auto& strides = layout_.strides;
  for (std::int32_t at = 0; at < kTilePixels; ++at) {
    const Pixel pixel = Pixel::of(g_, tile, row_phase, at);
    const std::int64_t wide = pixel.valid ? (pixel.n - image) * strides[0] +
                                                (pixel.p - first_row) * strides[2] + pixel.q * strides[3]
                                          : -1;
    const auto offset = static_cast<std::int32_t>(wide);
    require(offset == wide && (offset >= 0) == pixel.valid, "offset ", wide, " of position ", at);
    std::memcpy(shared_.at(offsets + static_cast<std::uint32_t>(at * 4), 4), &offset, 4);
  }
  return offsets;
}

// `to` is the warp's first filter in the tile's first image, and `filters` how many are left from there on.
void OutputTiles::store_pieces(StoreKind kind, std::uint32_t staging, std::uint32_t offsets, std::int64_t to,
                               std::int32_t filters, std::int32_t warp, const Accumulators& accumulators) {
  const std::int32_t together = kind == StoreKind::kFilters ? 1 : sm90::kRunPieces;
  for (std::int32_t first = 0; first < sm90::kPieces; first += together) {
    shared_.clear(staging, g_.warp_staging_bytes);
    const bool is_filters = kind == StoreKind::kFilters;
    const std::uint32_t place =
        staging + static_cast<std::uint32_t>(is_filters ? sm90::filters_place(first) : 0);
    for (std::int32_t part = 0; part < together; ++part) {
      PieceValues values;
      take_piece(accumulators, warp, first + part, values);
      stage_piece(is_filters, place, part, values);
    }
    store_staged(kind, place, offsets + static_cast<std::uint32_t>(first * kPiecePixels * 4), to, filters);
  }
}

// `width` pixels of a lane at a time, past staging memory, of elements of 32 bits.
void OutputTiles::store_registers(std::int32_t width, std::uint32_t offsets, std::int64_t to,
                                  std::int32_t warp, const Accumulators& accumulators) {
  for (std::int32_t piece = 0; piece < sm90::kPieces; ++piece) {
    PieceValues values;
    take_piece(accumulators, warp, piece, values);
    for (std::int32_t lane = 0; lane < 32; ++lane) {
      for (std::int32_t i = 0; i < kPieceAccumulators; i += width) {
        const std::int32_t first = piece_position(lane, i % kWord), position = piece * kPiecePixels + first;
        require(piece_position(lane, i % kWord + width - 1) == first + width - 1, width,
                " values of a lane do not lie side by side");
        // Offsets of two positions are read at a time.
        require(position % 2 == i % 2, "two values of a lane do not lie side by side");
        std::int32_t offset;
        std::memcpy(&offset, shared_.at(offsets + static_cast<std::uint32_t>(position * 4), 4), 4);
        if (offset < 0) continue;
        output_.write(to + offset + (lane / 4 + i / kWord * 8) * layout_.strides[1], width, 4,
                      reinterpret_cast<const std::uint8_t*>(&values[lane][i]));
      }
    }
  }
}

// ---- In whole sectors, each warp on its own.

// Returns the address of the table.
std::uint32_t OutputTiles::fill_pairs(const Tile& tile, std::int32_t sharer) {
  sm90::PairTable table;
  for (std::int32_t pair = 0; pair < kTilePixels / 2; ++pair) {
    const std::int32_t place = sm90::ring_number(g_, tile, pair) % sm90::kRingPairs * sm90::kPairBytes;
    reinterpret_cast<std::uint8_t*>(table.places)[sm90::PairTable::place(pair)] =
        static_cast<std::uint8_t>(place);
  }
  for (std::int32_t piece = 0; piece <= sm90::kPieces; ++piece) {
    const std::int32_t pairs = sm90::pairs_before(g_, tile, piece * kPiecePixels);
    require(pairs <= kTilePixels / 2, pairs, " pairs before piece ", piece);
    table.before[piece] = static_cast<std::uint8_t>(pairs);
  }
  const auto address = static_cast<std::uint32_t>(
      g_.tile_memory_offset + sharer * sm90::tile_memory_bytes(g_.joint_rows) + sm90::kOfFiltersBytes);
  std::memcpy(shared_.at(address, sizeof(table)), &table, sizeof(table));
  return address;
}

// Pairs from the begin of a sector up to pair 0 of a filter; the output begins with a sector.
std::int32_t OutputTiles::sector_shift(std::int64_t to, std::int32_t filter) const {
  const std::int64_t byte = (to + filter * layout_.strides[1]) * run_.output_bytes;
  require(byte % sm90::kPairBytes == 0, "pair 0 of filter ", filter, " lies at byte ", byte);
  return static_cast<std::int32_t>(byte % sm90::kSectorBytes / sm90::kPairBytes);
}

// `to` is pair 0 of the warp's first filter.
void OutputTiles::store_sectors(std::uint32_t staging, std::uint32_t pairs, std::int64_t to,
                                std::int32_t warp, const Accumulators& accumulators) {
  sm90::PairTable table;
  std::memcpy(&table, shared_.at(pairs, sizeof(table)), sizeof(table));
  shared_.clear(staging, g_.warp_staging_bytes);
  const std::int32_t all = table.before[sm90::kPieces];
  std::int32_t stored = 0;
  for (std::int32_t piece = 0; piece < sm90::kPieces; ++piece) {
    PieceValues values;
    take_piece(accumulators, warp, piece, values);
    stage_ring(staging, pairs + static_cast<std::uint32_t>(piece * 16), to, values);
    const std::int32_t end = sm90::whole_sectors(table.before[piece + 1]);
    require(piece == 0 || stored > 0 || end == 0, "nothing of a tile's first piece is stored with it");
    store_ring(staging, to, stored, end, all);
    stored = end;
  }
  store_ring(staging, to, stored, kTilePixels, all);
}

void OutputTiles::stage_ring(std::uint32_t staging, std::uint32_t places, std::int64_t to,
                             const PieceValues& values) {
  for (std::int32_t lane = 0; lane < 32; ++lane) {
    const std::int32_t row = lane / 4;
    std::uint32_t four;
    std::memcpy(&four, shared_.at(places + static_cast<std::uint32_t>(lane % 4 * 4), 4), 4);
    const auto shift = static_cast<std::uint32_t>(sector_shift(to, row));
    require(shift == static_cast<std::uint32_t>(sector_shift(to, row + 8)), "filters ", row, " and ", row + 8,
            " are shifted otherwise");
    four = sm90::turned_places(four, sm90::ring_turn(row, shift));
    const std::uint32_t ring = staging + static_cast<std::uint32_t>(row * sm90::kRingBytes);
    require(ring % 256 == 0, "a ring begins at ", ring);
    for (std::uint32_t j = 0; j < kWord / 2; ++j) {
      for (std::uint32_t h = 0; h < 2; ++h) {
        const std::uint32_t byte = four >> (8 * j) & 0xFF;
        std::memcpy(staged(ring + byte + h * 8 * sm90::kRingBytes, sm90::kPairBytes),
                    &values[lane][h * kWord + 2 * j], sm90::kPairBytes);
      }
    }
  }
}

// Pairs from number `begin` up to `end`, of which there are `all` behind pair 0.
void OutputTiles::store_ring(std::uint32_t staging, std::int64_t to, std::int32_t begin, std::int32_t end,
                             std::int32_t all) {
  for (std::int32_t filter = 0; filter < kWarpFilters; ++filter) {
    const std::int32_t shift = sector_shift(to, filter);
    for (std::int32_t at = 0; at < sm90::kPiecePairs; at += 2) {
      const std::int32_t pair = begin + at;
      if (pair >= end) break;
      const auto place = static_cast<std::uint32_t>(pair - shift) +
                         sm90::ring_turn(filter, static_cast<std::uint32_t>(shift));
      const std::uint8_t* const words =
          staged(staging + static_cast<std::uint32_t>(filter * sm90::kRingBytes) +
                     place % sm90::kRingPairs * sm90::kPairBytes,
                 2 * sm90::kPairBytes);
      for (std::int32_t e = 0; e < 2; ++e) {
        const std::int32_t number = pair + e - shift;
        if (number < 0 || number >= all) continue;
        output_.write(to + 2 * number + filter * layout_.strides[1], 2, run_.output_bytes,
                      words + e * sm90::kPairBytes);
      }
    }
  }
}

std::uint32_t OutputTiles::staging_offset(bool is_filters, std::int32_t filter, std::int32_t pixel) const {
  const std::int32_t size = run_.output_bytes;
  return static_cast<std::uint32_t>(visit_phases([&]<int kPhases>() {
    return is_filters ? sm90::filters_offset(filter, pixel)
                      : sm90::pixels_offset<kPhases>(size, filter, pixel);
  }));
}

// `part` of a run.
void OutputTiles::stage_piece(bool is_filters, std::uint32_t staging, std::int32_t part,
                              const PieceValues& values) {
  const bool in_matrices = run_.output_bytes == 2 && (is_filters || g_.interleave == 0);
  for (std::int32_t h = 0; h < 2; ++h) {
    if (in_matrices) {
      stage_matrices(is_filters, staging, part, h, values);
    } else {
      stage_pixels(staging, part, h, values);
    }
  }
}

// Of 16 bits.
void OutputTiles::stage_matrices(bool is_filters, std::uint32_t staging, std::int32_t part, std::int32_t half,
                                 const PieceValues& values) {
  Addresses rows;
  Matrices matrices;
  for (std::int32_t lane = 0; lane < 32; ++lane) {
    for (std::int32_t j = 0; j < 4; ++j) {
      const float* const pair = &values[lane][half * kWord + 2 * j];
      matrices[lane][j] = packed_pair(pair[0], pair[1]);
    }
    rows[lane] =
        staging + (is_filters ? staging_offset(true, 8 * half, matrix_position(lane))
                              : staging_offset(false, lane % 8, part * kPiecePixels + 8 * (lane / 8)) +
                                    static_cast<std::uint32_t>(half * 8 * sm90::kRunPixels * 2));
  }
  store_matrices(rows, matrices, is_filters);
}

// What lies side by side, 16 bytes at most at a time.
void OutputTiles::stage_pixels(std::uint32_t staging, std::int32_t part, std::int32_t half,
                               const PieceValues& values) {
  const std::int32_t size = run_.output_bytes, together = 2 << g_.interleave, bytes = together * size;
  const std::int32_t at_once = std::min(bytes, 16);
  for (std::int32_t lane = 0; lane < 32; ++lane) {
    const std::uint32_t row =
        staging + staging_offset(false, lane / 4, part * kPiecePixels + piece_position(lane, 0));
    for (std::int32_t at = 0; at < kWord * size; at += at_once) {
      std::uint8_t word[16];
      for (std::int32_t b = 0; b < at_once; b += size) {
        const float value = values[lane][half * kWord + (at + b) / size];
        const std::uint16_t narrow = bfloat16_of(value);
        std::memcpy(word + b, size == 2 ? static_cast<const void*>(&narrow) : &value,
                    static_cast<std::size_t>(size));
      }
      const auto moved = static_cast<std::uint32_t>(at / bytes * 4 * bytes + at % bytes);
      const std::uint32_t to = (row ^ moved) + static_cast<std::uint32_t>(half * 8 * sm90::kRunPixels * size);
      std::memcpy(staged(to, at_once), word, static_cast<std::size_t>(at_once));
    }
  }
}

// A staged piece or run to the output; `offsets` is the address of its positions'.
void OutputTiles::store_staged(StoreKind kind, std::uint32_t staging, std::uint32_t offsets, std::int64_t to,
                               std::int32_t filters) {
  const bool is_filters = kind == StoreKind::kFilters;
  const std::int32_t size = run_.output_bytes;
  const std::int32_t width = is_filters ? 16 / size : kind == StoreKind::kPairsOfPixels ? 2 : 1;
  const std::int32_t turns = sm90::stored_turns(width) * (is_filters ? 1 : sm90::kRunPieces);
  for (std::int32_t turn = 0; turn < turns; ++turn) {
    for (std::int32_t lane = 0; lane < 32; ++lane) {
      const StoredElements elements =
          is_filters ? StoredElements::filters(width, lane, turn) : StoredElements::pixels(width, lane, turn);
      std::int32_t offset;
      std::memcpy(&offset, shared_.at(offsets + static_cast<std::uint32_t>(elements.pixel * 4), 4), 4);
      const std::uint32_t place = staging_offset(is_filters, elements.filter, elements.pixel);
      const std::uint8_t* const word = staged(staging + place, width * size);
      if (offset < 0 || (kind == StoreKind::kPixels && elements.filter >= filters)) continue;
      output_.write(to + offset + elements.filter * layout_.strides[1], width, size, word);
    }
  }
}

}  // namespace epiconv::host_model
