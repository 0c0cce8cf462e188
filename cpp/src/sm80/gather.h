// Brings the input of a step into a stage, from any strides and padding.
//
// Where channels lie side by side, four threads load the pieces of 16 bytes of a position at once; else a
// thread has one position, of which it loads element by element, and a warp 32 positions, which are side by
// side if pixels are. Pieces that are multiplied as they are are copied by cp.async. All else waits in
// registers while the step before is multiplied, and is rounded on its way to shared memory. (On an
// H200 that was faster than cp.async of 4 bytes, element by element.)
#pragma once

#include <type_traits>

#include "device/padding.h"
#include "device/ptx/cp_async.h"
#include "device/ptx/keep_here.h"
#include "device/ptx/load_if.h"
#include "sm80/math.h"
#include "sm80/parameters.h"

namespace epiconv::sm80 {

// By one lane: what a packed entry is in this input.
__device__ __forceinline__ void write_tap(const InputTensor& input, const PackedEntry& packed, int number,
                                          TapTable& table) {
  const bool exists = packed.channel >= 0;
  const std::int64_t* const strides = input.strides + ptx::zero_here();
  std::int64_t offset = packed.channel * strides[1];
#pragma unroll
  for (int d = 0; d < kDims; ++d) offset += packed.pixel[d] * strides[2 + d];
  table.offset[number] = exists ? offset * input.element_bytes() : 0;
  table.bit[number] = exists ? 1u << packed.tap % kMaskTaps : 0;
  *reinterpret_cast<int4*>(table.pixel[number]) = {packed.pixel[0], packed.pixel[1],
                                                   exists ? packed.pixel[2] : kNoPixel, 0};
}

// A position of a tile, in the input. They lie in shared memory, where they take no registers beside the
// sums.
struct alignas(16) InputRow {
  const std::uint8_t* base;  // of the group's first channel
  std::int32_t pixel[kDims];

  __device__ __forceinline__ static InputRow of(const ConvParameters& p, const Tile& tile, int index) {
    const Position position = Position::of(p.geometry, tile.position, index);
    InputRow row;
    std::int64_t offset =
        position.n * p.input.strides[0] + std::int64_t{tile.group} * p.geometry.channels * p.input.strides[1];
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      row.pixel[d] = position.j[d] * p.geometry.advance(d);
      offset += row.pixel[d] * p.input.strides[2 + d];
    }
    row.base = static_cast<const std::uint8_t*>(p.input.data) + offset * p.input.element_bytes();
    return row;
  }

  // Which taps meet the input, where they are at most kMaskTaps.
  __device__ __forceinline__ std::uint32_t mask(const Geometry& g, const PackedPhase& taps) const {
    std::uint32_t of_dimension[kDims];
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      of_dimension[d] = 0;
#pragma unroll 1
      for (int i = 0; i < taps.count[d]; ++i) {
        if (is_in(g, d, taps.offset[d] + i * taps.offset_step[d])) of_dimension[d] |= 1u << i;
      }
    }
    std::uint32_t result = 0;
    for (int i = taps.count[0] * taps.count[1] - 1; i >= 0; --i) {
      const bool is_row = of_dimension[0] >> i / taps.count[1] & of_dimension[1] >> i % taps.count[1] & 1u;
      // A row of kMaskTaps is the only one.
      result = (taps.count[2] < kMaskTaps ? result << taps.count[2] : 0) | (is_row ? of_dimension[2] : 0);
    }
    return result;
  }
  // The same of a number of a step, however many there are.
  __device__ __forceinline__ bool has(const Geometry& g, const TapTable& table, int number) const {
    const int4 tap = *reinterpret_cast<const int4*>(table.pixel[number]);
    return is_in(g, 0, tap.x) & is_in(g, 1, tap.y) & is_in(g, 2, tap.z);
  }

 private:
  __device__ __forceinline__ bool is_in(const Geometry& g, int d, std::int32_t added) const {
    return static_cast<std::uint32_t>(pixel[d] + added) < static_cast<std::uint32_t>(g.input[d]);
  }
};

// How the input is loaded, and the type of its elements.
enum class Load {
  kCopiedPieces,  // as they are
  kPieces,
  kElements
};

template <typename Math, Load kLoad, typename Stored>
class InputGather {
 public:
  // `rows` are all of the tile's.
  __device__ __forceinline__ InputGather(const ConvParameters& p, const InputRow* rows, int thread)
      : p_(p), rows_(rows), thread_(thread) {}

