// How a warp of im2col_conv.h stores its part of a tile where filters lie side by side in the output, and all
// its pixels follow each other: in slices of 16 pixels, through slots in shared memory, from which the copy
// engine takes them in whole lines. What an operand that is laid out like the output has for a slice comes
// the same way into the same slot, before: the program's result takes its place.
#pragma once

#include "device/ptx/bulk_copy.h"
#include "sm80/im2col_consumer.h"

namespace epiconv::sm80 {

// By one thread, before any other uses them.
__device__ __forceinline__ void init_slices(const ConvParameters& p, std::uint8_t* shared) {
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  for (int i = 0; i < p.geometry.im2col_slots_of_all(); ++i) {
    ptx::mbarrier_init(base + p.shared.slot_barriers + i * kBarrierBytes, 1);
  }
  ptx::mbarrier_init_fence();
}

template <typename Sums>
class Slices {
 public:
  __device__ __forceinline__ Slices(const Consumer<Sums>& consumer, const Im2colMaps& maps,
                                    std::uint8_t* shared, int warp)
      : consumer_(consumer), maps_(maps) {
    const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    const ConvParameters& p = consumer.p;
    slots_ = base + p.shared.slots + warp * p.geometry.im2col_slots * slot_bytes();
    barriers_ = base + p.shared.slot_barriers + warp * p.geometry.im2col_slots * kBarrierBytes;
  }

  // By all threads of a warp, at the begin of a tile: asks for the operand's first slices.
  __device__ __forceinline__ void begin(const Tile& tile) {
    row_ = tile.position * consumer_.p.geometry.tile_positions + consumer_.first_row() +
           consumer_.thread / kWarpThreads * kSliceRows;
    column_ = tile.group * consumer_.p.geometry.filters + tile.filter + consumer_.first_column();
    if (!has_operand()) return;
    if (is_first_lane()) ptx::bulk_store_wait_read<0>();
    for (int i = 0; i < slots() && i < count(); ++i) bring(i);
  }

  // By all threads of a warp.
  template <typename Evaluator>
  __device__ __forceinline__ void store(const TilePlace& place, const Sums& sums,
                                        const typename Consumer<Sums>::Parts& parts) {
    const int lane = consumer_.thread % kWarpThreads;
    const int row = consumer_.first_row() + consumer_.thread / kWarpThreads * kSliceRows + lane / 4;
    constexpr int kChunkColumns = Consumer<Sums>::kChunkColumns, kChunks = Sums::kColumns / kChunkColumns;
    const int in_slice = slice_columns() / kChunkColumns,
              size = dtype_size(consumer_.p.epilogue.output.dtype);
    if (!has_operand() && is_first_lane()) ptx::bulk_store_wait_read<0>();
    __syncwarp();
#pragma unroll
    for (int number = 0; number < Sums::kRowTiles * kChunks; ++number) {
      const int i = number / kChunks, c = number % kChunks, slice = number / in_slice;
      const std::uint32_t slot = slots_ + slice % slots() * slot_bytes();
      if (number % in_slice == 0) begin_slice(slice);
      typename Evaluator::Values values;
      consumer_.take_chunk(sums, parts, i, c, values);
      const int column = c * kChunkColumns + lane % 4 * kWordElements;
      const Chunk<typename Evaluator::Shape> chunk{consumer_.p.epilogue,
                                                   consumer_.launch,
                                                   place,
                                                   row + i * kProductRows,
                                                   consumer_.first_column() + column,
                                                   slot,
                                                   lane / 4,
                                                   column % slice_columns() * size};
      Evaluator::run(Part::kAll, chunk, values);
      chunk.store(values);
      if (number % in_slice == in_slice - 1) end_slice(slice);
    }
  }
  // Instead, where another team stores the tile.
  __device__ __forceinline__ void drop() {
    if (!has_operand()) return;
    for (int i = 0; i < slots() && i < count(); ++i) wait_operand(i);
  }
  // Shared memory is there as long as the copy engine reads it.
  __device__ __forceinline__ void end() const {
    if (consumer_.p.geometry.im2col_slots > 0 && is_first_lane()) ptx::bulk_store_wait_read<0>();
  }

 private:
  __device__ __forceinline__ int slots() const { return consumer_.p.geometry.im2col_slots; }
  __device__ __forceinline__ int slot_bytes() const {
    return kSliceRows * consumer_.p.geometry.im2col_slice_bytes;
  }
  __device__ __forceinline__ int slice_columns() const {
    return consumer_.p.geometry.im2col_slice_bytes / dtype_size(consumer_.p.epilogue.output.dtype);
  }
  // Slices of a tile.
  __device__ __forceinline__ int count() const { return Sums::kRowTiles * slices_of_row(); }
  __device__ __forceinline__ int slices_of_row() const { return Sums::kColumns / slice_columns(); }
  __device__ __forceinline__ bool has_operand() const {
    return consumer_.p.epilogue.staged_operand >= 0 && consumer_.launch.stages_operand;
  }
  __device__ __forceinline__ bool is_first_lane() const { return consumer_.thread % kWarpThreads == 0; }
  __device__ __forceinline__ int x(int slice) const {
    return column_ + slice % slices_of_row() * slice_columns();
  }
  __device__ __forceinline__ int y(int slice) const { return row_ + slice / slices_of_row() * kProductRows; }
  __device__ __forceinline__ std::uint32_t barrier(int slice) const {
    return barriers_ + slice % slots() * kBarrierBytes;
  }

  // The operand's slice, into its slot, which is free.
  __device__ __forceinline__ void bring(int slice) const {
    if (!is_first_lane()) return;
    ptx::mbarrier_arrive_expect(barrier(slice), slot_bytes());
    ptx::tensor_copy(slots_ + slice % slots() * slot_bytes(), &maps_.operand, x(slice), y(slice),
                     barrier(slice));
  }
  __device__ __forceinline__ void wait_operand(int slice) {
    const int slot = slice % slots();
    ptx::mbarrier_wait(barrier(slice), parities_ >> slot & 1, "an operand's slice", slot);
    parities_ ^= 1u << slot;
  }
  // Until the slot is free, of 2 or 4, or has the operand.
  __device__ __forceinline__ void begin_slice(int slice) {
    if (has_operand()) return wait_operand(slice);
    if (slice < slots()) return;
    if (is_first_lane()) {
      if (slots() == 2) {
        ptx::bulk_store_wait_read<1>();
      } else {
        ptx::bulk_store_wait_read<3>();
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ void end_slice(int slice) const {
    ptx::fence_async_shared();
    __syncwarp();
    if (is_first_lane()) {
      ptx::tensor_store(&maps_.output, slots_ + slice % slots() * slot_bytes(), x(slice), y(slice));
      ptx::bulk_store_commit();
    }
    // The slot of the slice before takes that of one that comes.
    const int next = slice - 1 + slots();
    if (!has_operand() || slice == 0 || next >= count()) return;
    if (is_first_lane()) ptx::bulk_store_wait_read<1>();
    bring(next);
  }

  const Consumer<Sums>& consumer_;
  const Im2colMaps& maps_;
  std::uint32_t slots_, barriers_, parities_ = 0;
  int row_ = 0, column_ = 0;
};

}  // namespace epiconv::sm80
