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
#include <utility>
#include <vector>

#include "epiconv/error.h"
#include "halo_cases.h"
#include "host_model/halo_model.h"

using epiconv::concat;
using epiconv::host_model::HaloFault;
using epiconv::host_model::HaloInput;
using epiconv::host_model::HaloRun;
using epiconv::host_model::padded;
using epiconv::host_model::Padding;
using epiconv::host_model::run_halo_model;
using epiconv::sm90::HaloGeometry;
using epiconv::sm90::HaloPlan;
using epiconv::sm90::HaloProblem;
using epiconv::sm90::InputLoad;
using epiconv::sm90::StoreKind;
using namespace halo_cases;

namespace {

bool by_rows(const HaloGeometry& g) { return g.raw_stages_per_warp > 0; }

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
    {"raw rows of 16 bits", [](const HaloGeometry& g) { return by_rows(g) && g.input_bytes == 2; }},
    {"raw rows of 32 bits",
     [](const HaloGeometry& g) { return by_rows(g) && g.input_bytes == g.element_bytes; }},
    {"raw rows of 32 bits that become 16",
     [](const HaloGeometry& g) { return by_rows(g) && g.input_bytes > g.element_bytes; }},
    {"raw rows of an odd pitch",
     [](const HaloGeometry& g) { return by_rows(g) && g.pitch.divisor % 2 == 1; }},
    {"raw rows of whole batches",
     [](const HaloGeometry& g) { return by_rows(g) && g.pitch.divisor % 128 == 0; }},
    {"raw rows of less than a warp's pixels",
     [](const HaloGeometry& g) { return by_rows(g) && g.pitch.divisor <= 16; }},
    {"raw rows of one matrix",
     [](const HaloGeometry& g) { return by_rows(g) && g.input_bytes == 2 && g.pitch.divisor <= 8; }},
    {"raw rows of two matrices",
     [](const HaloGeometry& g) {
       return by_rows(g) && g.input_bytes == 2 && g.pitch.divisor > 8 && g.pitch.divisor <= 16;
     }},
    {"raw rows of strips", [](const HaloGeometry& g) { return by_rows(g) && g.strips.divisor > 1; }},
    {"raw rows of stacked images", [](const HaloGeometry& g) { return by_rows(g) && g.stacked; }},
    {"raw rows in several chunks", [](const HaloGeometry& g) { return by_rows(g) && g.raw_chunks > 1; }},
    {"raw rows of fewer chunks in the last block",
     [](const HaloGeometry& g) { return by_rows(g) && g.last_raw_chunks < g.raw_chunks; }},
    {"raw rows that end behind the last channel",
     [](const HaloGeometry& g) { return by_rows(g) && g.channels % g.raw_channels != 0; }},
    {"raw rows beside kept ones",
     [](const HaloGeometry& g) {
       return by_rows(g) && g.runs.divisor > 2 && g.units <= g.num_slots && g.step_offset == 0 &&
              256 * g.row_bytes % epiconv::sm90::kSwizzleAtom == 0;
     }},
    {"whole sectors, a row that ends within a piece",
     [](const HaloGeometry& g) { return stores_in_sectors(g) && g.pitch.divisor % 32 != 0; }},
    {"whole sectors, shifts even and odd",
     [](const HaloGeometry& g) {
       return stores_in_sectors(g) && g.out_width % 2 == 0 && g.out_height * g.out_width / 2 % 2 == 1;
     }},
    {"two raw stages", [](const HaloGeometry& g) { return g.raw_stages_per_warp == 2; }},
    {"four raw stages", [](const HaloGeometry& g) { return g.raw_stages_per_warp == 4; }},
    {"row phases of two sharers", [](const HaloGeometry& g) { return g.phases_h == 2 && g.sharers == 2; }},
    {"row phases of one sharer", [](const HaloGeometry& g) { return g.phases_h == 3 && g.sharers == 1; }},
    {"row phases without column phases",
     [](const HaloGeometry& g) { return g.phases_h > 1 && g.phases_w == 1; }},
    {"two column phases", [](const HaloGeometry& g) { return g.phases_w == 2; }},
    {"three column phases", [](const HaloGeometry& g) { return g.phases_w == 3; }},
    {"four column phases", [](const HaloGeometry& g) { return g.phases_w == 4; }},
    {"a row phase without a tap",
     [](const HaloGeometry& g) { return g.row_taps[g.phases_h - 1].count == 0; }},
    {"a column phase without a tap",
     [](const HaloGeometry& g) { return g.column_taps[g.phases_w - 1].count == 0; }},
    {"column phases in groups of taps",
     [](const HaloGeometry& g) { return g.phases_w > 1 && g.groups_s > 1; }},
    {"row phases in groups of taps", [](const HaloGeometry& g) { return g.phases_h > 1 && g.groups_r > 1; }},
    {"tiles of whole rows", [](const HaloGeometry& g) { return g.step_offset == 0 && g.step != g.run; }},
    {"tiles of whole rows, less than a run", [](const HaloGeometry& g) { return g.step < g.run; }},
    {"tiles of whole rows, more than a run", [](const HaloGeometry& g) { return g.step > g.run; }},
    {"kept rows of phases",
     [](const HaloGeometry& g) {
       return by_rows(g) && g.phases_w > 1 && g.runs.divisor > 2 && g.units <= g.num_slots &&
              g.step * g.row_bytes % epiconv::sm90::kSwizzleAtom == 0;
     }},
    {"two joint rows, the last of an odd image missing",
     [](const HaloGeometry& g) { return g.joint_rows == 2 && g.out_height % 2 == 1; }},
    {"four joint rows", [](const HaloGeometry& g) { return g.joint_rows == 4; }},
    {"joint rows of stacked images", [](const HaloGeometry& g) { return g.joint_rows > 1 && g.stacked; }},
    {"joint rows of an odd number of box rows",
     [](const HaloGeometry& g) { return g.joint_rows > 1 && g.box_rows % g.joint_rows != 0; }},
    {"joint rows, kept",
     [](const HaloGeometry& g) {
       return by_rows(g) && g.joint_rows > 1 && g.runs.divisor > 2 && g.units <= g.num_slots &&
              g.step_offset == 0 && g.step * g.row_bytes % epiconv::sm90::kSwizzleAtom == 0;
     }},
    {"joint rows in whole sectors",
     [](const HaloGeometry& g) { return g.joint_rows > 1 && by_rows(g) && stores_in_sectors(g); }},
    {"rows of 32 bytes", [](const HaloGeometry& g) { return g.row_bytes == 32; }},
    {"rows of 64 bytes", [](const HaloGeometry& g) { return g.row_bytes == 64; }},
    {"rows of 128 bytes", [](const HaloGeometry& g) { return g.row_bytes == 128; }},
};

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
    case Input::kRows: {
      const std::int64_t elements = 16 / c.input_bytes;
      const std::int64_t row = (w + elements - 1) / elements * elements;
      return {channels * h * row, h * row, row, 1};
    }
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

