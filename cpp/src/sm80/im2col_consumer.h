// A warpgroup of im2col_conv.h: its part of a tile, from products to what is stored.
#pragma once

#include "device/ptx/fences.h"
#include "device/ptx/keep_here.h"
#include "device/ptx/prefetch.h"
#include "device/ptx/wgmma.h"
#include "sm80/conv_chunk.h"
#include "sm80/im2col_lines.h"
#include "sm80/im2col_ring.h"
#include "sm80/math.h"
#include "sm80/warpgroup_sums.h"

namespace epiconv::sm80 {

inline constexpr int kGroupThreads = kThreads / 2;  // of a warpgroup

template <typename Math, int kColumns>
__device__ __forceinline__ void multiply_described(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b,
                                                   bool accumulate) {
  if constexpr (std::is_same_v<Math, Tf32>) {
    ptx::wgmma_tf32<kColumns, 0>(d, a, b, accumulate);
  } else if constexpr (std::is_same_v<Math, Bf16>) {
    ptx::wgmma_bf16<kColumns, 0>(d, a, b, accumulate);
  } else {
    ptx::wgmma_fp16<kColumns, 0>(d, a, b, accumulate);
  }
}

// A warpgroup, and its part of a tile.
template <typename Sums>
struct Consumer {
  const ConvParameters& p;
  const ConvLaunch& launch;
  const TileMemory memory;  // tables of its own
  const int number;         // of all warpgroups
  const int group, thread;  // of the team's, and of the warpgroup's

  __device__ __forceinline__ Consumer(const ConvParameters& parameters, const ConvLaunch& the_launch,
                                      std::uint8_t* shared, int the_thread)
      : p(parameters),
        launch(the_launch),
        memory{parameters.shared, shared + the_thread / kGroupThreads * parameters.shared.tables},
        number(the_thread / kGroupThreads),
        group(number % 2),
        thread(the_thread % kGroupThreads) {}

  // By all threads of the warpgroup.
  __device__ __forceinline__ void synchronize() const { ptx::named_barrier<kGroupThreads>(1 + number); }
  // Of the products' matrix.
  __device__ __forceinline__ int first_row() const {
    return p.geometry.warpgroups_share_rows ? 0 : group * Sums::kRowTiles * kProductRows;
  }
  __device__ __forceinline__ int first_column() const {
    return p.geometry.warpgroups_share_rows ? group * Sums::kColumns : 0;
  }

  // Where the tile's positions lie in the output.
  __device__ __forceinline__ void write_columns(const Tile& tile) const {
    const Geometry& g = p.geometry;
    const int first = g.positions_are_rows() ? first_row() : first_column();
    const int count = g.positions_are_rows() ? Sums::kRowTiles * kProductRows : Sums::kColumns;
    if (thread == 0) {
      memory.tile() = tile;
      memory.phases()[0].place = PhasePlace::of(p, tile, tile.phase);
    }
#pragma unroll 1
    for (int i = thread; i < count; i += kGroupThreads) {
      memory.columns()[first + i] = Column::of(p, Position::in_grid(g, tile, first + i));
    }
  }

  // What operands of filters have for the tile's: the thread's first ones, which are on their way while steps
  // are multiplied, and then all, in shared memory.
  static constexpr int kHeldOperands = 2;
  __device__ __forceinline__ void load_filter_operands(const Tile& tile, float (&held)[kHeldOperands]) const {
#pragma unroll
    for (int i = 0; i < kHeldOperands; ++i) {
      const int item = thread + i * kGroupThreads;
      held[i] = item < filter_operands() ? load_filter_operand(tile, item) : 0.0f;
    }
  }
  __device__ __forceinline__ void write_filter_operands(const Tile& tile,
                                                        const float (&held)[kHeldOperands]) const {
#pragma unroll
    for (int i = 0; i < kHeldOperands; ++i) {
      const int item = thread + i * kGroupThreads;
      if (item < filter_operands()) memory.filter_operands()[item] = held[i];
    }
#pragma unroll 1
    for (int item = thread + kHeldOperands * kGroupThreads; item < filter_operands(); item += kGroupThreads) {
      memory.filter_operands()[item] = load_filter_operand(tile, item);
    }
  }
  __device__ __forceinline__ int filter_operands() const {
    return p.geometry.filter_operands * p.geometry.tile_filters;
  }
  // [operand][filter], of which this is the number `item`.
  __device__ __forceinline__ float load_filter_operand(const Tile& tile, int item) const {
    const Geometry& g = p.geometry;
    const int row = item / g.tile_filters, in_tile = item - row * g.tile_filters;
    const OutputTensor& operand = p.epilogue.operands[p.epilogue.filter_operands[row]];
    const std::int64_t filter = tile.group * g.filters + min(tile.filter + in_tile, g.filters - 1);
    return load_element<float>(launch.operands[operand.place], operand.dtype, filter * operand.strides[1]);
  }

