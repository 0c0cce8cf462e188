// Elements in the card's memory, and threads of a block, as tile.h and sums.h take them.
#pragma once

#include "backward/tile.h"
#include "device/elements.h"

namespace epiconv::backward {

// The type of elements of a dtype.
template <DType kDType>
struct StoredAs;
template <>
struct StoredAs<DType::kFloat32> {
  using Type = float;
};
template <>
struct StoredAs<DType::kFloat64> {
  using Type = double;
};
template <>
struct StoredAs<DType::kFloat16> {
  using Type = __half;
};
template <>
struct StoredAs<DType::kBFloat16> {
  using Type = __nv_bfloat16;
};
template <>
struct StoredAs<DType::kBool> {
  using Type = std::uint8_t;
};
template <>
struct StoredAs<DType::kUInt8> {
  using Type = std::uint8_t;
};
template <>
struct StoredAs<DType::kInt8> {
  using Type = std::int8_t;
};
template <>
struct StoredAs<DType::kInt16> {
  using Type = std::int16_t;
};
template <>
struct StoredAs<DType::kInt32> {
  using Type = std::int32_t;
};
template <>
struct StoredAs<DType::kInt64> {
  using Type = std::int64_t;
};

// Calls visitor.operator()<Stored>() for a floating dtype; for one that is known its code alone is compiled.
template <typename T, typename Visitor>
__device__ __forceinline__ void visit_stored(DType dtype, Visitor&& visitor) {
  visit_floating<T>(dtype, visitor);
}
template <typename T, DType kDType, typename Visitor>
__device__ __forceinline__ void visit_stored(KnownDType<kDType>, Visitor&& visitor) {
  visitor.template operator()<typename StoredAs<kDType>::Type>();
}

// A dtype is a DType or a KnownDType.
struct DeviceMemory {
  template <typename T>
  static __device__ __forceinline__ T load(const void* data, DType dtype, std::int64_t offset) {
    return load_element<T>(data, dtype, offset);
  }
  template <typename T, DType kDType>
  static __device__ __forceinline__ T load(const void* data, KnownDType<kDType>, std::int64_t offset) {
    return from_stored<T>(static_cast<const typename StoredAs<kDType>::Type*>(data)[offset]);
  }

  template <typename T, typename Which>
  static __device__ __forceinline__ void load_word(const void* data, Which dtype, std::int64_t offset,
                                                   T (&values)[kWord]) {
    visit_stored<T>(dtype, [&]<typename Stored>() {
      load_packed<T, Stored, kWord>(values, static_cast<const Stored*>(data) + offset);
    });
  }

  template <typename T, typename Which>
  static __device__ __forceinline__ void store(void* data, Which dtype, std::int64_t offset, T value) {
    visit_stored<T>(
        dtype, [&]<typename Stored>() { static_cast<Stored*>(data)[offset] = to_stored<Stored>(value); });
  }

  template <typename T, typename Which>
  static __device__ __forceinline__ void store_word(void* data, Which dtype, std::int64_t offset,
                                                    const T (&values)[kWord]) {
    visit_stored<T>(dtype, [&]<typename Stored>() {
      store_packed<Stored, kWord>(values, static_cast<Stored*>(data) + offset);
    });
  }
};

// What a thread keeps from phase to phase is `Own`.
template <typename TheOwn>
struct BlockCrew {
  using Own = TheOwn;
  Own own;

  template <typename Part>
  __device__ __forceinline__ void each(Part&& part) {
    part(static_cast<int>(threadIdx.x), own);
    __syncthreads();
  }
};

// The tiles of one block.
template <typename T, typename Own, typename Program>
__device__ __forceinline__ void run_tiles(const Sweep& sweep, const Program& program,
                                          const SweepLaunch& launch) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  const auto memory = TileMemory<T>::of(sweep, shared, !Own::kSumsInMemory);
  BlockCrew<Own> crew;
  for (std::int64_t tile = blockIdx.x; tile < sweep.num_tiles; tile += gridDim.x) {
    Tile<T, DeviceMemory, Program>(sweep, program, launch, tile, memory).run(crew);
  }
}

}  // namespace epiconv::backward
