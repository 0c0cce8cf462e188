// What lies around an input.
#pragma once

#include <cstdint>

#include "epiconv/conv_types.h"

namespace epiconv {

// The index in [0, extent) that stands for `index`, or -1 where it is a zero. As torch.nn.functional.pad,
// which pads by at most one extent (reflect: by less).
__device__ __forceinline__ std::int32_t padded(std::int32_t index, std::int32_t extent, PaddingMode mode) {
  if (index >= 0 && index < extent) return index;
  switch (mode) {
    case PaddingMode::kReflect:
      index = index < 0 ? -index : 2 * (extent - 1) - index;
      break;
    case PaddingMode::kReplicate:
      return index < 0 ? 0 : extent - 1;
    case PaddingMode::kCircular:
      index = index < 0 ? index + extent : index - extent;
      break;
    default:
      return -1;
  }
  return index >= 0 && index < extent ? index : -1;  // what lies farther out belongs to dropped positions
}

}  // namespace epiconv