  // Asks for what operands that are laid out like the output have for the warpgroup's part.
  __device__ __forceinline__ void prefetch_operands(const TilePlace& place) const {
    bool are_columns_there = false;
    constexpr int kLineBytes = 128, kRows = Sums::kRowTiles * kProductRows;
    const Geometry& g = p.geometry;
    // Elements of a line of the output lie in a row of the products' matrix, or in a column.
    const bool has_lines_of_rows = !g.positions_are_rows() || p.epilogue.output.strides[1] == 1;
#pragma unroll
    for (int i = 0; i < kNumOperandPlaces; ++i) {
      const OutputTensor& operand = p.epilogue.operands[i];
      if (!operand.is_like_output || operand.is_of_filters || !is_floating(operand.dtype)) continue;
      if (i == p.epilogue.staged_operand && launch.stages_operand) continue;
      if (!are_columns_there) synchronize();
      are_columns_there = true;
      const int size = dtype_size(operand.dtype);
      const int line = min(kLineBytes / size, has_lines_of_rows ? Sums::kColumns : kRows);
      const int in_row = has_lines_of_rows ? Sums::kColumns / line : Sums::kColumns;
#pragma unroll 1
      for (int item = thread; item < kRows * Sums::kColumns / line; item += kGroupThreads) {
        const int row = first_row() + item / in_row * (has_lines_of_rows ? 1 : line);
        const int column = first_column() + item % in_row * (has_lines_of_rows ? line : 1);
        const int filter = g.positions_are_rows() ? column : row;
        const Column& at = place.columns[g.positions_are_rows() ? row : column];
        if (filter >= place.filters() || place.room(at) <= 0) continue;
        const std::int64_t offset = at.offset + place.phase.offset + filter * operand.strides[1];
        ptx::prefetch_to_l2(static_cast<const std::uint8_t*>(launch.operands[operand.place]) + offset * size);
      }
    }
  }

  static constexpr int kProducts = kStepBytes / 32;  // of a step
  static constexpr int kDescribedBytes = 16;         // of a unit of a descriptor's address

  // The products of so many steps, at least one.
  template <typename Math>
  __device__ __forceinline__ void multiply(Im2colRing& ring, std::int32_t steps, Sums& sums) const {
    if constexpr (Sums::kRowTiles == kLineTiles) {
      if (p.geometry.im2col_lines) return multiply_lines<Math>(ring, steps, sums);
    }
    const Geometry& g = p.geometry;
    const std::uint32_t first_of_rows = first_row() * kStepBytes,
                        first_of_columns = first_column() * kStepBytes;
#pragma unroll 1
    for (std::int32_t step = 0; step < steps; ++step) {
      ring.wait_full();
      const std::uint32_t rows = g.filters_are_rows ? ring.filters() : ring.positions();
      const std::uint32_t columns = g.filters_are_rows ? ring.positions() : ring.filters();
      const std::uint64_t a = ptx::wgmma_descriptor(rows + first_of_rows, kStepBytes);
      const std::uint64_t b = ptx::wgmma_descriptor(columns + first_of_columns, kStepBytes);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kProducts; ++k) {
#pragma unroll
        for (int i = 0; i < Sums::kRowTiles; ++i) {
          multiply_described<Math, Sums::kColumns>(
              sums.sums[i], a + (i * kProductRows * kStepBytes + k * 32) / kDescribedBytes,
              b + k * 32 / kDescribedBytes, k > 0 || step > 0);
        }
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      ring.release_before(step > 0);
      ring.next();
    }
    ptx::wgmma_wait<0>();
    ring.release_before(true);
  }

