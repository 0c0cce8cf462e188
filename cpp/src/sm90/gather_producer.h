// Loads the boxes of an input of any strides and any padding mode: three warps read elements, round them to
// what the tensor cores multiply, and write 16 bytes of channels per pixel.
//
// Where the rows and columns of a box lie is looked up in tables that are written anew for each unit, twice
// in turns, so that one synchronisation a unit is enough.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device/padding.h"
#include "device/ptx/fences.h"
#include "device/ptx/prefetch.h"
#include "sm90/conv_parameters.h"
#include "sm90/fragments.h"
#include "sm90/kept_rows.h"
#include "sm90/math.h"
#include "sm90/pipeline.h"

namespace epiconv::sm90 {

inline constexpr int kLoadsInFlight = 32;  // of a thread: what its registers hold, and what hides the latency

// Offsets of a box's rows and columns in the input, or -1.
struct BoxTables {
  std::int64_t* rows;
  std::int32_t* columns;

  __device__ __forceinline__ static BoxTables of(const HaloGeometry& g, std::uint8_t* memory, int which) {
    auto* const rows = reinterpret_cast<std::int64_t*>(memory + g.table_offset + which * g.table_bytes());
    return {rows, reinterpret_cast<std::int32_t*>(rows + g.box_rows)};
  }

  __device__ __forceinline__ void fill(const ConvParameters& p, const Tile& tile, const Unit& unit,
                                       int thread) const {
    const HaloGeometry& g = p.geometry;
    const int num_rows = tile.box_rows(g, unit.rows(g));
    for (int y = thread; y < num_rows; y += kLoaderThreads) {
      const BoxRow row = BoxRow::of(g, tile, unit, y);
      const std::int32_t h = padded(row.h, g.height, p.input.padding_mode);
      rows[y] = h < 0 || row.n >= g.batch ? -1 : row.n * p.input.stride_n + h * p.input.stride_h;
    }
    const int first = box_column(g, tile, unit);
    for (int x = thread; x < static_cast<int>(g.pitch.divisor); x += kLoaderThreads) {
      const std::int32_t w = padded(first + x, g.width, p.input.padding_mode);
      columns[x] = w < 0 ? -1 : w * p.input.stride_w;
    }
  }
};

// The elements of a box, row by row, of which the threads take every kLoaderThreads-th.
struct BoxCursor {
  std::int32_t y, x;
  std::int32_t width, step_rows, step_columns;

  __device__ __forceinline__ BoxCursor(const Divisor& by, int thread, int first_row)
      : y(by.quotient(thread)),
        width(static_cast<std::int32_t>(by.divisor)),
        step_rows(by.quotient(kLoaderThreads)) {
    x = thread - y * width;
    y += first_row;
    step_columns = kLoaderThreads - step_rows * width;
  }
  __device__ __forceinline__ void advance() {
    y += step_rows;
    x += step_columns;
    if (x < width) return;
    x -= width;
    ++y;
  }
};

template <typename Math, typename In, bool kGeneral>
class GatherProducer {
 public:
  __device__ __forceinline__ GatherProducer(const ConvParameters& p, const SharedMemory& shared,
                                            std::uint8_t* memory, int thread)
      : p_(p), g_(p.geometry), shared_(shared), memory_(memory), thread_(thread) {}

  __device__ __forceinline__ void run() {
    RingPlace place(g_.num_slots);
    const RowKeeper<2, kGeneral> keeper(shared_, memory_, thread_);
    int which = 0;
    UnitWalk<kGeneral> walk(block_tiles(p_));
    table(which).fill(p_, walk.tile(), walk.unit, thread_);
    while (!walk.ended()) {
      const int following = which == kBoxTables - 1 ? 0 : which + 1;
      UnitWalk<kGeneral> next = walk;
      next.advance();
      if (!next.ended()) table(following).fill(p_, next.tile(), next.unit, thread_);
      loader_barrier();
      if (!next.ended()) prefetch(next, table(following));
      ptx::mbarrier_wait(shared_.slot_empty(place.index()), place.empty_parity(), "empty slot",
                         place.index());
      std::uint8_t* const slot = memory_ + place.index() * g_.slot_bytes;
      const KeptRows kept = walk.kept_rows();
      keeper.begin(kept, place);
      fill_slot(walk, table(which), kept.count, slot);
      keeper.end(kept, place);
      ptx::fence_async_shared();
      __syncwarp();
      if (thread_ % 32 == 0) ptx::mbarrier_arrive(shared_.slot_full(place.index()));
      place.next();
      which = following;
      walk.advance();
    }
  }

