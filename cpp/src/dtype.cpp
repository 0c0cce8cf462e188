#include "epiconv/dtype.h"

#include <array>
#include <string>

#include "epiconv/error.h"

namespace epiconv {
namespace {

// In the order of the enumeration.
constexpr std::array<std::string_view, kNumDTypes> kNames{
    "float32", "float16", "bfloat16", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"};

}  // namespace

std::string_view dtype_name(DType dtype) { return kNames.at(static_cast<std::size_t>(dtype)); }

DType parse_dtype(std::string_view name) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (kNames[i] == name) return static_cast<DType>(i);
  }
  std::string names;
  for (std::string_view known : kNames) names.append(names.empty() ? "" : ", ").append(known);
  throw InvalidArgument(concat("unknown dtype '", name, "'; known: ", names));
}

}  // namespace epiconv