  // The same where the first factor is in boxes of lines.
  template <typename Math>
  __device__ __forceinline__ void multiply_lines(Im2colRing& ring, std::int32_t steps, Sums& sums) const {
    const int lane = thread % kWarpThreads;
    const LinePlace place = LinePlace::of(p.geometry, word_position(), lane);
    std::uint32_t rows[2][kLineTiles][4];
#pragma unroll 1
    for (std::int32_t step = 0; step < steps; ++step) {
      ring.wait_full();
      const std::uint64_t b = ptx::wgmma_descriptor(ring.filters() + first_column() * kStepBytes, kStepBytes);
      const auto multiply_product = [&]<int kNumber>() {
        // The products before those under way are done, and the registers that they read are free.
        ptx::wgmma_wait<1>();
        if (kNumber == 1) ring.release_before(step > 0);
        auto& of_product = rows[kNumber % 2];
        place.template load<Math, kNumber>(ring.positions(), of_product);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < kLineTiles; ++i) {
          multiply_rows<Math, Sums::kColumns>(sums.sums[i], of_product[i], b + kNumber * 32 / kDescribedBytes,
                                              kNumber > 0 || step > 0);
        }
        ptx::wgmma_commit();
      };
      static_assert(kProducts == 4);
      multiply_product.template operator()<0>();
      multiply_product.template operator()<1>();
      multiply_product.template operator()<2>();
      multiply_product.template operator()<3>();
      ring.next();
    }
    ptx::wgmma_wait<0>();
    ring.release_before(true);
  }

  // Of lines: the position of the tile from which on a thread has words.
  __device__ __forceinline__ int word_position() const {
    return first_row() + thread / kWarpThreads * kWarpLines + thread % kWarpThreads / 4 * kLineWord;
  }

  // Where the parts of a tile are that several teams share: of those from `first` to `last`.
  struct Parts {
    const float* begin;  // of the thread's sums, of team 0
    std::int32_t first, last;
    bool are_needed;  // the sums are theirs

    // Floats of a part, and of a team's two: one is of the tile in which its share begins, the other of that
    // in which it ends.
    static constexpr int kOfPart = 2 * Sums::kCount * kGroupThreads, kOfWorker = 2 * kOfPart;

    __device__ __forceinline__ const float* of(std::int32_t worker) const {
      return begin + std::int64_t{worker} * kOfWorker + (worker == first ? kOfPart : 0);
    }
  };

  // Leaves the sums for the team that comes last; whether this is the one, which then stores the tile.
  __device__ __forceinline__ Parts share(std::int32_t worker, std::int32_t rank, std::int32_t tile,
                                         Sums& sums) const {
    const Geometry& g = p.geometry;
    const std::int32_t number = tile - g.im2col_whole_tiles, begin = number * g.most_steps;
    const std::int32_t first = begin / g.im2col_share, last = (begin + g.most_steps - 1) / g.im2col_share;
    const std::int32_t of_cluster = rank * g.im2col_workers * Parts::kOfWorker;
    Parts parts{launch.partial_sums + of_cluster + group * (Parts::kOfPart / 2) + thread, first, last, false};
    float* const own = const_cast<float*>(parts.of(worker));
    sums.visit([&](float& sum, int i) { __stcg(own + i * kGroupThreads, sum); });
    __threadfence();
    synchronize();
    if (thread == 0)
      *memory.flag() = atomicAdd(launch.arrivals + (number * g.im2col_cluster + rank) * 2 + group, 1u);
    synchronize();
    parts.are_needed = *memory.flag() == static_cast<std::uint32_t>(last - first);
    if (parts.are_needed) __threadfence();
    return parts;
  }

  // Runs the program on the sums, chunk by chunk of 16 of a thread, and stores what it makes.
  template <typename Evaluator>
  __device__ __forceinline__ void store(const TilePlace& place, const Sums& sums, const Parts& parts) const {
    if constexpr (Sums::kRowTiles == kLineTiles) {
      if (p.geometry.im2col_lines) return store_lines<Evaluator>(place, sums, parts);
    }
    const int lane = thread % kWarpThreads, row = first_row() + thread / kWarpThreads * 16 + lane / 4;
    const int in_chunk = p.geometry.filters_are_rows ? lane % 2 * 8 + lane % 4 / 2 * 4 : lane % 4 * 4;
#pragma unroll
    for (int i = 0; i < Sums::kRowTiles; ++i) {
#pragma unroll
      for (int c = 0; c < Sums::kColumns / kChunkColumns; ++c) {
        typename Evaluator::Values values;
        take_chunk(sums, parts, i, c, values);
        const Chunk<typename Evaluator::Shape> chunk{p.epilogue, launch, place, row + i * kProductRows,
                                                     first_column() + c * kChunkColumns + in_chunk};
        Evaluator::run(Part::kAll, chunk, values);
        chunk.store(values);
        ptx::forget_memory();  // what tables say takes no registers beside the sums
      }
    }
  }

