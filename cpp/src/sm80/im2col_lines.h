// How im2col_conv.h multiplies an input whose pixels lie side by side, without a copy of it in which channels
// do, where taps do not move along the rows of pixels: the copy engine brings lines of 128 bytes of pixels of
// each channel of a step. Positions are rows of the products, which warps take from there through registers:
// a thread has 4 pixels that follow each other, of 2 row tiles and 2 rows of each, and so whole words of the
// output.
//
// Of the channels of a product, 8 of 4 bytes or 16 of 2, a thread multiplies those of the rows 2 * (lane % 4)
// of eight, and of the rows behind these, in which swizzled lines have a warp's pixels in different banks. So
// the order of channels in packed weights is another one where elements have 4 bytes (Geometry::channel_of).
#pragma once

#include "device/ptx/load_shared.h"
#include "sm80/geometry.h"
#include "sm80/math.h"

namespace epiconv::sm80 {

// Rows of a warp's products, which are a thread's words of four; of two row tiles.
inline constexpr int kLineTiles = 2, kWarpLines = 32, kLineWord = 4;

// Where a thread finds its pixels in a step's lines.
struct LinePlace {
  std::uint32_t even, odd;  // bytes to the channel 2 * (lane % 4), and to the next

  __device__ __forceinline__ static LinePlace of(const Geometry& g, int position, int lane) {
    const int box_pixels = kStepBytes / g.element_bytes, box_bytes = box_pixels * kStepBytes;
    const int byte = position % box_pixels * g.element_bytes, channel = 2 * (lane % 4);
    const std::uint32_t box = position / box_pixels * box_bytes + byte % kPieceBytes;
    const auto in_box = [&](int row) { return row * kStepBytes + swizzled(row, byte / kPieceBytes); };
    return {box + in_box(channel), box + in_box(channel + 1)};
  }

  // The first factor of product number kNumber of a step.
  template <typename Math, int kNumber>
  __device__ __forceinline__ void load(std::uint32_t lines, std::uint32_t (&rows)[kLineTiles][4]) const {
    constexpr int kEightRows = 8 * kStepBytes;
    if constexpr (std::is_same_v<Math, Tf32>) {
      const uint4 first = ptx::load_shared(lines + even + kNumber * kEightRows);
      const uint4 second = ptx::load_shared(lines + odd + kNumber * kEightRows);
      rows[0][0] = first.x, rows[0][1] = first.y, rows[1][0] = first.z, rows[1][1] = first.w;
      rows[0][2] = second.x, rows[0][3] = second.y, rows[1][2] = second.z, rows[1][3] = second.w;
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t at = lines + (2 * kNumber + half) * kEightRows;
        const int2 first = ptx::load_shared_2(at + even), second = ptx::load_shared_2(at + odd);
        rows[0][2 * half] = __byte_perm(first.x, second.x, 0x5410);
        rows[0][2 * half + 1] = __byte_perm(first.x, second.x, 0x7632);
        rows[1][2 * half] = __byte_perm(first.y, second.y, 0x5410);
        rows[1][2 * half + 1] = __byte_perm(first.y, second.y, 0x7632);
      }
    }
  }
};

}  // namespace epiconv::sm80
