// How a warp of im2col_conv.h stores its part of a tile: in slices of 16 rows, through slots in shared
// memory, from which the copy engine takes them in whole lines. Where all pixels of the output follow each
// other, with filters side by side, it is a matrix of pixels, which are rows, and filters. Where images'
// pixels lie side by side, filters are rows, and each image is such a matrix; a slice that lies in several
// images is copied by the warp itself, since the copy engine stores nothing from before a row's begin on, and
// so are all slices where planes do not begin at its granularity.
//
// What an operand that is laid out like the output has for a slice comes the same way into the same slot,
// before: the program's result takes its place.
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
    const Geometry& g = geometry();
    const std::int32_t position = tile.position * g.tile_positions;
    const std::int32_t filter = tile.group * g.filters + tile.filter;
    row_ = (g.filters_are_rows ? filter : position) + consumer_.first_row() +
           consumer_.thread / kWarpThreads * kSliceRows;
    column_ = (g.filters_are_rows ? position : filter) + consumer_.first_column();
    filters_end_ = (tile.group + 1) * g.filters;
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
    const int in_chunk =
        geometry().filters_are_rows ? lane % 2 * 8 + lane % 4 / 2 * 4 : lane % 4 * kWordElements;
#pragma unroll
    for (int number = 0; number < Sums::kRowTiles * kChunks; ++number) {
      const int i = number / kChunks, c = number % kChunks, slice = number / in_slice;
      const std::uint32_t slot = this->slot(slice);
      if (number % in_slice == 0) begin_slice(slice);
      typename Evaluator::Values values;
      consumer_.take_chunk(sums, parts, i, c, values);
      const int column = c * kChunkColumns + in_chunk;
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
    for (int i = 0; i < slots() && i < count(); ++i) {
      if (!is_copied(i)) wait_operand(i);
    }
  }
  // Shared memory is there as long as the copy engine reads it.
  __device__ __forceinline__ void end() const {
    if (slots() > 0 && is_first_lane()) ptx::bulk_store_wait_read<0>();
  }

 private:
  __device__ __forceinline__ const Geometry& geometry() const { return consumer_.p.geometry; }
  __device__ __forceinline__ int slots() const { return geometry().im2col_slots; }
  __device__ __forceinline__ int slot_bytes() const { return kSliceRows * geometry().im2col_slice_bytes; }
  __device__ __forceinline__ int slice_columns() const {
    return geometry().im2col_slice_bytes / dtype_size(consumer_.p.epilogue.output.dtype);
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
  __device__ __forceinline__ std::uint32_t slot(int slice) const {
    return slots_ + slice % slots() * slot_bytes();
  }
  __device__ __forceinline__ std::uint32_t barrier(int slice) const {
    return barriers_ + slice % slots() * kBarrierBytes;
  }

  // By the warp's threads.
  __device__ __forceinline__ bool is_copied(int slice) const {
    const Geometry& g = geometry();
    if (!g.filters_are_rows || g.im2col_copies_slices) return g.im2col_copies_slices;
    if (g.image_positions() % slice_columns() == 0) return false;
    return x(slice) % g.image_positions() > g.image_positions() - slice_columns();
  }
  // The operand's slice, into its slot, which is free.
  __device__ __forceinline__ void bring(int slice) const {
    if (!is_first_lane() || is_copied(slice)) return;
    ptx::mbarrier_arrive_expect(barrier(slice), slot_bytes());
    if (!geometry().filters_are_rows) {
      ptx::tensor_copy(slot(slice), &maps_.operand, x(slice), y(slice), barrier(slice));
    } else {
      const std::int32_t image = x(slice) / geometry().image_positions();
      ptx::tensor_copy(slot(slice), &maps_.operand, x(slice) - image * geometry().image_positions(), y(slice),
                       image, barrier(slice));
    }
  }
  __device__ __forceinline__ void wait_operand(int slice) {
    const int slot = slice % slots();
    ptx::mbarrier_wait(barrier(slice), parities_ >> slot & 1, "an operand's slice", slot);
    parities_ ^= 1u << slot;
  }
  // Until the slot is free, of 2 or 4, or has the operand.
  __device__ __forceinline__ void begin_slice(int slice) {
    if (has_operand()) {
      if (is_copied(slice)) return copy_operand(slice);
      return wait_operand(slice);
    }
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
    const bool copied = is_copied(slice);
    if (!copied) ptx::fence_async_shared();
    __syncwarp();
    if (copied) {
      copy_to_output(slice);
    } else if (is_first_lane()) {
      if (geometry().filters_are_rows) {
        const std::int32_t image = x(slice) / geometry().image_positions();
        ptx::tensor_store(&maps_.output, slot(slice), x(slice) - image * geometry().image_positions(),
                          y(slice), image);
      } else {
        ptx::tensor_store(&maps_.output, slot(slice), x(slice), y(slice));
      }
    }
    if (is_first_lane()) ptx::bulk_store_commit();  // one for each slice, which are counted
    // The slot of the slice before takes that of one that comes.
    const int next = slice - 1 + slots();
    if (!has_operand() || slice == 0 || next >= count()) return;
    if (is_first_lane()) ptx::bulk_store_wait_read<1>();
    bring(next);
  }

  // Calls visitor(bytes from the begin of a slice's row, offset of the first row in the output, rows that it
  // has) with each of the lane's columns that the output has.
  template <typename Visitor>
  __device__ __forceinline__ void visit_elements(int slice, Visitor&& visitor) const {
    const auto& output = consumer_.p.epilogue.output;
    const std::int32_t pixels = geometry().image_positions(), size = dtype_size(output.dtype);
#pragma unroll 1
    for (int column = threadIdx.x % kWarpThreads; column < slice_columns(); column += kWarpThreads) {
      const std::int32_t position = x(slice) + column, image = position / pixels;
      if (image >= geometry().batch) continue;
      const std::int64_t first =
          image * output.strides[0] + y(slice) * output.strides[1] + position - image * pixels;
      const std::int32_t rows = filters_end_ - y(slice);
      visitor(column * size, first, rows);
    }
  }
  // By all threads of a warp: between its global memory and a slot.
  __device__ __forceinline__ void copy_operand(int slice) const {
    const auto& output = consumer_.p.epilogue.output;
    visit_stored(output.dtype, [&]<typename Stored>() {
      const void* const data = consumer_.launch.operands[consumer_.p.epilogue.staged_operand];
      visit_elements(slice, [&](std::int32_t byte, std::int64_t first, std::int32_t rows) {
        const Stored* const from = static_cast<const Stored*>(data) + first;
        Stored values[kSliceRows];
#pragma unroll
        for (int row = 0; row < kSliceRows; ++row) {
          if (row < rows) values[row] = from[row * output.strides[1]];
        }
#pragma unroll
        for (int row = 0; row < kSliceRows; ++row) {
          ptx::store_shared_as(slot(slice) + slice_offset(geometry().im2col_slice_bytes, row, byte),
                               values[row]);
        }
      });
    });
    __syncwarp();
  }
  __device__ __forceinline__ void copy_to_output(int slice) const {
    const auto& output = consumer_.p.epilogue.output;
    visit_stored(output.dtype, [&]<typename Stored>() {
      visit_elements(slice, [&](std::int32_t byte, std::int64_t first, std::int32_t rows) {
        Stored* const to = static_cast<Stored*>(consumer_.launch.output) + first;
#pragma unroll
        for (int row = 0; row < kSliceRows; ++row) {
          const std::uint32_t from = slot(slice) + slice_offset(geometry().im2col_slice_bytes, row, byte);
          if (row < rows) to[row * output.strides[1]] = ptx::load_shared_as<Stored>(from);
        }
      });
    });
    __syncwarp();
  }
  // With an unsigned integer of as many bytes.
  template <typename Visitor>
  __device__ __forceinline__ static void visit_stored(DType dtype, Visitor&& visitor) {
    if (dtype_size(dtype) == 4) {
      visitor.template operator()<std::uint32_t>();
    } else {
      visitor.template operator()<std::uint16_t>();
    }
  }

  const Consumer<Sums>& consumer_;
  const Im2colMaps& maps_;
  std::uint32_t slots_, barriers_, parities_ = 0;
  int row_ = 0, column_ = 0, filters_end_ = 0;
};

}  // namespace epiconv::sm80
