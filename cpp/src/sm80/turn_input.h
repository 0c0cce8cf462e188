// Copies an input so that its channels lie side by side, in the type that is multiplied, for kernels that
// read whole rows of channels (im2col_conv.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "epiconv/conv_types.h"
#include "epiconv/dtype.h"
#include "sm80/implicit_conv.h"

namespace epiconv::sm80 {

// Channels of a pixel of the copy: as many as fill pieces; those that the input lacks are 0.
inline std::int64_t turned_channels(std::int64_t channels, int element_bytes) {
  const std::int64_t elements = kPieceBytes / element_bytes;
  return (channels + elements - 1) / elements * elements;
}

struct TurnProblem {
  TensorLayout input;
  std::int64_t batch, channels, extents[kDims];
  ConvMath math;  // whose elements are written; float32 as it is for kTf32
};

// On compute capability 9.0 or newer.
void turn_input(const TurnProblem& problem, const void* input, void* turned, void* stream);

}  // namespace epiconv::sm80
