// Names of maths, as kernels and weight formats have them.
#pragma once

#include "epiconv/conv_types.h"

namespace epiconv {

inline const char* name_of(ConvMath math) {
  switch (math) {
    case ConvMath::kTf32:
      return "tf32";
    case ConvMath::kBf16:
      return "bf16";
    case ConvMath::kFp16:
      return "fp16";
    default:
      return "ieee";
  }
}

}  // namespace epiconv