 private:
  static constexpr int kPieceChannels = Math::kPieceChannels;
  // Pieces that a thread loads at a time, of one pixel or of two side by side.
  static constexpr int kPieces = kLoadsInFlight / kPieceChannels / (sizeof(In) == 2 ? 2 : 1);
  static constexpr int kPairPieces = sizeof(In) == 2 ? 2 * kPieces : kPieces / 2;
  // Two pixels of a channel, kept as they come: as two elements they would take two registers.
  using Pair = std::conditional_t<sizeof(In) == 2, std::uint32_t, float2>;

  // Where row y of a box lies in its slot, in rows of the box.
  __device__ __forceinline__ int line(int y) const { return kGeneral ? g_.slot_line(y) : y; }

  __device__ __forceinline__ BoxTables table(int which) const { return BoxTables::of(g_, memory_, which); }

  // Asks for the lines of a unit's box, where pixels lie side by side.
  __device__ __forceinline__ void prefetch(const UnitWalk<kGeneral>& walk, const BoxTables& tables) const {
    if (p_.input.stride_w != 1 || p_.input.stride_c == 1) return;
    constexpr int kLinePixels = kLineBytes / sizeof(In);
    const int pitch = static_cast<int>(g_.pitch.divisor);
    const int block_channels = g_.row_bytes / g_.element_bytes;
    const int first = walk.unit.channel_block * block_channels;
    const int last = min(first + block_channels, g_.channels);
    const int segments = (pitch + kLinePixels - 1) / kLinePixels;
    const int lines = walk.box_rows() * segments;
    for (int line = thread_ % 32; line < lines; line += 32) {
      const int y = line / segments;
      const int x = min((line - y * segments) * kLinePixels + kLinePixels / 2, pitch - 1);
      const std::int64_t row = tables.rows[y];
      const std::int32_t column = tables.columns[x];
      if (row < 0 || column < 0) continue;
      const In* from = static_cast<const In*>(p_.input.data) + row + column;
      for (int channel = first + thread_ / 32; channel < last; channel += kLoaderWarps) {
        ptx::prefetch_to_l2(from + channel * p_.input.stride_c);
      }
    }
  }

  // Loads the box's rows from `kept` on.
  __device__ __forceinline__ void fill_slot(const UnitWalk<kGeneral>& walk, const BoxTables& tables, int kept,
                                            std::uint8_t* slot) const {
    const int row_pieces = g_.row_bytes / 16;
    const int step = p_.input.in_pairs ? kPairPieces : kPieces;
    const int rows = walk.box_rows();
    int channel = walk.unit.channel_block * (g_.row_bytes / g_.element_bytes);
    const In* from = static_cast<const In*>(p_.input.data) + channel * p_.input.stride_c;
    const int column = box_column(g_, walk.tile(), walk.unit);
#pragma unroll 1
    for (int first = 0; first < row_pieces; first += step) {
      const int channels = g_.channels - channel;
      if (p_.input.in_pairs) {
        gather_pairs(tables, slot, kept, rows, column, first, from, channels);
      } else {
#pragma unroll 1
        for (BoxCursor at(g_.pitch, thread_, kept); at.y < rows; at.advance()) {
          gather_pixel(tables, slot, at, first, from, channels);
        }
      }
      channel += step * kPieceChannels;
      from += step * kPieceChannels * p_.input.stride_c;
    }
  }

  __device__ __forceinline__ void store(std::uint8_t* slot, int position, int piece,
                                        const In (&values)[kPieceChannels]) const {
    *reinterpret_cast<uint4*>(slot + SlotRow::of(g_, position).piece(piece)) = Math::pack(values);
  }

  // kCount channels from `from` on, zeros behind the first `channels`.
  template <typename Element, int kCount>
  __device__ __forceinline__ void load(const In* from, int channels, Element (&values)[kCount]) const {
    const std::int64_t stride = p_.input.stride_c;
    if (channels >= kCount) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        values[e] = *reinterpret_cast<const Element*>(from);
        from += stride;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      values[e] = Element{};
      if (e < channels) values[e] = *reinterpret_cast<const Element*>(from);
      from += stride;
    }
  }