  // Once the rows are there.
  __device__ __forceinline__ void begin(const PackedPhase& taps) {
    has_masks_ = taps.taps <= kMaskTaps;
    const std::uint32_t all = has_masks_ ? ~0u >> (kMaskTaps - taps.taps) : 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) masks_[i] = has_masks_ ? row(i).mask(p_.geometry, taps) : 0;
    const bool inside = has_masks_ && masks_[0] == all && masks_[kRows - 1] == all;
    is_inside_ = __all_sync(0xFFFFFFFF, inside);
    is_beside_padding_ = p_.input.padding_mode != PaddingMode::kZeros && !is_inside_;
  }

  // Forgets what has been loaded: else it would live from step to step, in more registers than there are.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * kPieceElements; ++i) values_[i / kPieceElements][i % kPieceElements] = 0;
  }

  // Begins to load a step into a stage. `is_whole`: all numbers of the step exist.
  __device__ __forceinline__ void load(const TapTable& table, bool is_whole, std::uint8_t* stage) {
    if (is_beside_padding_) {
      clear();
    } else if (is_inside_ && is_whole) {
      load_found<Found::kAll>(table, stage);
    } else if (has_masks_) {
      load_found<Found::kByMask>(table, stage);
    } else {
      load_found<Found::kByPixel>(table, stage);
    }
  }

  // Ends it; but for copies that are under way.
  __device__ __forceinline__ void store(const TapTable& table, std::uint8_t* stage) const {
    if (is_beside_padding_) {
      copy_padded(table, stage);
    } else if constexpr (kLoad != Load::kCopiedPieces) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint4 packed;
        if constexpr (sizeof(Stored) == sizeof(float)) {
          packed = Math::pack(values_[i]);
        } else {
          packed = Math::pack_own(values_[i]);
        }
        *reinterpret_cast<uint4*>(stage + place(i)) = packed;
      }
    }
  }

 private:
  static constexpr int kPieceElements = Math::kPieceElements;
  static constexpr bool kInPieces = kLoad != Load::kElements;
  static constexpr int kRows = kInPieces ? 2 : 1;  // positions of the thread

  __device__ __forceinline__ int piece(int i) const {
    return kInPieces ? thread_ % kStepPieces : thread_ / kTilePositions * 2 + i;
  }
  // Of piece i: the number of its position, and that.
  __device__ __forceinline__ int index(int i) const {
    return kInPieces ? thread_ / kStepPieces + i * (kThreads / kStepPieces) : thread_ % kTilePositions;
  }
  __device__ __forceinline__ const InputRow& row(int i) const { return rows_[index(i)]; }
  // Where it is put in a stage.
  __device__ __forceinline__ int place(int i) const {
    return index(i) * kStepBytes + swizzled(index(i), piece(i));
  }

  // How it is known what is a zero; of the warp's positions no tap meets the padding with kAll.
  enum class Found { kAll, kByMask, kByPixel };
  template <Found kFound>
  __device__ __forceinline__ void load_found(const TapTable& table, std::uint8_t* stage) {
    if constexpr (kInPieces) {
      const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(stage));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int number = piece(i) * kPieceElements;
        const std::uint8_t* const from = row(i).base + table.offset[number];
        const bool exists = find<kFound>(i, table, number);
        if constexpr (kLoad == Load::kCopiedPieces) {
          // What is a zero is not read, but its address must be one.
          const void* const address = exists ? from : p_.input.data;
          ptx::cp_async_or_zeros<16>(to + place(i), address, exists);
        } else {
#pragma unroll
          for (int w = 0; w < kPieceElements / 4; ++w)
            ptx::load_if(exists, from + w * 16, &values_[i][w * 4]);
        }
      }
    } else {
      const std::uint8_t* const base = row(0).base;
      const int first = piece(0) * kPieceElements;
#pragma unroll
      for (int i = 0; i < 2 * kPieceElements; ++i) {
        const bool exists = find<kFound>(0, table, first + i);
        values_[i / kPieceElements][i % kPieceElements] =
            ptx::load_if<sizeof(Stored)>(exists, base + table.offset[first + i]);
      }
    }
  }

  // Whether there is an element of a number of a step at the thread's position i; else it is a zero.
  template <Found kFound>
  __device__ __forceinline__ bool find(int i, const TapTable& table, int number) const {
    if constexpr (kFound == Found::kAll) return true;
    if constexpr (kFound == Found::kByMask) return (masks_[i] & table.bit[number]) != 0;
    return row(i).has(p_.geometry, table, number);
  }

  // Beside a padding that is not zero: element by element, without haste.
  __device__ __forceinline__ void copy_padded(const TapTable& table, std::uint8_t* stage) const {
    const int zero = ptx::zero_here();
    const std::int64_t* const strides = p_.input.strides + zero;
    const std::int32_t* const extents = p_.geometry.input + zero;
#pragma unroll 1
    for (int j = 0; j < 2 * kPieceElements; ++j) {
      const int i = j / kPieceElements, e = j % kPieceElements, number = piece(i) * kPieceElements + e;
      const InputRow& from = row(i);
      const std::uint8_t* address = from.base + table.offset[number];
      bool exists = table.pixel[number][kDims - 1] != kNoPixel;
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        const std::int32_t pixel = from.pixel[d] + table.pixel[number][d];
        const std::int32_t stands_for = padded(pixel, extents[d], p_.input.padding_mode);
        exists = exists && stands_for >= 0;
        address += (stands_for - pixel) * strides[2 + d] * sizeof(Stored);
      }
      const float value = exists ? from_stored<float>(*reinterpret_cast<const Stored*>(address)) : 0.0f;
      using Element = typename Math::Element;
      reinterpret_cast<Element*>(stage + place(i))[e] = Math::element(value);
    }
  }

  const ConvParameters& p_;
  const InputRow* const rows_;
  const int thread_;
  bool has_masks_, is_inside_, is_beside_padding_;
  std::uint32_t masks_[kRows];
  std::uint32_t values_[2][kPieceElements];  // as they were loaded
};

// Calls visitor.operator()<Gather>() with what loads the input.
template <typename Math, typename Visitor>
__device__ __forceinline__ void visit_gather(const InputTensor& input, Visitor&& visitor) {
  using Own = typename Math::Element;
  constexpr bool kIsNarrow = sizeof(Own) < sizeof(float);
  if (input.in_pieces) {
    if constexpr (Math::kTakesFloat32) {
      return visitor.template operator()<InputGather<Math, Load::kCopiedPieces, float>>();
    } else if (input.is_float32) {
      return visitor.template operator()<InputGather<Math, Load::kPieces, float>>();
    } else if constexpr (kIsNarrow) {
      return visitor.template operator()<InputGather<Math, Load::kCopiedPieces, Own>>();
    }
  }
  if (input.is_float32) return visitor.template operator()<InputGather<Math, Load::kElements, float>>();
  if constexpr (kIsNarrow) visitor.template operator()<InputGather<Math, Load::kElements, Own>>();
}

}  // namespace epiconv::sm80
