// Convolutions for the host model.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "epiconv/error.h"
#include "host_model/halo_model.h"

namespace halo_cases {

using epiconv::concat;
using epiconv::host_model::Padding;
using epiconv::sm90::HaloProblem;
using epiconv::sm90::InputLoad;

// kTma: NHWC whose pixels begin at multiples of 16 bytes. kRows: NCHW whose rows do. kGaps: gathered from (W,
// N, H, C) with gaps.
enum class Input { kTma, kNhwc, kNchw, kGaps, kRows };
inline constexpr std::string_view kInputNames[] = {"tma", "nhwc", "nchw", "gaps", "rows"};
inline constexpr std::string_view kPaddingNames[] = {"zeros", "reflect", "replicate", "circular"};

struct Case {
  std::string_view reason;
  int batch = 1, channels = 32, height = 16, width = 16;
  int filters = 64, taps_r = 3, taps_s = 3;
  int dilation_h = 1, dilation_w = 1;
  struct Pads {
    int top = 0, bottom = 0, left = 0, right = 0;
  } pads = {};
  int element_bytes = 4, output_bytes = 4;
  Input input = Input::kTma;
  Padding padding = Padding::kZeros;
  bool channels_last = true;
  int input_bytes = 4;  // where it is loaded by rows; else as element_bytes
  // Of a transposed convolution, whose pads are cropped from the output, or nothing.
  int stride_h = 0, stride_w = 0;

