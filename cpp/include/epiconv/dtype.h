// Element types of tensors in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "epiconv/export.h"

namespace epiconv {

enum class DType : std::uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat64,
  kBool,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
};

inline constexpr int kNumDTypes = 10;

// torch's name: "float32", "bfloat16"…
EPICONV_API std::string_view dtype_name(DType dtype);
// Inverse of dtype_name; throws InvalidArgument with the list of names.
EPICONV_API DType parse_dtype(std::string_view name);

EPICONV_HOST_DEVICE constexpr int dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
      return 2;
    default:
      return 1;
  }
}

EPICONV_HOST_DEVICE constexpr bool is_floating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16 ||
         dtype == DType::kFloat64;
}

}  // namespace epiconv
