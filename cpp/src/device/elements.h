// Elements of any dtype in global memory, as T = float or double in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "epiconv/dtype.h"

namespace epiconv {

template <typename T, typename Stored>
__device__ __forceinline__ T from_stored(Stored value) {
  if constexpr (std::is_arithmetic_v<Stored>) {
    return static_cast<T>(value);
  } else {
    return static_cast<T>(static_cast<float>(value));
  }
}

// Rounds to nearest even; from double by way of float, as torch does.
template <typename Stored, typename T>
__device__ __forceinline__ Stored to_stored(T value) {
  if constexpr (std::is_same_v<Stored, __half>) {
    return __float2half_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<Stored, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else {
    return static_cast<Stored>(value);
  }
}

// Calls visitor.operator()<Stored>() for a floating dtype. Intermediates of float never meet a tensor of
// float64 with dimensions: they would be double.
template <typename T, typename Visitor>
__device__ __forceinline__ void visit_floating(DType dtype, Visitor&& visitor) {
  if constexpr (std::is_same_v<T, double>) {
    if (dtype == DType::kFloat64) {
      visitor.template operator()<double>();
      return;
    }
  }
  if (dtype == DType::kFloat16) {
    visitor.template operator()<__half>();
  } else if (dtype == DType::kBFloat16) {
    visitor.template operator()<__nv_bfloat16>();
  } else {
    visitor.template operator()<float>();
  }
}

template <typename T, typename Index>
__device__ __forceinline__ T load_element(const void* data, DType dtype, Index offset) {
  const auto load = [&]<typename Stored>() {
    return from_stored<T>(static_cast<const Stored*>(data)[offset]);
  };
  switch (dtype) {
    case DType::kFloat32:
      return load.template operator()<float>();
    case DType::kFloat16:
      return load.template operator()<__half>();
    case DType::kBFloat16:
      return load.template operator()<__nv_bfloat16>();
    case DType::kFloat64:
      return load.template operator()<double>();
    case DType::kInt8:
      return load.template operator()<std::int8_t>();
    case DType::kInt16:
      return load.template operator()<std::int16_t>();
    case DType::kInt32:
      return load.template operator()<std::int32_t>();
    case DType::kInt64:
      return load.template operator()<std::int64_t>();
    default:  // bool, uint8
      return load.template operator()<std::uint8_t>();
  }
}

// kCount consecutive elements as the words that one thread moves at once, 16 bytes each at most.
template <typename Stored, int kCount>
struct alignas(kCount * sizeof(Stored) < 16 ? kCount * sizeof(Stored) : 16) Packed {
  Stored values[kCount];
};

template <typename T, typename Stored, int kCount>
__device__ __forceinline__ void load_packed(T* values, const Stored* address) {
  const auto packed = *reinterpret_cast<const Packed<Stored, kCount>*>(address);
#pragma unroll
  for (int j = 0; j < kCount; ++j) values[j] = from_stored<T>(packed.values[j]);
}

template <typename Stored, int kCount, typename T>
__device__ __forceinline__ void store_packed(const T* values, Stored* address) {
  Packed<Stored, kCount> packed;
#pragma unroll
  for (int j = 0; j < kCount; ++j) packed.values[j] = to_stored<Stored>(values[j]);
  *reinterpret_cast<Packed<Stored, kCount>*>(address) = packed;
}

}  // namespace epiconv
