#include "host_model/halo_model.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "host_model/halo_input.h"
#include "host_model/halo_memory.h"
#include "host_model/halo_output.h"
#include "host_model/units.h"

namespace epiconv::host_model {
namespace {

using sm90::HaloGeometry;
using sm90::kGroupFilters;
using sm90::kStepBytes;
using sm90::kTilePixels;
using sm90::Share;
using sm90::taps_before;
using sm90::Tile;
using sm90::Unit;
using sm90::unit_number;

constexpr std::int32_t kPieceBytes = InputBoxes::kPieceBytes;
constexpr std::int32_t kBlocks = 3;  // at most, one after the other

class Model {
 public:
  explicit Model(const HaloRun& run)
      : run_(run),
        g_(run.geometry),
        packed_(pack_weights(run.geometry, run.weights)),
        shared_(run.geometry.shared_bytes),
        input_(run, shared_),
        stages_(run.geometry.num_stages),
        output_(run, shared_),
        accumulators_(std::make_unique<Accumulators[]>(2)) {}

  std::vector<float> compute();

 private:
  void compute_tile(const Tile& tile);
  std::uint32_t stage_address(std::int32_t stage) const;
  void compute_unit(const Tile& tile, const Unit& unit, std::uint32_t slot, const Share& share,
                    Accumulators& accumulators);
  void load_stage(std::int32_t stage, std::int32_t tap);
  void multiply(std::uint32_t pixels, std::uint32_t stage, std::int32_t steps, std::int32_t num_rows,
                std::int32_t phase, Accumulators& accumulators);
  void read_rows(std::uint32_t rows, std::int32_t num_rows, std::int32_t step, float* values, std::size_t row,
                 std::size_t element);

  // Rows of M that are not all zeros.
  std::int32_t num_rows(std::int32_t filter_group) const {
    if (g_.joint_rows > 1) return kGroupFilters;
    return std::clamp(g_.filters - filter_group * kGroupFilters, 0, kGroupFilters);
  }

