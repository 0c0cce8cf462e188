// Runs the halo-tile convolution on the host, byte by byte, on small integers: shared memory is an array of
// bytes that begins as NaN, and every address comes from the functions that the kernel uses. A mistake in an
// index shows as a wrong or missing output, or as a HaloFault.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "sm90/halo_conv.h"

namespace epiconv::host_model {

// What the card would not survive: an access outside of memory, an address that the hardware refuses, an
// output that is written twice.
class HaloFault : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

enum class Padding { kZeros, kReflect, kReplicate, kCircular };

// The index in [0, extent) that stands for `index`, or -1 where it is a zero. As torch.nn.functional.pad,
// which pads by at most one extent (reflect: by less).
std::int32_t padded(std::int32_t index, std::int32_t extent, Padding mode);

// (N, C, H, W); strides in elements.
struct HaloInput {
  std::span<const std::int8_t> values;
  std::array<std::int64_t, 4> strides;
};

struct HaloRun {
  sm90::HaloGeometry geometry;
  // By boxes needs NHWC with pixels, by rows NCHW with rows at multiples of 16 bytes; both, zeros around
  // them.
  sm90::InputLoad load;
  Padding padding;
  HaloInput input;
  std::span<const std::int8_t> weights;  // (K, C, R, S), contiguous
  bool channels_last;                    // the output is NHWC, else NCHW
  std::int32_t output_bytes;             // of an output element: 4 (float32) or 2 (bfloat16)
};

// Of a dense output.
sm90::TensorLayout output_layout(std::int64_t filters, std::int64_t height, std::int64_t width,
                                 bool channels_last, std::int32_t output_bytes);

// The weights as they lie in memory for the kernel: a filter group's taps after another's.
std::vector<std::uint8_t> pack_weights(const sm90::HaloGeometry& geometry,
                                       std::span<const std::int8_t> weights);

// The output, dense, rounded to its type. Throws HaloFault.
std::vector<float> run_halo_model(const HaloRun& run);

}  // namespace epiconv::host_model
