// Brings boxes of the input into shared memory, from any strides and padding.
//
// What a box's pixels are in the input is in a table. A thread loads pieces, two at a time: where channels
// lie side by side as they are multiplied, they are copied by cp.async; else they wait in registers while a
// step is multiplied, and are rounded on their way to shared memory. A warp's pieces are of pixels side by
// side, or, where channels are, of one pixel after the other.
#pragma once

#include "device/padding.h"
#include "device/ptx/cp_async.h"
#include "device/ptx/keep_here.h"
#include "device/ptx/load_if.h"
#include "device/ptx/store_shared.h"
#include "sm80/math.h"
#include "sm80/parameters.h"

namespace epiconv::sm80 {

// The same, loaded where it is read, and not kept in registers through the products.
__device__ __forceinline__ const ConvParameters& here(const ConvParameters& p) {
  return kIsCompiled ? p : (&p)[ptx::zero_here()];
}
__device__ __forceinline__ const ConvLaunch& here(const ConvLaunch& launch) {
  return (&launch)[ptx::zero_here()];
}

// By all threads: where the pixels of a unit's box lie, in bytes; -1 for zeros.
__device__ __forceinline__ void write_pixels(const ConvParameters& p, const Tile& tile,
                                             const PackedPhase& phase, std::int32_t other,
                                             std::int64_t* table, int thread) {
  const Geometry& g = p.geometry;
#pragma unroll 1
  for (int i = thread; i < g.box_pixels; i += kThreads) {
    const BoxPixel pixel = BoxPixel::of(g, tile, phase, other, i);
    std::int64_t offset =
        pixel.n * p.input.strides[0] + std::int64_t{tile.group} * g.channels * p.input.strides[1];
    bool exists = pixel.n < g.batch;
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      const std::int32_t at = padded(pixel.at[d], g.input[d], p.input.padding_mode);
      exists = exists && at >= 0;
      offset += at * p.input.strides[2 + d];
    }
    table[i] = exists ? offset * p.input.element_bytes() : -1;
  }
}

// Brings a box, one piece of a thread at a time.
template <typename Math>
class BoxLoader {
 public:
  static constexpr int kElements = Math::kPieceElements;

  __device__ __forceinline__ BoxLoader(const ConvParameters& p, const ConvLaunch& launch, int thread)
      : p_(p), launch_(launch), thread_(thread) {}

  // How often all threads load to fill a box.
  __device__ __forceinline__ std::int32_t rounds() const {
    const Geometry& g = here(p_).geometry;
    return (items(g) + kThreads - 1) / kThreads;
  }

  // What the thread has of a round.
  struct Piece {
    std::uint32_t to;                 // an address of the shared window; 0: nowhere
    std::uint32_t values[kElements];  // as they were loaded

    // Forgets it: else it would live from step to step, in more registers than there are.
    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int e = 0; e < kElements; ++e) values[e] = 0;
      to = 0;
    }
  };

  // Begins a round of a block of channels. `box` is an address of the shared window.
  __device__ __forceinline__ void load(const std::int64_t* table, std::int32_t block, std::int32_t round,
                                       std::uint32_t box, Piece& loaded) const {
    const ConvParameters& p = here(p_);
    const Geometry& g = p.geometry;
    loaded.clear();
    const std::int32_t item = round * kThreads + thread_;
    if (item >= items(g)) return;
    const auto pieces = static_cast<std::int32_t>(g.block_pieces.divisor);
    std::int32_t pixel, piece;
    if (p.input.in_pieces) {
      pixel = g.block_pieces.quotient(item);
      piece = item - pixel * pieces;
    } else {
      piece = p.input.box_pixels.quotient(item);
      pixel = item - piece * g.box_pixels;
    }
    loaded.to = box + pixel * g.pixel_bytes + piece * kPieceBytes;
    const std::int64_t offset = table[pixel];
    const std::int32_t channel = (block * pieces + piece) * kElements;
    const std::int32_t count = offset >= 0 ? g.channels - channel : 0;
    const std::int64_t distance = p.input.strides[1] * p.input.element_bytes();
    const auto* const from =
        static_cast<const std::uint8_t*>(here(launch_).input) + (count > 0 ? offset + channel * distance : 0);
    load_piece(p.input, from, distance, count, loaded);
  }

  // The same of a box that is copied, whose pixels' pieces have places among the threads that do not change
  // from round to round.
  __device__ __forceinline__ static bool has_places(const ConvParameters& p) {
    return p.input.is_copied && kThreads % static_cast<int>(p.geometry.block_pieces.divisor) == 0;
  }
  __device__ __forceinline__ void copy(const std::int64_t* table, std::int32_t block, std::int32_t round,
                                       std::uint32_t box) const {
    const Geometry& g = p_.geometry;
    const auto pieces = static_cast<int>(g.block_pieces.divisor);
    const int piece = thread_ % pieces, pixel = thread_ / pieces + round * (kThreads / pieces);
    if (items(g) % kThreads != 0 && pixel >= g.box_pixels) return;
    const std::int64_t offset = table[pixel];
    const std::int32_t channel = (block * pieces + piece) * kElements;
    const bool exists = offset >= 0 && (g.channels % (pieces * kElements) == 0 || channel < g.channels);
    const auto* const from = static_cast<const std::uint8_t*>(launch_.input) +
                             (exists ? offset + channel * p_.input.element_bytes() : 0);
    ptx::cp_async_16_or_zeros(box + pixel * g.pixel_bytes + piece * kPieceBytes, from, exists);
  }

  // Ends it; but for copies that are under way.
  __device__ __forceinline__ void store(const Piece& loaded) const {
    const InputTensor& input = here(p_).input;
    if (loaded.to == 0 || input.is_copied) return;
    uint4 packed;
    if constexpr (kElements == 4) {
      packed = Math::pack(loaded.values);
    } else if (input.is_float32) {
      packed = Math::pack(loaded.values);
    } else {
      packed = Math::pack_own(loaded.values);
    }
    ptx::store_shared(loaded.to, packed.x, packed.y, packed.z, packed.w);
  }

 private:
  __device__ __forceinline__ static std::int32_t items(const Geometry& g) {
    return g.box_pixels * static_cast<std::int32_t>(g.block_pieces.divisor);
  }

  // `count`: channels of the piece that exist, or more.
  __device__ __forceinline__ void load_piece(const InputTensor& input, const std::uint8_t* from,
                                             std::int64_t distance, std::int32_t count, Piece& loaded) const {
    if (input.is_copied) {
      ptx::cp_async_16_or_zeros(loaded.to, from, count > 0);
    } else if (input.in_pieces) {
#pragma unroll
      for (int w = 0; w < kElements / 4; ++w) ptx::load_if(count > 0, from + w * 16, &loaded.values[w * 4]);
    } else if (input.is_float32) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        loaded.values[e] = ptx::load_if<4>(e < count, from);
        from += distance;
      }
    } else if constexpr (kElements > 4) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        loaded.values[e] = ptx::load_if<2>(e < count, from);
        from += distance;
      }
    }
  }

  const ConvParameters& p_;
  const ConvLaunch& launch_;
  const int thread_;
};

}  // namespace epiconv::sm80
