// The halo-tile convolution, run on the host byte by byte, against a direct one: bit for bit, since all sums
// are small integers.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "epiconv/error.h"
#include "host_model/halo_model.h"

using epiconv::concat;
using epiconv::host_model::HaloFault;
using epiconv::host_model::HaloInput;
using epiconv::host_model::HaloRun;
using epiconv::host_model::padded;
using epiconv::host_model::Padding;
using epiconv::host_model::run_halo_model;
using epiconv::host_model::Stores;
using epiconv::sm90::HaloGeometry;
using epiconv::sm90::HaloPlan;
using epiconv::sm90::HaloProblem;

namespace {

// kTma: NHWC whose pixels begin at multiples of 16 bytes. kGaps: gathered from (W, N, H, C) with gaps.
enum class Input { kTma, kNhwc, kNchw, kGaps };
constexpr std::string_view kInputNames[] = {"tma", "nhwc", "nchw", "gaps"};
constexpr std::string_view kPaddingNames[] = {"zeros", "reflect", "replicate", "circular"};

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

  int out_height() const { return height + pads.top + pads.bottom - dilation_h * (taps_r - 1); }
  int out_width() const { return width + pads.left + pads.right - dilation_w * (taps_s - 1); }
  HaloProblem problem() const {
    return {batch,     channels,     height,      width,         filters,
            taps_r,    taps_s,       dilation_h,  dilation_w,    pads.top,
            pads.left, out_height(), out_width(), element_bytes, input != Input::kTma};
  }
};

// What reproduces a case.
std::string to_text(const Case& c) {
  return concat("{.batch = ", c.batch, ", .channels = ", c.channels, ", .height = ", c.height,
                ", .width = ", c.width, ", .filters = ", c.filters, ", .taps_r = ", c.taps_r,
                ", .taps_s = ", c.taps_s, ", .dilation_h = ", c.dilation_h, ", .dilation_w = ", c.dilation_w,
                ", .pads = {", c.pads.top, ", ", c.pads.bottom, ", ", c.pads.left, ", ", c.pads.right,
                "}, .element_bytes = ", c.element_bytes, ", .output_bytes = ", c.output_bytes, "}, input ",
                kInputNames[static_cast<int>(c.input)], ", padding ",
                kPaddingNames[static_cast<int>(c.padding)], c.channels_last ? ", NHWC" : ", NCHW",
                " output (", c.reason, ")");
}

// Ways through the kernel, each of which some case is to take.
struct Way {
  std::string_view name;
  bool (*taken)(const HaloGeometry&);
  int times = 0;
};
std::vector<Way> ways{
    {"groups_r > 1", [](const HaloGeometry& g) { return g.groups_r > 1; }},
    {"groups_s > 1", [](const HaloGeometry& g) { return g.groups_s > 1; }},
    {"both", [](const HaloGeometry& g) { return g.groups_r > 1 && g.groups_s > 1; }},
    {"a smaller last group of rows", [](const HaloGeometry& g) { return g.taps_r % g.group_r != 0; }},
    {"a smaller last group of columns", [](const HaloGeometry& g) { return g.taps_s % g.group_s != 0; }},
    {"strips > 1", [](const HaloGeometry& g) { return g.strips.divisor > 1; }},
    {"a narrower last strip", [](const HaloGeometry& g) { return g.out_width % g.strip_width != 0; }},
    {"stacked images", [](const HaloGeometry& g) { return g.images_per_raster > 1; }},
    {"a raster for each image", [](const HaloGeometry& g) { return g.rasters > 1; }},
    {"one sharer", [](const HaloGeometry& g) { return g.sharers == 1; }},
    {"two sharers", [](const HaloGeometry& g) { return g.sharers == 2; }},
    {"weights that stay", [](const HaloGeometry& g) { return g.weights_stay; }},
    {"streamed weights", [](const HaloGeometry& g) { return !g.weights_stay; }},
    {"weights of several tiles that stay",
     [](const HaloGeometry& g) { return g.weights_stay && g.filter_tiles.divisor > 1; }},
    {"streamed weights of several tiles",
     [](const HaloGeometry& g) { return !g.weights_stay && g.filter_tiles.divisor > 1; }},
    {"channel_blocks > 1", [](const HaloGeometry& g) { return g.channel_blocks > 1; }},
    {"a last block of fewer steps",
     [](const HaloGeometry& g) { return g.last_steps * epiconv::sm90::kStepBytes < g.row_bytes; }},
    {"runs > 1", [](const HaloGeometry& g) { return g.runs.divisor > 1; }},
    {"rows of 32 bytes", [](const HaloGeometry& g) { return g.row_bytes == 32; }},
    {"rows of 64 bytes", [](const HaloGeometry& g) { return g.row_bytes == 64; }},
    {"rows of 128 bytes", [](const HaloGeometry& g) { return g.row_bytes == 128; }},
};