  const HaloRun& run_;
  const HaloGeometry& g_;
  std::vector<std::uint8_t> packed_;
  SharedMemory shared_;
  InputBoxes input_;
  Ring stages_;
  OutputTiles output_;
  std::unique_ptr<Accumulators[]> accumulators_;  // of each sharer
};

std::vector<float> Model::compute() {
  if (g_.weights_stay) {
    for (std::int32_t stage = 0; stage < g_.num_stages; ++stage) load_stage(stage, stage);
  }
  const std::int32_t blocks = std::min(kBlocks, g_.tiles);
  const sm90::Visits once;
  for (std::int32_t block = 0; block < blocks; ++block) {
    const sm90::BlockTiles tiles{g_, once, block, blocks};
    input_.begin(tiles);
    for (sm90::TileWalk<false> walk(tiles); !walk.ended(); walk.advance(tiles)) {
      const Tile& tile = walk.tile;
      const Tile direct = Tile::of(g_, walk.number);
      require(tile.filter_tile == direct.filter_tile && tile.strip == direct.strip &&
                  tile.raster == direct.raster && tile.first_row == direct.first_row &&
                  tile.offset == direct.offset,
              "tile ", walk.number, " is another one when it is advanced to");
      compute_tile(tile);
    }
    output_.finish();
  }
  return output_.take();
}

void Model::compute_tile(const Tile& tile) {
  std::memset(accumulators_.get(), 0, sizeof(Accumulators) * 2);
  for (std::int32_t u = 0; u < g_.units; ++u) {
    const Unit unit = unit_number(g_, u);
    const std::uint32_t slot = input_.load(tile, unit);
    for (std::int32_t sharer = 0; sharer < g_.sharers; ++sharer) {
      compute_unit(tile, unit, slot, Share::of(g_, tile.filter_tile * g_.sharers + sharer),
                   accumulators_[sharer]);
    }
  }
  for (std::int32_t sharer = 0; sharer < g_.sharers; ++sharer) {
    output_.store(tile, sharer, accumulators_[sharer]);
  }
}

void Model::compute_unit(const Tile& tile, const Unit& unit, std::uint32_t slot, const Share& share,
                         Accumulators& accumulators) {
  const sm90::PlaceSpan rows = unit.rows_of(g_, share.row_phase);
  std::int32_t tap = share.taps_before(g_) + taps_before(g_, unit, share.row_phase);
  for (std::int32_t r = rows.first; r < rows.end; ++r) {
    for (std::int32_t phase = 0; phase < g_.phases_w; ++phase) {
      const sm90::PlaceSpan columns = unit.columns_of(g_, phase);
      for (std::int32_t s = columns.first; s < columns.end; ++s, ++tap) {
        const std::int32_t stage = g_.weights_stay ? tap : stages_.take();
        if (!g_.weights_stay) load_stage(stage, tap);
        const auto row = static_cast<std::uint32_t>(sm90::tap_row(g_, tile, r, s));
        multiply(slot + row * static_cast<std::uint32_t>(g_.row_bytes), stage_address(stage), unit.steps(g_),
                 num_rows(share.group), phase, accumulators);
      }
    }
  }
}

// ---- Weights, and what the tensor cores do.

std::uint32_t Model::stage_address(std::int32_t stage) const {
  const auto address = static_cast<std::uint32_t>(g_.weights_offset() + stage * g_.stage_bytes);
  require(stage < g_.num_stages && address % sm90::kSwizzleAtom == 0, "stage ", stage, " at ", address);
  return address;
}

// `tap` of all packed ones.
void Model::load_stage(std::int32_t stage, std::int32_t tap) {
  const std::int64_t from = std::int64_t{tap} * g_.stage_bytes;
  require(from >= 0 && from + g_.stage_bytes <= static_cast<std::int64_t>(packed_.size()), "tap ", tap,
          " lies outside of the packed weights");
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

// wgmma, once a step, of the positions of a column phase. Rows of M without a filter are left out: no other's
// accumulators depend on them.
void Model::multiply(std::uint32_t pixels, std::uint32_t stage, std::int32_t steps, std::int32_t num_rows,
                     std::int32_t phase, Accumulators& accumulators) {
  constexpr std::size_t kMostElements = kStepBytes / 2;
  static float b[kMostElements][kTilePixels];
  static float a[kGroupFilters][kMostElements];
  const std::int32_t elements = kStepBytes / g_.element_bytes;
  for (std::int32_t step = 0; step < steps; ++step) {
    read_rows(pixels, g_.run, step, b[0], 1, kTilePixels);
    read_rows(stage, kGroupFilters, step, a[0], kMostElements, 1);
    for (std::int32_t k = 0; k < num_rows; ++k) {
      float* const sums = accumulators[k];
      for (std::int32_t e = 0; e < elements; e += 4) {
        const float* const w = &a[k][e];
        for (std::int32_t i = 0; i < g_.run; ++i) {
          sums[(i << g_.interleave) + phase] +=
              w[0] * b[e][i] + w[1] * b[e + 1][i] + w[2] * b[e + 2][i] + w[3] * b[e + 3][i];
        }
      }
    }
  }
}

}  // namespace

sm90::TensorLayout output_layout(std::int64_t filters, std::int64_t height, std::int64_t width,
                                 bool channels_last, std::int32_t output_bytes) {
  const DType dtype = output_bytes == 4 ? DType::kFloat32 : DType::kBFloat16;
  if (channels_last) return {dtype, {height * width * filters, 1, width * filters, filters}};
  return {dtype, {filters * height * width, height * width, width, 1}};
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
  const std::int32_t filter_rows = g.taps / g.channel_blocks / g.columns - (g.joint_rows - 1);
  const std::int32_t elements = g.row_bytes / g.element_bytes;
  std::uint8_t* stage = packed.data();
  for (std::int32_t number = 0; number < g.filter_groups() * g.phases_h; ++number) {
    const sm90::Share share = sm90::Share::of(g, number);
    for (std::int32_t index = 0; index < share.taps(g); ++index, stage += g.stage_bytes) {
      const sm90::PackedTap tap = sm90::PackedTap::of(g, share.row_phase, index);
      for (std::int32_t row = 0; row < kGroupFilters; ++row) {
        const auto [k, r] = sm90::PackedRow::of(g, share.group, row, tap.r);
        for (std::int32_t e = 0; e < elements; ++e) {
          const std::int32_t c = tap.channel_block * elements + e;
          const bool exists = k < g.filters && c < g.channels && r >= 0;
          const std::int64_t from =
              ((std::int64_t{k} * g.channels + c) * filter_rows + r) * g.columns + tap.s;
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