// The same, transposed: every input pixel is spread over the output, from which the pads are cropped. The
// image has no padding.
std::vector<std::int64_t> direct_transposed(const Case& c, const Data& data, int n, std::size_t filter) {
  const int out_height = c.out_height(), out_width = c.out_width();
  std::vector<std::int64_t> sums(static_cast<std::size_t>(out_height) * out_width, 0);
  const std::int8_t* weight = &data.weights[filter * c.channels * c.taps_r * c.taps_s];
  for (int channel = 0; channel < c.channels; ++channel) {
    for (int r = 0; r < c.taps_r; ++r) {
      for (int s = 0; s < c.taps_s; ++s) {
        const std::int64_t w = *weight++;
        for (int h = 0; h < c.height; ++h) {
          const int p = h * c.stride_h + r - c.pads.top;
          if (p < 0 || p >= out_height) continue;
          for (int x = 0; x < c.width; ++x) {
            const int q = x * c.stride_w + s - c.pads.left;
            if (q < 0 || q >= out_width) continue;
            sums[static_cast<std::size_t>(p) * out_width + q] += w * data.input[data.index(n, channel, h, x)];
          }
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
    const std::vector<std::int64_t> image =
        c.transposed() ? std::vector<std::int64_t>{} : padded_image(c, data, n);
    for (std::size_t k = 0; k < filters; ++k) {
      const std::int8_t* const weight = &data.weights[k * c.channels * c.taps_r * c.taps_s];
      const std::vector<std::int64_t> wanted =
          c.transposed() ? direct_transposed(c, data, n, k) : direct_convolution(c, image, weight);
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
                   run_halo_model({geometry, c.load(), c.padding, input, data.weights, c.channels_last,
                                   c.output_bytes}));
  } catch (const HaloFault& fault) {
    return fault.what();
  }
}

// Multiplications that the model will do.
double model_cost(const Case& c, const HaloGeometry& g) {
  return 256.0 * g.tiles / g.filter_tiles.divisor * c.filters * g.channel_blocks * g.row_bytes /
         g.element_bytes * c.taps_r * c.taps_s;
}

}  // namespace

int main() {
  constexpr int kRandomCases = 400;
  constexpr double kMostWork = 4e7;
  constexpr std::size_t kWaysToStore = 10;
  int failures = 0;
  std::set<std::pair<int, StoreKind>> ways_to_store;
  const auto check = [&](const Case& c, const HaloPlan& plan, std::uint32_t seed) {
    if (!plan.why_not.empty()) {
      std::printf("FAILED %s: %s\n", to_text(c).c_str(), plan.why_not.c_str());
      ++failures;
      return;
    }
    for (Way& way : ways) way.times += way.taken(plan.geometry);
    const StoreKind kind = epiconv::sm90::store_kind(
        plan.geometry, epiconv::host_model::output_layout(c.filters, c.out_height(), c.out_width(),
                                                          c.channels_last, c.output_bytes));
    ways_to_store.emplace(c.output_bytes, kind);
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
    if (!plan.why_not.empty() && c.load() == InputLoad::kRows) continue;  // would be gathered
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