using Random = std::mt19937;

int between(Random& random, int first, int last) {
  return first + static_cast<int>(random() % static_cast<std::uint32_t>(last - first + 1));
}

std::array<std::int64_t, 4> input_strides(const Case& c) {
  const std::int64_t n = c.batch, h = c.height, w = c.width, channels = c.channels;
  switch (c.input) {
    case Input::kTma: {
      const std::int64_t elements = 16 / c.element_bytes;
      const std::int64_t pixel = (channels + elements - 1) / elements * elements;
      return {h * w * pixel, 1, w * pixel, pixel};
    }
    case Input::kNhwc:
      return {h * w * channels, 1, w * channels, channels};
    case Input::kNchw:
      return {channels * h * w, h * w, w, 1};
    case Input::kGaps:
      break;
  }
  const std::int64_t pixel = 2 * channels + 1;
  return {h * pixel, 2, pixel, n * h * pixel + 5};
}

struct Data {
  std::array<std::int64_t, 4> strides;
  std::vector<std::int8_t> input, weights;

  Data(const Case& c, Random& random) : strides(input_strides(c)) {
    const std::int64_t last = (c.batch - 1) * strides[0] + (c.channels - 1) * strides[1] +
                              (c.height - 1) * strides[2] + (c.width - 1) * strides[3];
    input.assign(static_cast<std::size_t>(last + 1), 99);  // in the gaps, where nothing is to be read
    for (int n = 0; n < c.batch; ++n) {
      for (int channel = 0; channel < c.channels; ++channel) {
        for (int h = 0; h < c.height; ++h) {
          for (int w = 0; w < c.width; ++w) input[index(n, channel, h, w)] = small(random);
        }
      }
    }
    weights.resize(static_cast<std::size_t>(c.filters) * c.channels * c.taps_r * c.taps_s);
    for (std::int8_t& weight : weights) weight = small(random);
  }

  std::size_t index(int n, int c, int h, int w) const {
    return static_cast<std::size_t>(n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]);
  }
  static std::int8_t small(Random& random) { return static_cast<std::int8_t>(between(random, -4, 4)); }
};

// One image's padded input, (C, H, W).
std::vector<std::int64_t> padded_image(const Case& c, const Data& data, int n) {
  std::vector<std::int64_t> image;
  for (int channel = 0; channel < c.channels; ++channel) {
    for (int y = -c.pads.top; y < c.height + c.pads.bottom; ++y) {
      for (int x = -c.pads.left; x < c.width + c.pads.right; ++x) {
        const int h = padded(y, c.height, c.padding);
        const int w = padded(x, c.width, c.padding);
        image.push_back(h < 0 || w < 0 ? 0 : data.input[data.index(n, channel, h, w)]);
      }
    }
  }
  return image;
}

// The output (P, Q) of one filter.
std::vector<std::int64_t> direct_convolution(const Case& c, const std::vector<std::int64_t>& image,
                                             const std::int8_t* weight) {
  const int rows = c.height + c.pads.top + c.pads.bottom, columns = c.width + c.pads.left + c.pads.right;
  const int out_height = c.out_height(), out_width = c.out_width();
  std::vector<std::int64_t> sums(static_cast<std::size_t>(out_height) * out_width, 0);
  for (int channel = 0; channel < c.channels; ++channel) {
    for (int r = 0; r < c.taps_r; ++r) {
      for (int s = 0; s < c.taps_s; ++s) {
        const std::int64_t w = *weight++;
        for (int p = 0; p < out_height; ++p) {
          const std::int64_t* const from = &image[static_cast<std::size_t>(
              (channel * rows + p + r * c.dilation_h) * columns + s * c.dilation_w)];
          std::int64_t* const to = &sums[static_cast<std::size_t>(p) * out_width];
          for (int q = 0; q < out_width; ++q) to[q] += w * from[q];
        }
      }
    }
  }
  return sums;
}

// As an element of the output: float32, or bfloat16 with its 8 digits, to the nearest, ties to even.
float rounded(std::int64_t sum, int output_bytes) {
  const auto value = static_cast<float>(sum);
  if (output_bytes == 4 || sum == 0) return value;
  const int digit = std::ilogb(value) - 7;
  return std::ldexp(std::nearbyint(std::ldexp(value, -digit)), digit);
}

