// Where a warp's values go, as all ways to store them need it.
#pragma once

#include "device/elements.h"
#include "device/ptx/keep_here.h"
#include "sm90/fragments.h"

namespace epiconv::sm90 {

// Two values as 16-bit elements side by side.
template <typename Stored>
__device__ __forceinline__ std::uint32_t packed_pair(float first, float second) {
  const Stored pair[] = {to_stored<Stored>(first), to_stored<Stored>(second)};
  std::uint32_t packed;
  memcpy(&packed, pair, sizeof(packed));
  return packed;
}
template <>
__device__ __forceinline__ std::uint32_t packed_pair<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  std::uint32_t packed;
  memcpy(&packed, &pair, sizeof(packed));
  return packed;
}

// Values of a filter as a lane's part of four matrices.
template <typename Stored>
__device__ __forceinline__ void pack_matrices(const float* values, std::uint32_t (&matrices)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) matrices[j] = packed_pair<Stored>(values[2 * j], values[2 * j + 1]);
}

template <typename Stored>
struct StoreTarget {
  Stored* output;  // of the warp's first filter, where offsets count from
  std::int64_t filter_stride;
  std::int32_t filters;         // that are left from the warp's first on
  const std::int32_t* offsets;  // of the tile's positions; -1 for what is dropped
  std::uint8_t* staging;        // the warp's
  std::int32_t lane;

  // As one address, not as the sum that it is: the compiler would add it up for every store.
  __device__ __forceinline__ Stored* filter(int index) const {
    Stored* to = output + index * filter_stride;
    ptx::keep_here(to);
    return to;
  }
};

}  // namespace epiconv::sm90
