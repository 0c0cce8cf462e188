#include "host_model/halo_model.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "host_model/halo_memory.h"
#include "host_model/units.h"
#include "sm90/fragments.h"

namespace epiconv::host_model {
namespace {

using sm90::BoxRow;
using sm90::HaloGeometry;
using sm90::kGroupFilters;
using sm90::kPieceAccumulators;
using sm90::kPiecePixels;
using sm90::kPieceStagingBytes;
using sm90::kStepBytes;
using sm90::kTilePixels;
using sm90::kWarpFilters;
using sm90::Pixel;
using sm90::staging_offset;
using sm90::StoredElements;
using sm90::taps_before;
using sm90::Tile;
using sm90::Unit;
using sm90::unit_number;

constexpr std::int32_t kPieceBytes = 16;  // what a swizzle moves as one
constexpr std::int32_t kTmaAlignment = 128;
constexpr std::int32_t kTmaExtent = 256;

// Of a dense (N, K, P, Q), in elements.
std::array<std::int64_t, 4> output_strides(const HaloGeometry& g, bool channels_last) {
  const std::int64_t k = g.filters, p = g.out_height, q = g.out_width;
  if (channels_last) return {p * q * k, 1, q * k, k};
  return {k * p * q, p * q, q, 1};
}

class Model {
 public:
  explicit Model(const HaloRun& run)
      : run_(run),
        g_(run.geometry),
        packed_(pack_weights(run.geometry, run.weights)),
        shared_(run.geometry.shared_bytes),
        slots_(run.geometry.num_slots),
        stages_(run.geometry.num_stages),
        stores_(Stores::of(run.geometry, run.channels_last, run.output_bytes)),
        output_strides_(output_strides(run.geometry, run.channels_last)),
        output_(output_strides_[0] * run.geometry.batch),
        accumulators_(std::make_unique<Accumulators[]>(2)) {}

  std::vector<float> compute();

 private:
  using Accumulators = float[kGroupFilters][kTilePixels];

  void compute_tile(const Tile& tile);
  std::uint32_t load_box(const Tile& tile, const Unit& unit);
  void copy_box_row(const Tile& tile, const Unit& unit, std::int32_t y, std::uint32_t slot);
  void gather_pixel(const Tile& tile, const Unit& unit, std::int32_t position, std::uint32_t slot);
  void read_input(std::int32_t n, std::int32_t h, std::int32_t w, std::int32_t channel,
                  std::uint8_t (&piece)[kPieceBytes]) const;
  void check_input_map() const;

  std::uint32_t stage_address(std::int32_t stage) const;
  void load_stage(std::int32_t stage, std::int32_t filter_group, std::int32_t tap);
  void multiply(std::uint32_t pixels, std::uint32_t stage, std::int32_t steps, std::int32_t num_filters,
                Accumulators& accumulators);
  void read_rows(std::uint32_t rows, std::int32_t num_rows, std::int32_t step, float* values, std::size_t row,
                 std::size_t element);

  using PieceValues = float[32][kPieceAccumulators];  // of the lanes of a warp

  void store(const Tile& tile, std::int32_t sharer);
  std::uint32_t fill_offsets(const Tile& tile, std::int32_t image, std::int32_t first_row,
                             std::int32_t sharer);
  std::uint8_t* staged(std::uint32_t staging, std::int32_t offset, std::int32_t size);
  void stage_piece(std::uint32_t staging, const PieceValues& values);
  void store_matrices(std::uint32_t staging, const std::int32_t (&rows)[32],
                      const std::uint32_t (&matrices)[32][4]);
  void store_staged(std::uint32_t staging, std::int64_t to, std::uint32_t offsets, std::int32_t filters);

  std::int32_t num_filters(std::int32_t filter_group) const {
    return std::clamp(g_.filters - filter_group * kGroupFilters, 0, kGroupFilters);
  }