  // Channels that lie side by side.
  static __device__ __forceinline__ void load_vectors(const In* from, In (&values)[kPieceChannels]) {
    constexpr int kVectors = kPieceChannels * sizeof(In) / 16;
    uint4 words[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) words[v] = __ldg(reinterpret_cast<const uint4*>(from) + v);
    memcpy(values, words, sizeof(words));
  }

  // Up to kPieces pieces of a row, from piece `first` on, of the box's pixel `position`; `from` is the
  // channel with which they begin in the tensor's first pixel, and `channels` are left from there on.
  __device__ __forceinline__ void gather_pixel(const BoxTables& tables, std::uint8_t* slot,
                                               const BoxCursor& at, int first, const In* from,
                                               int channels) const {
    const int pieces = g_.row_bytes / 16 - first;
    const int position = line(at.y) * at.width + at.x;
    const std::int64_t row = tables.rows[at.y];
    const std::int32_t column = tables.columns[at.x];
    if (row < 0 || column < 0) channels = 0;
    from += row + column;
    In values[kPieces * kPieceChannels];
    if (p_.input.in_vectors && channels % kPieceChannels == 0) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        In piece[kPieceChannels] = {};
        if (i * kPieceChannels < channels) load_vectors(from + i * kPieceChannels, piece);
#pragma unroll
        for (int e = 0; e < kPieceChannels; ++e) values[i * kPieceChannels + e] = piece[e];
      }
    } else {
      load(from, min(channels, pieces * kPieceChannels), values);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i >= pieces) break;
      In piece[kPieceChannels];
#pragma unroll
      for (int e = 0; e < kPieceChannels; ++e) piece[e] = values[i * kPieceChannels + e];
      store(slot, position, first + i, piece);
    }
  }

  // A piece of the first or of the second pixel.
  static __device__ __forceinline__ uint4 pack_one(const std::uint32_t* pairs, bool second) {
    return pack_of_pair(pairs, second ? 1 : 0);
  }
  static __device__ __forceinline__ uint4 pack_one(const float2* pairs, bool second) {
    float piece[kPieceChannels];
#pragma unroll
    for (int e = 0; e < kPieceChannels; ++e) piece[e] = second ? pairs[e].y : pairs[e].x;
    return Math::pack(piece);
  }

  using Pairs = Pair[kPairPieces * kPieceChannels];

  // The same of two pixels side by side, the first in an even column of the image; an image's rows end with a
  // whole pair.
  __device__ __forceinline__ void gather_pairs(const BoxTables& tables, std::uint8_t* slot, int kept,
                                               int rows, int column, int first, const In* from,
                                               int channels) const {
    const int count = min(channels, (g_.row_bytes / 16 - first) * kPieceChannels);
    const int odd = column & 1;
#pragma unroll 1
    for (BoxCursor at(odd ? g_.pair_pitch : g_.half_pitch, thread_, kept); at.y < rows; at.advance()) {
      Pairs pairs;
      load_pairs(tables, at, column - odd, from, count, pairs);
      store_pairs(slot, at, odd, first, pairs);
    }
  }

  // `column` is that of the box's first pair.
  __device__ __forceinline__ void load_pairs(const BoxTables& tables, const BoxCursor& at, int column,
                                             const In* from, int channels, Pairs& pairs) const {
    const std::int64_t row = tables.rows[at.y];
    const int w = column + 2 * at.x;
    load(from + row + w, row < 0 || w < 0 || w >= g_.width ? 0 : channels, pairs);
  }

  __device__ __forceinline__ void store_pairs(std::uint8_t* slot, const BoxCursor& at, int odd, int first,
                                              const Pairs& pairs) const {
    const int pieces = g_.row_bytes / 16 - first;
    const int pitch = static_cast<int>(g_.pitch.divisor);
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int x = 2 * at.x - odd + second;
      if (x < 0 || x >= pitch) continue;
      const SlotRow row = SlotRow::of(g_, line(at.y) * pitch + x);
#pragma unroll
      for (int i = 0; i < kPairPieces; ++i) {
        if (i >= pieces) break;
        *reinterpret_cast<uint4*>(slot + row.piece(first + i)) = pack_one(pairs + i * kPieceChannels, second);
      }
    }
  }

  const ConvParameters& p_;
  const HaloGeometry& g_;
  const SharedMemory shared_;
  std::uint8_t* const memory_;
  const int thread_;
};

}  // namespace epiconv::sm90