  bool transposed() const { return stride_h > 0; }
  int out_height() const { return out_extent(height, pads.top + pads.bottom, dilation_h, taps_r, stride_h); }
  int out_width() const { return out_extent(width, pads.left + pads.right, dilation_w, taps_s, stride_w); }
  int out_extent(int extent, int pad, int dilation, int taps, int stride) const {
    return transposed() ? (extent - 1) * stride + taps - pad : extent + pad - dilation * (taps - 1);
  }
  InputLoad load() const {
    return input == Input::kTma    ? InputLoad::kBoxes
           : input == Input::kRows ? InputLoad::kRows
                                   : InputLoad::kGather;
  }
  HaloProblem problem() const {
    const auto output =
        epiconv::host_model::output_layout(filters, out_height(), out_width(), channels_last, output_bytes);
    return {.batch = batch,
            .channels = channels,
            .height = height,
            .width = width,
            .filters = filters,
            .taps_r = taps_r,
            .taps_s = taps_s,
            .dilation_h = dilation_h,
            .dilation_w = dilation_w,
            .pad_top = pads.top,
            .pad_left = pads.left,
            .out_height = out_height(),
            .out_width = out_width(),
            .element_bytes = element_bytes,
            .input_bytes = input == Input::kRows ? input_bytes : element_bytes,
            .load = load(),
            .stores_filters = epiconv::sm90::stores_filters(output, filters),
            .output_bytes = output_bytes,
            .transposed = transposed(),
            .stride_h = std::max(1, stride_h),
            .stride_w = std::max(1, stride_w)};
  }
};

// What reproduces a case.
inline std::string to_text(const Case& c) {
  return concat("{.batch = ", c.batch, ", .channels = ", c.channels, ", .height = ", c.height,
                ", .width = ", c.width, ", .filters = ", c.filters, ", .taps_r = ", c.taps_r,
                ", .taps_s = ", c.taps_s, ", .dilation_h = ", c.dilation_h, ", .dilation_w = ", c.dilation_w,
                ", .pads = {", c.pads.top, ", ", c.pads.bottom, ", ", c.pads.left, ", ", c.pads.right,
                "}, .stride_h = ", c.stride_h, ", .stride_w = ", c.stride_w,
                ", .element_bytes = ", c.element_bytes, ", .output_bytes = ", c.output_bytes,
                ", .input_bytes = ", c.input_bytes, "}, input ", kInputNames[static_cast<int>(c.input)],
                ", padding ", kPaddingNames[static_cast<int>(c.padding)],
                c.channels_last ? ", NHWC" : ", NCHW", " output (", c.reason, ")");
}

inline const std::vector<Case> kCases{
    {.reason = "one pixel, one channel, one filter",
     .channels = 1,
     .height = 1,
     .width = 1,
     .filters = 1,
     .taps_r = 1,
     .taps_s = 1},
    {.reason = "the headline's width: a pitch that 256 is no multiple of",
     .channels = 64,
     .height = 5,
     .width = 128,
     .filters = 128},
    {.reason = "the same, 16-bit",
     .channels = 64,
     .height = 6,
     .width = 128,
     .filters = 128,
     .element_bytes = 2,
     .output_bytes = 2,
     .channels_last = false},
    {.reason = "8 channels to 33 filters: rows of 32 bytes, resident weights",
     .batch = 2,
     .channels = 8,
     .width = 62,
     .filters = 33},
    {.reason = "the GroupNorm recipe's width, joint rows that are a tile each, in whole sectors",
     .channels = 8,
     .height = 9,
     .width = 256,
     .filters = 32,
     .input = Input::kRows,
     .channels_last = false},
    {.reason = "8 channels of 16 bits: half of a step is behind the last channel",
     .channels = 8,
     .height = 12,
     .width = 30,
     .filters = 32,
     .element_bytes = 2,
     .output_bytes = 2},
    {.reason = "rows of 64 bytes, whose last step is not full",
     .channels = 12,
     .height = 14,
     .width = 14,
     .pads = {.top = 1, .bottom = 1, .left = 1, .right = 1}},
    {.reason = "three of four steps in the only block",
     .channels = 40,
     .height = 9,
     .width = 15,
     .element_bytes = 2,
     .output_bytes = 2},
    {.reason = "one channel behind the last full block",
     .channels = 65,
     .height = 7,
     .width = 9,
     .element_bytes = 2,
     .output_bytes = 2,
     .input = Input::kNchw,
     .channels_last = false},
    {.reason = "an image's first layer, from NCHW",
     .batch = 2,
     .channels = 3,
     .height = 30,
     .width = 33,
     .taps_r = 7,
     .taps_s = 7,
     .pads = {.top = 3, .bottom = 3, .left = 3, .right = 3},
     .input = Input::kNchw,
     .channels_last = false},
    {.reason = "images of one pixel, stacked",
     .batch = 300,
     .channels = 16,
     .height = 1,
     .width = 1,
     .taps_r = 1,
     .taps_s = 1},
    {.reason = "small images with a halo, stacked",
     .batch = 17,
     .channels = 32,
     .height = 7,
     .width = 7,
     .pads = {.top = 1, .bottom = 1, .left = 1, .right = 1}},
    {.reason = "two images of a tile, gathered and reflected",
     .batch = 9,
     .channels = 5,
     .height = 8,
     .width = 5,
     .filters = 66,
     .pads = {.top = 2, .bottom = 3, .left = 4, .right = 1},
     .output_bytes = 2,
     .input = Input::kGaps,
     .padding = Padding::kReflect},
    {.reason = "padding wider than the image",
     .batch = 3,
     .channels = 8,
     .height = 2,
     .width = 3,
     .pads = {.top = 4, .bottom = 3, .left = 4, .right = 2}},
    {.reason = "circular padding of a whole image",
     .channels = 8,
     .height = 4,
     .width = 4,
     .pads = {.top = 4, .bottom = 4, .left = 4, .right = 4},
     .input = Input::kNhwc,
     .padding = Padding::kCircular},
    {.reason = "two dimensions of taps that one box cannot hold",
     .height = 48,
     .width = 48,
     .filters = 2,
     .taps_r = 11,
     .taps_s = 11,
     .dilation_h = 3,
     .dilation_w = 3,
     .pads = {.top = 4, .left = 4}},
    {.reason = "the same, 16-bit, gathered",
     .channels = 66,
     .height = 44,
     .width = 40,
     .filters = 1,
     .taps_r = 11,
     .taps_s = 11,
     .dilation_h = 3,
     .dilation_w = 3,
     .element_bytes = 2,
     .input = Input::kNchw},
    {.reason = "a filter wider than any box",
     .channels = 3,
     .height = 2,
     .width = 310,
     .filters = 8,
     .taps_r = 1,
     .taps_s = 300,
     .input = Input::kNchw,
     .channels_last = false},
    {.reason = "a filter higher than any box",
     .channels = 3,
     .height = 640,
     .width = 3,
     .filters = 8,
     .taps_r = 600,
     .taps_s = 1,
     .input = Input::kNchw},
    {.reason = "taps far apart",
     .channels = 8,
     .height = 2,
     .width = 420,
     .filters = 3,
     .taps_r = 2,
     .taps_s = 3,
     .dilation_h = 1,
     .dilation_w = 200},
    {.reason = "1-D, longer than a box is wide; strips are odd, the rest is even",
     .channels = 16,
     .height = 1,
     .width = 1002,
     .taps_r = 1,
     .taps_s = 5,
     .pads = {.left = 4},
     .channels_last = false},
    {.reason = "one column, high",
     .channels = 16,
     .height = 1001,
     .width = 1,
     .taps_r = 5,
     .taps_s = 1,
     .pads = {.top = 4}},
    {.reason = "cropped by negative padding",
     .channels = 8,
     .height = 12,
     .width = 20,
     .pads = {.top = -2, .bottom = -1, .left = -3, .right = -2}},
    {.reason = "three filter groups: one warpgroup a tile",
     .channels = 32,
     .height = 8,
     .width = 17,
     .filters = 192},
    {.reason = "four filter groups, streamed weights of two tiles",
     .channels = 32,
     .height = 6,
     .width = 19,
     .filters = 250},
    {.reason = "the headline's width by rows: those that two tiles share are kept",
     .channels = 64,
     .height = 7,
     .width = 128,
     .filters = 128,
     .input = Input::kRows},
    {.reason = "the same, 16-bit",
     .batch = 2,
     .channels = 64,
     .height = 7,
     .width = 128,
     .filters = 128,
     .element_bytes = 2,
     .output_bytes = 2,
     .input = Input::kRows,
     .input_bytes = 2},
    {.reason = "the same, 16-bit of float32",
     .channels = 64,
     .height = 7,
     .width = 128,
     .filters = 128,
     .element_bytes = 2,
     .input = Input::kRows},
    {.reason = "small images by rows, stacked, of an odd pitch",
     .batch = 17,
     .channels = 72,
     .height = 7,
     .width = 7,
     .pads = {.top = 1, .bottom = 1},
     .element_bytes = 2,
     .input = Input::kRows,
     .input_bytes = 2},
    {.reason = "narrow 16-bit images by rows: two matrices",
     .batch = 2,
     .channels = 24,
     .height = 9,
     .width = 12,
     .element_bytes = 2,
     .input = Input::kRows,
     .input_bytes = 2},
    {.reason = "an image's first layer by rows",
     .batch = 2,
     .channels = 3,
     .height = 30,
     .width = 33,
     .taps_r = 7,
     .taps_s = 7,
     .pads = {.top = 3, .bottom = 3, .left = 3, .right = 3},
     .input = Input::kRows,
     .channels_last = false},
    {.reason = "wide boxes by rows, of one column more than a strip",
     .channels = 12,
     .height = 5,
     .width = 500,
     .taps_r = 1,
     .taps_s = 2,
     .element_bytes = 2,
     .input = Input::kRows},
    {.reason = "whole sectors: planes of an odd number of pairs, an image's last tile of one pair of pixels",
     .batch = 2,
     .channels = 3,
     .height = 7,
     .width = 54,
     .pads = {.top = 1, .bottom = 1},
     .channels_last = false},
    {.reason = "whole sectors, most columns dropped between rows",
     .channels = 3,
     .height = 19,
     .width = 62,
     .filters = 32,
     .taps_r = 1,
     .taps_s = 17,
     .channels_last = false},
    {.reason = "whole sectors of the narrowest rows",
     .batch = 1,
     .channels = 8,
     .height = 75,
     .width = 18,
     .filters = 100,
     .input = Input::kNchw,
     .channels_last = false},
    {.reason = "whole sectors, the width of KernelBench's small layers",
     .batch = 2,
     .channels = 8,
     .height = 9,
     .width = 128,
     .input = Input::kRows,
     .channels_last = false},
    {.reason = "transposed, of stride 1",
     .channels = 24,
     .height = 6,
     .width = 9,
     .pads = {.top = 1, .bottom = 1, .left = 1, .right = 1},
     .stride_h = 1,
     .stride_w = 1},
    {.reason = "transposed by rows, the recipe's width: rows are kept, two consumers have a row each",
     .batch = 2,
     .channels = 64,
     .height = 4,
     .width = 128,
     .pads = {.top = 1, .bottom = 0, .left = 1, .right = 0},
     .input = Input::kRows,
     .channels_last = false,
     .stride_h = 2,
     .stride_w = 2},
    {.reason = "the same, 16-bit, with filters side by side",
     .batch = 2,
     .channels = 64,
     .height = 4,
     .width = 128,
     .pads = {.top = 1, .bottom = 0, .left = 1, .right = 0},
     .element_bytes = 2,
     .output_bytes = 2,
     .stride_h = 2,
     .stride_w = 2},
    {.reason = "phases without a tap",
     .channels = 8,
     .height = 5,
     .width = 7,
     .taps_r = 2,
     .taps_s = 1,
     .stride_h = 3,
     .stride_w = 4},
    {.reason = "transposed, three row phases of two filter groups, streamed weights",
     .channels = 96,
     .height = 5,
     .width = 12,
     .filters = 100,
     .taps_r = 5,
     .taps_s = 4,
     .pads = {.top = 2, .bottom = 1, .left = 3, .right = 0},
     .stride_h = 3,
     .stride_w = 2},
    {.reason = "transposed, cropped by more than the filter reaches",
     .channels = 8,
     .height = 9,
     .width = 11,
     .taps_r = 2,
     .taps_s = 3,
     .pads = {.top = 5, .bottom = 3, .left = 7, .right = 4},
     .input = Input::kNchw,
     .channels_last = false,
     .stride_h = 2,
     .stride_w = 3},
    {.reason = "transposed, a filter that one box cannot hold",
     .channels = 66,
     .height = 30,
     .width = 34,
     .filters = 2,
     .taps_r = 61,
     .taps_s = 50,
     .pads = {.top = 4, .left = 4},
     .stride_h = 2,
     .stride_w = 2},
    {.reason = "transposed, 1-D, audio",
     .batch = 2,
     .channels = 16,
     .height = 1,
     .width = 300,
     .filters = 8,
     .taps_r = 1,
     .taps_s = 8,
     .pads = {.left = 2, .right = 2},
     .input = Input::kNchw,
     .channels_last = false,
     .stride_h = 1,
     .stride_w = 4},
    {.reason = "1x1: no halo at all",
     .channels = 96,
     .height = 16,
     .width = 16,
     .filters = 96,
     .taps_r = 1,
     .taps_s = 1},
};

using Random = std::mt19937;

inline int between(Random& random, int first, int last) {
  return first + static_cast<int>(random() % static_cast<std::uint32_t>(last - first + 1));
}

template <std::size_t N>
int one_of(Random& random, const int (&values)[N]) {
  return values[random() % N];
}

inline Case random_case(Random& random) {
  Case c{.reason = "random"};
  c.batch = one_of(random, {1, 1, 2, 3, 17});
  c.channels = one_of(random, {3, 4, 8, 16, 24, 33, 66});
  c.filters = one_of(random, {1, 8, 64, 96, 130, 192});
  const int square = one_of(random, {1, 2, 3, 5, 7, 11});
  c.taps_r = one_of(random, {square, square, between(random, 1, 11)});
  c.taps_s = one_of(random, {square, square, between(random, 1, 11)});
  c.dilation_h = between(random, 1, 3);
  c.dilation_w = one_of(random, {c.dilation_h, c.dilation_h, between(random, 1, 3)});
  c.height = between(random, 1, one_of(random, {4, 16, 40}));
  c.width = between(random, 1, one_of(random, {9, 33, 70, 270}));
  c.element_bytes = one_of(random, {2, 4});
  c.input = static_cast<Input>(one_of(random, {0, 0, 1, 2, 3, 4, 4, 4}));
  c.input_bytes = one_of(random, {c.element_bytes, 4});
  c.padding = c.input == Input::kTma || c.input == Input::kRows ? Padding::kZeros
                                                                : static_cast<Padding>(between(random, 0, 3));
  const auto pad = [&](int extent) {
    const int most = c.padding == Padding::kReflect    ? extent - 1
                     : c.padding == Padding::kCircular ? extent
                                                       : 4;
    return between(random, 0, std::min(most, 4));
  };
  c.pads.top = pad(c.height);
  c.pads.bottom = pad(c.height);
  c.pads.left = pad(c.width);
  c.pads.right = pad(c.width);
  c.channels_last = between(random, 0, 1) == 1;
  c.output_bytes = one_of(random, {2, 4});
  if (between(random, 0, 1) == 0) return c;
  c.stride_h = between(random, 1, 4);
  c.stride_w = one_of(random, {c.stride_h, c.stride_h, between(random, 1, 4)});
  c.dilation_h = c.dilation_w = 1;
  c.height = std::min(c.height, 24);
  c.width = std::min(c.width, 140);
  c.padding = Padding::kZeros;
  return c;
}

}  // namespace halo_cases
