// Elements in the card's memory, and threads of a block, as tile.h and sums.h take them.
#pragma once

#include "backward/tile.h"
#include "device/elements.h"

namespace epiconv::backward {

struct DeviceMemory {
  template <typename T>
  static __device__ __forceinline__ T load(const void* data, DType dtype, std::int64_t offset) {
    return load_element<T>(data, dtype, offset);
  }

  template <typename T>
  static __device__ __forceinline__ void load_word(const void* data, DType dtype, std::int64_t offset,
                                                   T (&values)[kWord]) {
    visit_floating<T>(dtype, [&]<typename Stored>() {
      load_packed<T, Stored, kWord>(values, static_cast<const Stored*>(data) + offset);
    });
  }

  template <typename T>
  static __device__ __forceinline__ void store(void* data, DType dtype, std::int64_t offset, T value) {
    visit_floating<T>(
        dtype, [&]<typename Stored>() { static_cast<Stored*>(data)[offset] = to_stored<Stored>(value); });
  }

  template <typename T>
  static __device__ __forceinline__ void store_word(void* data, DType dtype, std::int64_t offset,
                                                    const T (&values)[kWord]) {
    visit_floating<T>(dtype, [&]<typename Stored>() {
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
__device__ __forceinline__ void run_tiles(const Sweep& sweep, const SweepLaunch& launch) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  const auto memory = TileMemory<T>::of(sweep, shared, !Own::kSumsInMemory);
  BlockCrew<Own> crew;
  for (std::int64_t tile = blockIdx.x; tile < sweep.num_tiles; tile += gridDim.x) {
    Tile<T, DeviceMemory, Program>(sweep, launch, tile, memory).run(crew);
  }
}

}  // namespace epiconv::backward