  const HaloRun& run_;
  const HaloGeometry& g_;
  std::vector<std::uint8_t> packed_;
  SharedMemory shared_;
  Ring slots_, stages_;
  const Stores stores_;
  const std::array<std::int64_t, 4> output_strides_;
  Output output_;
  std::unique_ptr<Accumulators[]> accumulators_;  // of each sharer
};

std::vector<float> Model::compute() {
  if (!run_.gathered) check_input_map();
  if (g_.weights_stay) {
    const std::int32_t taps = g_.channel_blocks * g_.taps_r * g_.taps_s;
    for (std::int32_t stage = 0; stage < g_.num_stages; ++stage) {
      load_stage(stage, stage / taps, stage % taps);
    }
  }
  Tile tile = Tile::of(g_, 0);
  for (std::int32_t index = 0; index < g_.tiles; ++index, tile.advance(g_)) {
    const Tile direct = Tile::of(g_, index);
    require(tile.filter_tile == direct.filter_tile && tile.strip == direct.strip &&
                tile.raster == direct.raster && tile.first_row == direct.first_row &&
                tile.offset == direct.offset,
            "tile ", index, " is another one when it is advanced to");
    compute_tile(tile);
  }
  return output_.take();
}

void Model::compute_tile(const Tile& tile) {
  std::memset(accumulators_.get(), 0, sizeof(Accumulators) * 2);
  for (std::int32_t u = 0; u < g_.units(); ++u) {
    const Unit unit = unit_number(g_, u);
    const std::uint32_t slot = load_box(tile, unit);
    for (std::int32_t sharer = 0; sharer < g_.sharers; ++sharer) {
      const std::int32_t filter_group = tile.filter_tile * g_.sharers + sharer;
      std::int32_t tap = taps_before(g_, unit);
      for (std::int32_t r = 0; r < unit.rows(g_); ++r) {
        for (std::int32_t s = 0; s < unit.columns(g_); ++s, ++tap) {
          const std::int32_t resident = filter_group * g_.channel_blocks * g_.taps_r * g_.taps_s + tap;
          const std::int32_t stage = g_.weights_stay ? resident : stages_.take();
          if (!g_.weights_stay) load_stage(stage, filter_group, tap);
          const auto row = static_cast<std::uint32_t>(sm90::tap_row(g_, tile, r, s));
          multiply(slot + row * static_cast<std::uint32_t>(g_.row_bytes), stage_address(stage),
                   unit.steps(g_), num_filters(filter_group), accumulators_[sharer]);
        }
      }
    }
  }
  for (std::int32_t sharer = 0; sharer < g_.sharers; ++sharer) store(tile, sharer);
}

// ---- The input's boxes.

// Returns the address of the slot.
std::uint32_t Model::load_box(const Tile& tile, const Unit& unit) {
  const auto slot = static_cast<std::uint32_t>(slots_.take() * g_.slot_bytes);
  shared_.clear(slot, g_.slot_bytes);
  const auto pitch = static_cast<std::int32_t>(g_.pitch.divisor);
  const std::int32_t rows = tile.box_rows(g_, unit.rows(g_));
  require(rows * pitch * g_.row_bytes <= g_.slot_bytes, "a box of ", rows, " rows does not fit its slot");
  if (run_.gathered) {
    for (std::int32_t i = 0; i < rows * pitch; ++i) gather_pixel(tile, unit, i, slot);
  } else {
    for (std::int32_t y = 0; y < rows; ++y) copy_box_row(tile, unit, y, slot);
  }
  return slot;
}

// What cuTensorMapEncodeTiled would refuse.
void Model::check_input_map() const {
  const auto& strides = run_.input.strides;
  require(run_.padding == Padding::kZeros && strides[1] == 1, "TMA takes NHWC and zeros only");
  for (const std::size_t dimension : {0, 2, 3}) {
    require(strides[dimension] * g_.element_bytes % kPieceBytes == 0, "stride ", strides[dimension],
            " of TMA is no multiple of 16 bytes");
  }
  require(g_.pitch.divisor <= kTmaExtent, "a TMA box of ", g_.pitch.divisor, " pixels");
}

// One copy of TMA: a box of row_bytes of channels and `pitch` pixels.
void Model::copy_box_row(const Tile& tile, const Unit& unit, std::int32_t y, std::uint32_t slot) {
  const auto pitch = static_cast<std::int32_t>(g_.pitch.divisor);
  const auto to = slot + static_cast<std::uint32_t>(y * pitch * g_.row_bytes);
  require(to % kTmaAlignment == 0, "TMA writes to address ", to);
  const BoxRow row = BoxRow::of(g_, tile, unit, y);
  const std::int32_t first_column = sm90::box_column(g_, tile, unit);
  const std::int32_t channels = g_.row_bytes / g_.element_bytes;
  for (std::int32_t x = 0; x < pitch; ++x) {
    for (std::int32_t b = 0; b < g_.row_bytes; b += kPieceBytes) {
      std::uint8_t piece[kPieceBytes];
      read_input(row.n, row.h, first_column + x, unit.channel_block * channels + b / g_.element_bytes, piece);
      const auto address = to + static_cast<std::uint32_t>(x * g_.row_bytes + b);
      shared_.write(sm90::swizzled(address, g_.row_bytes), piece, kPieceBytes);
    }
  }
}

// A thread's work for one pixel of a box: only what the steps will multiply.
void Model::gather_pixel(const Tile& tile, const Unit& unit, std::int32_t position, std::uint32_t slot) {
  const std::int32_t y = g_.pitch.quotient(position);
  const std::int32_t x = position - y * static_cast<std::int32_t>(g_.pitch.divisor);
  const BoxRow row = BoxRow::of(g_, tile, unit, y);
  const std::int32_t h = padded(row.h, g_.height, run_.padding);
  const std::int32_t w = padded(sm90::box_column(g_, tile, unit) + x, g_.width, run_.padding);
  const std::int32_t channels = g_.row_bytes / g_.element_bytes;
  for (std::int32_t b = 0; b < unit.steps(g_) * kStepBytes; b += kPieceBytes) {
    std::uint8_t piece[kPieceBytes];
    read_input(row.n, h, w, unit.channel_block * channels + b / g_.element_bytes, piece);
    const auto address = slot + static_cast<std::uint32_t>(position * g_.row_bytes + b);
    shared_.write(sm90::swizzled(address, g_.row_bytes), piece, kPieceBytes);
  }
}

// 16 bytes of channels of an input pixel; zeros outside the tensor.
void Model::read_input(std::int32_t n, std::int32_t h, std::int32_t w, std::int32_t channel,
                       std::uint8_t (&piece)[kPieceBytes]) const {
  const auto inside = [](std::int32_t i, std::int32_t extent) { return i >= 0 && i < extent; };
  const bool pixel = inside(n, g_.batch) && inside(h, g_.height) && inside(w, g_.width);
  const auto& strides = run_.input.strides;
  for (std::int32_t b = 0; b < kPieceBytes; b += g_.element_bytes, ++channel) {
    float value = 0;
    if (pixel && inside(channel, g_.channels)) {
      const std::int64_t index = n * strides[0] + channel * strides[1] + h * strides[2] + w * strides[3];
      require(index >= 0 && index < static_cast<std::int64_t>(run_.input.values.size()), "input ", index,
              " of ", run_.input.values.size(), " is read");
      value = run_.input.values[static_cast<std::size_t>(index)];
    }
    store_element(g_.element_bytes, value, piece + b);
  }
}

// ---- Weights, and what the tensor cores do.

std::uint32_t Model::stage_address(std::int32_t stage) const {
  const auto address = static_cast<std::uint32_t>(g_.weights_offset() + stage * g_.stage_bytes);
  require(stage < g_.num_stages && address % sm90::kSwizzleAtom == 0, "stage ", stage, " at ", address);
  return address;
}

void Model::load_stage(std::int32_t stage, std::int32_t filter_group, std::int32_t tap) {
  const std::int64_t from = filter_group * sm90::packed_group_bytes(g_) + std::int64_t{tap} * g_.stage_bytes;
  require(from >= 0 && from + g_.stage_bytes <= static_cast<std::int64_t>(packed_.size()), "tap ", tap,
          " of filter group ", filter_group, " lies outside of the packed weights");
  shared_.write(stage_address(stage), packed_.data() + from, g_.stage_bytes);
}

// Rows of one operand of one step, of kStepBytes each: element e of row i goes to values[i * row + e *
// element].
void Model::read_rows(std::uint32_t rows, std::int32_t num_rows, std::int32_t step, float* values,
                      std::size_t row, std::size_t element) {
  for (std::int32_t i = 0; i < num_rows; ++i) {
    float* value = values + static_cast<std::size_t>(i) * row;
    for (std::int32_t b = 0; b < kStepBytes; b += kPieceBytes) {
      const auto address = rows + static_cast<std::uint32_t>(i * g_.row_bytes + step * kStepBytes + b);
      const std::uint8_t* piece = shared_.at(sm90::swizzled(address, g_.row_bytes), kPieceBytes);
      for (std::int32_t e = 0; e < kPieceBytes; e += g_.element_bytes, value += element) {
        *value = load_element(g_.element_bytes, piece + e);
      }
    }
  }
}

// wgmma, once a step. Filters that do not exist are left out: no other's accumulators depend on them.
void Model::multiply(std::uint32_t pixels, std::uint32_t stage, std::int32_t steps, std::int32_t num_filters,
                     Accumulators& accumulators) {
  constexpr std::size_t kMostElements = kStepBytes / 2;
  static float b[kMostElements][kTilePixels];
  static float a[kGroupFilters][kMostElements];
  const std::int32_t elements = kStepBytes / g_.element_bytes;
  for (std::int32_t step = 0; step < steps; ++step) {
    read_rows(pixels, kTilePixels, step, b[0], 1, kTilePixels);
    read_rows(stage, kGroupFilters, step, a[0], kMostElements, 1);
    for (std::int32_t k = 0; k < num_filters; ++k) {
      float* const sums = accumulators[k];
      for (std::int32_t e = 0; e < elements; e += 4) {
        const float* const w = &a[k][e];
        for (std::int32_t i = 0; i < kTilePixels; ++i) {
          sums[i] += w[0] * b[e][i] + w[1] * b[e + 1][i] + w[2] * b[e + 2][i] + w[3] * b[e + 3][i];
        }
      }
    }
  }
}

// ---- The output.

void Model::store(const Tile& tile, std::int32_t sharer) {
  constexpr std::int32_t kWarps = kGroupFilters / kWarpFilters;
  const std::int32_t image = tile.image(g_);
  const std::int32_t first_row = g_.stacked ? 0 : tile.first_row;
  const std::uint32_t offsets = fill_offsets(tile, image, first_row, sharer);
  for (std::int32_t warp = 0; warp < kWarps; ++warp) {
    const std::int32_t filter =
        (tile.filter_tile * g_.sharers + sharer) * kGroupFilters + warp * kWarpFilters;
    if (filter >= g_.filters) continue;
    for (std::int32_t piece = 0; piece < sm90::kPieces; ++piece) {
      const auto staging =
          static_cast<std::uint32_t>(g_.staging_offset + (sharer * kWarps + warp) * sm90::kWarpStagingBytes +
                                     piece % 2 * kPieceStagingBytes);
      PieceValues values;
      for (std::int32_t lane = 0; lane < 32; ++lane) {
        for (std::int32_t i = 0; i < kPieceAccumulators; ++i) {
          const std::int32_t from = piece * kPieceAccumulators + i;
          const std::int32_t row = warp * kWarpFilters + sm90::accumulator_filter(lane, from);
          values[lane][i / 2 % 2 * (kPieceAccumulators / 2) + i / 4 * 2 + i % 2] =
              accumulators_[sharer][row][sm90::accumulator_position(lane, from)];
        }
      }
      shared_.clear(staging, kPieceStagingBytes);
      stage_piece(staging, values);
      store_staged(staging,
                   image * output_strides_[0] + filter * output_strides_[1] + first_row * output_strides_[2],
                   offsets + static_cast<std::uint32_t>(piece * kPiecePixels * 4), g_.filters - filter);
    }
  }
}

// Returns the address of the table.
std::uint32_t Model::fill_offsets(const Tile& tile, std::int32_t image, std::int32_t first_row,
                                  std::int32_t sharer) {
  const auto offsets = static_cast<std::uint32_t>(g_.tile_memory_offset + sharer * sm90::kTileMemoryBytes);
  const auto& strides = output_strides_;
  for (std::int32_t at = 0; at < kTilePixels; ++at) {
    const Pixel pixel = Pixel::of(g_, tile, at);
    const std::int64_t wide = pixel.valid ? (pixel.n - image) * strides[0] +
                                                (pixel.p - first_row) * strides[2] + pixel.q * strides[3]
                                          : -1;
    const auto offset = static_cast<std::int32_t>(wide);
    require(offset == wide && (offset >= 0) == pixel.valid, "offset ", wide, " of position ", at);
    std::memcpy(shared_.at(offsets + static_cast<std::uint32_t>(at * 4), 4), &offset, 4);
  }
  return offsets;
}

// `size` bytes of a warp's staging memory, for one access.
std::uint8_t* Model::staged(std::uint32_t staging, std::int32_t offset, std::int32_t size) {
  require(offset >= 0 && offset + size <= kPieceStagingBytes, size, " bytes are accessed at ", offset,
          " of staging memory");
  const std::uint32_t address = staging + static_cast<std::uint32_t>(offset);
  require(address % static_cast<std::uint32_t>(size) == 0, size, " bytes at ", address, " of shared memory");
  return shared_.at(address, size);
}

// Word h of a lane's values is that of filter lane / 4 + 8 * h.
void Model::stage_piece(std::uint32_t staging, const PieceValues& values) {
  constexpr std::int32_t kWord = kPieceAccumulators / 2;
  if (run_.output_bytes == 2) {
    for (std::int32_t h = 0; h < 2; ++h) {
      std::int32_t rows[32];
      std::uint32_t matrices[32][4];
      for (std::int32_t lane = 0; lane < 32; ++lane) {
        const std::int32_t matrix = lane / 8, row = lane % 8;
        for (std::int32_t j = 0; j < 4; ++j) {
          const float* const pair = &values[lane][h * kWord + 2 * j];
          matrices[lane][j] = packed_pair(pair[0], pair[1]);
        }
        rows[lane] = staging_offset(stores_.filters, 2, 8 * h + (stores_.filters ? 0 : row),
                                    8 * matrix + (stores_.filters ? row : 0));
      }
      store_matrices(staging, rows, matrices);
    }
    return;
  }
  for (std::int32_t lane = 0; lane < 32; ++lane) {
    for (std::int32_t i = 0; i < kPieceAccumulators; i += 2) {
      const float* const pair = &values[lane][i / 2 % 2 * kWord + i / 4 * 2];
      const std::int32_t to = staging_offset(stores_.filters, 4, sm90::accumulator_filter(lane, i),
                                             sm90::accumulator_position(lane, i));
      if (stores_.filters) {
        std::memcpy(staged(staging, to, 4), &pair[0], 4);
        std::memcpy(staged(staging, to + sm90::staging_pitch(true, 4), 4), &pair[1], 4);
      } else {
        std::memcpy(staged(staging, to, 8), pair, 8);
      }
    }
  }
}

// stmatrix.x4, transposed for filters. Lane 8 * m + r brings the address of row r of matrix m.
void Model::store_matrices(std::uint32_t staging, const std::int32_t (&rows)[32],
                           const std::uint32_t (&matrices)[32][4]) {
  for (std::int32_t m = 0; m < 4; ++m) {
    for (std::int32_t r = 0; r < 8; ++r) {
      std::uint8_t* const to = staged(staging, rows[8 * m + r], 16);
      for (std::int32_t c = 0; c < 8; ++c) {
        const std::int32_t row = stores_.filters ? c : r, column = stores_.filters ? r : c;
        const std::uint32_t pair = matrices[4 * row + column / 2][m];
        const auto element = static_cast<std::uint16_t>(column % 2 == 0 ? pair : pair >> 16);
        std::memcpy(to + 2 * c, &element, 2);
      }
    }
  }
}

// A staged piece to the output. `to` is the warp's first filter in the tile's first image, `offsets` the
// address of the piece's, and `filters` how many are left from the first on.
void Model::store_staged(std::uint32_t staging, std::int64_t to, std::uint32_t offsets,
                         std::int32_t filters) {
  const std::int32_t bytes = run_.output_bytes;
  for (std::int32_t turn = 0; turn < sm90::stored_turns(stores_.width); ++turn) {
    for (std::int32_t lane = 0; lane < 32; ++lane) {
      const StoredElements elements = stores_.filters ? StoredElements::filters(stores_.width, lane, turn)
                                                      : StoredElements::pixels(stores_.width, lane, turn);
      std::int32_t offset;
      std::memcpy(&offset, shared_.at(offsets + static_cast<std::uint32_t>(elements.pixel * 4), 4), 4);
      const std::uint8_t* const word =
          staged(staging, staging_offset(stores_.filters, bytes, elements.filter, elements.pixel),
                 stores_.width * bytes);
      if (offset < 0 || elements.filter >= filters) continue;
      const std::int64_t distance = elements.filter * (stores_.filters ? 1 : output_strides_[1]);
      output_.write(to + offset + distance, stores_.width, bytes, word);
    }
  }
}

}  // namespace

Stores Stores::of(const HaloGeometry& g, bool channels_last, std::int32_t output_bytes) {
  const auto strides = output_strides(g, channels_last);
  const auto in_words = [&](std::size_t inner, std::int32_t word) {
    for (std::size_t d = 0; d < strides.size(); ++d) {
      if (d == inner ? strides[d] != 1 : strides[d] % word != 0) return false;
    }
    return true;
  };
  const std::int32_t vector = 16 / output_bytes;
  if (g.filters % vector == 0 && in_words(1, vector)) return {true, vector};
  const bool in_pairs =
      in_words(3, 2) && g.pitch.divisor % 2 == 0 && g.strip_width % 2 == 0 && g.out_width % 2 == 0;
  return {false, in_pairs ? 2 : 1};
}

std::int32_t padded(std::int32_t index, std::int32_t extent, Padding mode) {
  if (index >= 0 && index < extent) return index;
  switch (mode) {
    case Padding::kZeros:
      return -1;
    case Padding::kReplicate:
      return index < 0 ? 0 : extent - 1;
    case Padding::kReflect:
      index = index < 0 ? -index : 2 * (extent - 1) - index;
      break;
    case Padding::kCircular:
      index += index < 0 ? extent : -extent;
      break;
  }
  return index >= 0 && index < extent ? index : -1;  // what lies farther out belongs to dropped positions
}

std::vector<std::uint8_t> pack_weights(const HaloGeometry& g, std::span<const std::int8_t> weights) {
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(g.filter_groups() * sm90::packed_group_bytes(g)),
                                   kNanByte);
  const std::int32_t taps = g.channel_blocks * g.taps_r * g.taps_s;
  const std::int32_t elements = g.row_bytes / g.element_bytes;
  std::uint8_t* stage = packed.data();
  for (std::int32_t group = 0; group < g.filter_groups(); ++group) {
    for (std::int32_t index = 0; index < taps; ++index, stage += g.stage_bytes) {
      const sm90::PackedTap tap = sm90::PackedTap::of(g, index);
      for (std::int32_t row = 0; row < kGroupFilters; ++row) {
        for (std::int32_t e = 0; e < elements; ++e) {
          const std::int32_t k = group * kGroupFilters + row;
          const std::int32_t c = tap.channel_block * elements + e;
          const bool exists = k < g.filters && c < g.channels;
          const std::int64_t from =
              ((std::int64_t{k} * g.channels + c) * g.taps_r + tap.r) * g.taps_s + tap.s;
          const float value = exists ? weights[static_cast<std::size_t>(from)] : 0.0f;
          const auto to = static_cast<std::uint32_t>(row * g.row_bytes + e * g.element_bytes);
          store_element(g.element_bytes, value, stage + sm90::swizzled(to, g.row_bytes));
        }
      }
    }
  }
  return packed;
}

std::vector<float> run_halo_model(const HaloRun& run) { return Model(run).compute(); }

}  // namespace epiconv::host_model