  // The same of lines, where a chunk has 16 filters.
  template <typename Evaluator>
  __device__ __forceinline__ void store_lines(const TilePlace& place, const Sums& sums,
                                              const Parts& parts) const {
#pragma unroll
    for (int c = 0; c < Sums::kColumns / kSliceRows; ++c) {
      typename Evaluator::Values values;
      take_lines(sums, parts, c, values);
      const int filter = first_column() + c * kSliceRows + thread % 4 * 2;
      const Chunk<typename Evaluator::Shape> chunk{p.epilogue, launch, place, filter, word_position()};
      Evaluator::run(Part::kAll, chunk, values);
      chunk.store(values);
      ptx::forget_memory();
    }
  }
  // Words of the filters 2 * (lane % 4) of eight, the next one, and those eight behind.
  template <typename Values>
  __device__ __forceinline__ void take_lines(const Sums& sums, const Parts& parts, int number,
                                             Values& values) const {
    constexpr int kOfTile = 8;  // of a row tile's sums
#pragma unroll
    for (int i = 0; i < kLineTiles; ++i) {
      float of_tile[kOfTile];
#pragma unroll
      for (int e = 0; e < kOfTile; ++e) of_tile[e] = sums.sums[i][number * kOfTile + e];
      if (parts.are_needed) add_parts(parts, i * (Sums::kColumns / 2) + number * kOfTile, of_tile);
#pragma unroll
      for (int e = 0; e < kOfTile; ++e) {
        const int word = e / 4 * 2 + e % 2;
        values[word * kWordElements + 2 * i + e / 2 % 2] = of_tile[e];
      }
    }
  }
  // What all parts have, in the order of steps, of the sums from number `first` on.
  template <int kCount>
  __device__ __forceinline__ void add_parts(const Parts& parts, int first, float (&sums)[kCount]) const {
#pragma unroll
    for (int e = 0; e < kCount; ++e) sums[e] = 0.0f;
#pragma unroll 2
    for (std::int32_t worker = parts.first; worker <= parts.last; ++worker) {
      const float* const from = parts.of(worker) + first * kGroupThreads;
#pragma unroll
      for (int e = 0; e < kCount; ++e) sums[e] += __ldcg(from + e * kGroupThreads);
    }
  }

  // The words of a chunk of a row tile.
  template <typename Values>
  __device__ __forceinline__ void take_chunk(const Sums& sums, const Parts& parts, int row_tile, int number,
                                             Values& values) const {
    constexpr int kChunkSums = 16;
    float of_chunk[kChunkSums];
#pragma unroll
    for (int e = 0; e < kChunkSums; ++e) of_chunk[e] = sums.sums[row_tile][number * kChunkSums + e];
    if (parts.are_needed) {
      add_parts(parts, row_tile * (Sums::kColumns / 2) + number * kChunkSums, of_chunk);
    }
    const bool is_odd = thread % 2 == 1;
#pragma unroll
    for (int w = 0; w < kChunkSums / kWordElements; ++w) {
      // Two tiles of 8 columns, of both of which the thread has two sums in the row.
      const float* const even = of_chunk + w % 2 * 8 + w / 2 * 2;
      const float* const odd = even + 4;
      float* const word = values + w * kWordElements;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (p.geometry.filters_are_rows) {
          const float got = __shfl_xor_sync(0xFFFFFFFF, is_odd ? even[e] : odd[e], 1);
          word[e] = is_odd ? got : even[e];
          word[2 + e] = is_odd ? odd[e] : got;
        } else {
          word[e] = even[e];
          word[2 + e] = odd[e];
        }
      }
    }
  }

  static constexpr int kChunkColumns = kRowWords * kWordColumns;
};

}  // namespace epiconv::sm80
