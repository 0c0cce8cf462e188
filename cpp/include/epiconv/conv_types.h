// How a convolution is computed, beyond its extents.
#pragma once

#include <cstdint>

namespace epiconv {

// What the tensor cores multiply; they add in float32. kIeee: float32, of which a product is three of TF32.
enum class ConvMath : std::uint8_t { kTf32, kBf16, kFp16, kIeee };

// What lies around the input. As torch.nn.functional.pad, which pads by at most one extent.
enum class PaddingMode : std::uint8_t { kZeros, kReflect, kReplicate, kCircular };

}  // namespace epiconv