// "" or what differs.
std::string compare(const Case& c, const Data& data, const std::vector<float>& output) {
  const std::size_t pixels = static_cast<std::size_t>(c.out_height()) * c.out_width();
  const std::size_t filters = static_cast<std::size_t>(c.filters);
  for (int n = 0; n < c.batch; ++n) {
    const std::vector<std::int64_t> image = padded_image(c, data, n);
    for (std::size_t k = 0; k < filters; ++k) {
      const std::int8_t* const weight = &data.weights[k * c.channels * c.taps_r * c.taps_s];
      const std::vector<std::int64_t> wanted = direct_convolution(c, image, weight);
      for (std::size_t i = 0; i < pixels; ++i) {
        const std::size_t place =
            c.channels_last ? (n * pixels + i) * filters + k : (n * filters + k) * pixels + i;
        if (output[place] == rounded(wanted[i], c.output_bytes)) continue;
        return concat("image ", n, ", filter ", k, ", row ", i / c.out_width(), ", column ",
                      i % c.out_width(), " is ", output[place], " instead of ", wanted[i]);
      }
    }
  }
  return "";
}

std::string run_case(const Case& c, const HaloGeometry& geometry, std::uint32_t seed) {
  Random random(seed);
  const Data data(c, random);
  try {
    const HaloInput input{data.input, data.strides};
    return compare(c, data,
                   run_halo_model({geometry, c.input != Input::kTma, c.padding, input, data.weights,
                                   c.channels_last, c.output_bytes}));
  } catch (const HaloFault& fault) {
    return fault.what();
  }
}

const std::vector<Case> kCases{
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
    {.reason = "8 channels to 32 filters: rows of 32 bytes, resident weights",
     .batch = 2,
     .channels = 8,
     .height = 20,
     .width = 62,
     .filters = 32},
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
    {.reason = "1x1: no halo at all",
     .channels = 96,
     .height = 16,
     .width = 16,
     .filters = 96,
     .taps_r = 1,
     .taps_s = 1},
};

// Multiplications that the model will do.
double model_cost(const Case& c, const HaloGeometry& g) {
  return 256.0 * g.tiles / g.filter_tiles.divisor * c.filters * g.channel_blocks * g.row_bytes /
         g.element_bytes * c.taps_r * c.taps_s;
}

template <std::size_t N>
int one_of(Random& random, const int (&values)[N]) {
  return values[random() % N];
}

Case random_case(Random& random) {
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
  c.input = static_cast<Input>(one_of(random, {0, 0, 1, 2, 3}));
  c.padding = c.input == Input::kTma ? Padding::kZeros : static_cast<Padding>(between(random, 0, 3));
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
  return c;
}

}  // namespace

int main() {
  constexpr int kRandomCases = 400;
  constexpr double kMostWork = 4e7;
  constexpr std::size_t kWaysToStore = 6;
  int failures = 0;
  std::set<std::array<int, 3>> ways_to_store;
  const auto check = [&](const Case& c, const HaloPlan& plan, std::uint32_t seed) {
    if (!plan.why_not.empty()) {
      std::printf("FAILED %s: %s\n", to_text(c).c_str(), plan.why_not.c_str());
      ++failures;
      return;
    }
    for (Way& way : ways) way.times += way.taken(plan.geometry);
    const Stores stores = Stores::of(plan.geometry, c.channels_last, c.output_bytes);
    ways_to_store.insert({c.output_bytes, stores.filters, stores.width});
    const std::string what = run_case(c, plan.geometry, seed);
    if (what.empty()) return;
    std::printf("FAILED %s, seed %u: %s\n", to_text(c).c_str(), seed, what.c_str());
    ++failures;
  };
  for (const Case& c : kCases) check(c, plan_halo(c.problem()), 1);
  Random random(20240);
  for (int done = 0; done < kRandomCases;) {
    const Case c = random_case(random);
    if (c.out_height() < 1 || c.out_width() < 1) continue;
    const HaloPlan plan = plan_halo(c.problem());
    if (plan.why_not.empty() && model_cost(c, plan.geometry) > kMostWork) continue;
    check(c, plan, static_cast<std::uint32_t>(++done));
  }
  for (const Way& way : ways) {
    if (way.times > 0) continue;
    std::printf("FAILED no case has %s\n", std::string(way.name).c_str());
    ++failures;
  }
  if (ways_to_store.size() != kWaysToStore) {
    std::printf("FAILED outputs are stored in %zu ways, not %zu\n", ways_to_store.size(), kWaysToStore);
    ++failures;
  }
  std::printf("%zu cases and %d random ones, %d failures\n", kCases.size(), kRandomCases, failures);
  return failures == 0 ? 0 : 1;
}
