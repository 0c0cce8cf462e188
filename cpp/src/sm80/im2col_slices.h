// How a warp of im2col_conv.h stores its part of a tile: in slices of 16 rows, through slots in shared
// memory, from which the copy engine takes them in whole lines. Where all pixels of the output follow each
// other, with filters side by side, it is a matrix of pixels, which are rows, and filters. Where images'
// pixels lie side by side, filters are rows, and each image is such a matrix; a slice that lies in several
// images is copied by the warp itself, since the copy engine stores nothing from before a row's begin on, and
// so are all slices where planes do not begin at its granularity, and those of a transposed convolution's
// phase, whose pixels lie apart. Where lines of the input are read, filters
// are rows, too, and a slice has 32 pixels of a row.
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
    const std::int32_t position = g.im2col_lines ? 0 : tile.position * g.tile_positions;
    const std::int32_t filter = tile.group * g.filters + tile.filter;
    position_ = position + first_position();
    filter_ = filter + first_filter();
    if (g.im2col_lines) at_ = Position::in_grid(g, tile, position_);
    if (!has_operand()) return;
    if (is_first_lane()) ptx::bulk_store_wait_read<0>();
    for (int i = 0; i < slots() && i < count(); ++i) bring(i);
  }

  // By all threads of a warp.
  template <typename Evaluator>
  __device__ __forceinline__ void store(const TilePlace& place, const Sums& sums,
                                        const typename Consumer<Sums>::Parts& parts) {
    if (!has_operand() && is_first_lane()) ptx::bulk_store_wait_read<0>();
    __syncwarp();
    if constexpr (Sums::kRowTiles == kLineTiles) {
      if (geometry().im2col_lines) return store_lines<Evaluator>(place, sums, parts);
    }
    const int lane = consumer_.thread % kWarpThreads;
    const int row = consumer_.first_row() + consumer_.thread / kWarpThreads * kSliceRows + lane / 4;
    constexpr int kChunkColumns = Consumer<Sums>::kChunkColumns, kChunks = Sums::kColumns / kChunkColumns;
    const int in_slice = slice_columns() / kChunkColumns, size = element_bytes();
    const int in_chunk =
        geometry().filters_are_rows ? lane % 2 * 8 + lane % 4 / 2 * 4 : lane % 4 * kWordElements;
#pragma unroll
    for (int number = 0; number < Sums::kRowTiles * kChunks; ++number) {
      const int i = number / kChunks, c = number % kChunks, slice = number / in_slice;
      if (number % in_slice == 0) begin_slice(slice, place);
      typename Evaluator::Values values;
      consumer_.take_chunk(sums, parts, i, c, values);
      const int column = c * kChunkColumns + in_chunk;
      const Chunk<typename Evaluator::Shape> chunk{consumer_.p.epilogue,
                                                   consumer_.launch,
                                                   place,
                                                   row + i * kProductRows,
                                                   consumer_.first_column() + column,
                                                   slot(slice),
                                                   lane / 4,
                                                   column % slice_columns() * size};
      Evaluator::run(Part::kAll, chunk, values);
      chunk.store(values);
      if (number % in_slice == in_slice - 1) end_slice(slice, place);
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
  // Where a chunk is a slice.
  template <typename Evaluator>
  __device__ __forceinline__ void store_lines(const TilePlace& place, const Sums& sums,
                                              const typename Consumer<Sums>::Parts& parts) {
    const int lane = consumer_.thread % kWarpThreads;
#pragma unroll
    for (int slice = 0; slice < Sums::kColumns / kSliceRows; ++slice) {
      begin_slice(slice, place);
      typename Evaluator::Values values;
      consumer_.take_lines(sums, parts, slice, values);
      const Chunk<typename Evaluator::Shape> chunk{
          consumer_.p.epilogue,
          consumer_.launch,
          place,
          consumer_.first_column() + slice * kSliceRows + lane % 4 * 2,
          consumer_.word_position(),
          slot(slice),
          lane % 4 * 2,
          lane / 4 * kLineWord * element_bytes()};
      Evaluator::run(Part::kAll, chunk, values);
      chunk.store(values);
      end_slice(slice, place);
    }
  }

  __device__ __forceinline__ const Geometry& geometry() const { return consumer_.p.geometry; }
  __device__ __forceinline__ int slots() const { return geometry().im2col_slots; }
  __device__ __forceinline__ int slot_bytes() const { return kSliceRows * geometry().im2col_slice_bytes; }
  __device__ __forceinline__ int element_bytes() const {
    return dtype_size(consumer_.p.epilogue.output.dtype);
  }
  __device__ __forceinline__ int slice_columns() const {
    return geometry().im2col_slice_bytes / element_bytes();
  }
  // Slices of a tile.
  __device__ __forceinline__ int count() const {
    return geometry().im2col_lines ? Sums::kColumns / kSliceRows : Sums::kRowTiles * slices_of_row();
  }
  __device__ __forceinline__ int slices_of_row() const { return Sums::kColumns / slice_columns(); }
  __device__ __forceinline__ bool has_operand() const {
    return consumer_.p.epilogue.staged_operand >= 0 && consumer_.launch.stages_operand;
  }
  __device__ __forceinline__ bool is_first_lane() const { return consumer_.thread % kWarpThreads == 0; }
  __device__ __forceinline__ std::uint32_t slot(int slice) const {
    return slots_ + slice % slots() * slot_bytes();
  }
  __device__ __forceinline__ std::uint32_t barrier(int slice) const {
    return barriers_ + slice % slots() * kBarrierBytes;
  }

  // The first of the warp's in the tile, and what is added to it for a slice.
  __device__ __forceinline__ int first_position() const {
    const int warp = consumer_.thread / kWarpThreads;
    if (geometry().im2col_lines) return consumer_.first_row() + warp * kWarpLines;
    return geometry().filters_are_rows ? consumer_.first_column() : consumer_.first_row() + warp * kSliceRows;
  }
  __device__ __forceinline__ int first_filter() const {
    if (geometry().positions_are_rows()) return consumer_.first_column();
    return consumer_.first_row() + consumer_.thread / kWarpThreads * kSliceRows;
  }
  __device__ __forceinline__ int added_position(int slice) const {
    if (geometry().im2col_lines) return 0;
    return geometry().filters_are_rows ? slice % slices_of_row() * slice_columns()
                                       : slice / slices_of_row() * kProductRows;
  }
  __device__ __forceinline__ int added_filter(int slice) const {
    if (geometry().im2col_lines) return slice * kSliceRows;
    return geometry().filters_are_rows ? slice / slices_of_row() * kProductRows
                                       : slice % slices_of_row() * slice_columns();
  }

  // By the warp's threads.
  __device__ __forceinline__ bool is_copied(int slice) const {
    const Geometry& g = geometry();
    if (!g.filters_are_rows || g.im2col_lines || g.im2col_copies_slices) return g.im2col_copies_slices;
    if (g.image_positions() % slice_columns() == 0) return false;
    return (position_ + added_position(slice)) % g.image_positions() > g.image_positions() - slice_columns();
  }
  // Calls visitor(coordinates…), which are of the maps of slices.
  template <typename Visitor>
  __device__ __forceinline__ void at(int slice, Visitor&& visitor) const {
    const std::int32_t position = position_ + added_position(slice), filter = filter_ + added_filter(slice);
    if (geometry().im2col_lines) {
      visitor(at_.at[3], at_.at[2], at_.at[1], filter, at_.at[0]);
    } else if (geometry().filters_are_rows) {
      const std::int32_t image = position / geometry().image_positions();
      visitor(position - image * geometry().image_positions(), filter, image);
    } else {
      visitor(filter, position);
    }
  }
  // The operand's slice, into its slot, which is free.
  __device__ __forceinline__ void bring(int slice) const {
    if (!is_first_lane() || is_copied(slice)) return;
    ptx::mbarrier_arrive_expect(barrier(slice), slot_bytes());
    at(slice, [&](auto... x) { ptx::tensor_copy(slot(slice), &maps_.operand, x..., barrier(slice)); });
  }
  __device__ __forceinline__ void wait_operand(int slice) {
    const int slot = slice % slots();
    ptx::mbarrier_wait(barrier(slice), parities_ >> slot & 1, "an operand's slice", slot);
    parities_ ^= 1u << slot;
  }
  // Until the slot is free, of 2 or 4, or has the operand.
  __device__ __forceinline__ void begin_slice(int slice, const TilePlace& place) {
    if (has_operand()) {
      if (is_copied(slice)) return copy_operand(slice, place);
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
  __device__ __forceinline__ void end_slice(int slice, const TilePlace& place) const {
    const bool copied = is_copied(slice);
    if (!copied) ptx::fence_async_shared();
    __syncwarp();
    if (copied) {
      copy_to_output(slice, place);
    } else if (is_first_lane()) {
      at(slice, [&](auto... x) { ptx::tensor_store(&maps_.output, slot(slice), x...); });
    }
    if (is_first_lane()) ptx::bulk_store_commit();  // one for each slice, which are counted
    // The slot of the slice before takes that of one that comes.
    const int next = slice - 1 + slots();
    if (!has_operand() || slice == 0 || next >= count()) return;
    if (is_first_lane()) ptx::bulk_store_wait_read<1>();
    bring(next);
  }

  // Bytes that a lane copies at once: pixels of one image, at a multiple of them.
  __device__ __forceinline__ int copied_bytes() const {
    const auto& strides = consumer_.p.epilogue.output.strides;
    int bytes = kMostCopied;
    for (; bytes > element_bytes(); bytes /= 2) {
      const int pixels = bytes / element_bytes();
      const std::int32_t row = geometry().im2col_lines ? geometry().output[2] : geometry().image_positions();
      bool are_there = row % pixels == 0 && geometry().all_phases() == 1;
      for (int d = 0; d < kTensorDims - 1; ++d) {
        are_there = are_there && (strides[d] % pixels == 0 || (d > 1 && !geometry().im2col_lines));
      }
      if (are_there) break;
    }
    return bytes;
  }
  static constexpr int kMostCopied = 8;

  // Calls visitor.operator()<Unit>(bytes from the begin of a slice's row, offset of filter 0 in the output,
  // filters that it has, the lane's first row, rows to its next) with each of the lane's columns of units
  // that the output has; rows are filters.
  template <typename Visitor>
  __device__ __forceinline__ void visit_columns(int slice, const TilePlace& place, Visitor&& visitor) const {
    const int units = geometry().im2col_slice_bytes / copied_bytes();
    const int across = units < kWarpThreads ? units : kWarpThreads, lane = threadIdx.x % kWarpThreads;
    const std::int32_t filter = first_filter() + added_filter(slice);
#pragma unroll 1
    for (int unit = lane % across; unit < units; unit += across) {
      const int byte = unit * copied_bytes(), column = byte / element_bytes();
      const Column at = place.columns[first_position() + added_position(slice) + column];
      if (place.room(at) <= 0) continue;
      const std::int64_t first =
          at.offset + place.phase.offset + filter * consumer_.p.epilogue.output.strides[1];
      visitor(byte, first, place.filters() - filter, lane / across, kWarpThreads / across);
    }
  }
  // By all threads of a warp: between memory and a slot.
  __device__ __forceinline__ void copy_operand(int slice, const TilePlace& place) const {
    const void* const data = consumer_.launch.operands[consumer_.p.epilogue.staged_operand];
    visit_unit([&]<typename Unit>() {
      visit_columns(slice, place, [&](int byte, std::int64_t first, int rows, int row, int next) {
        Unit values[kSliceRows];
#pragma unroll
        for (int i = 0; i < kSliceRows; ++i) {
          if (i < kSliceRows / next && row + i * next < rows) {
            values[i] = *static_cast<const Unit*>(in_tensor(data, first, row + i * next));
          }
        }
#pragma unroll
        for (int i = 0; i < kSliceRows; ++i) {
          if (i < kSliceRows / next) {
            ptx::store_shared_as(in_slot(slice, row + i * next, byte), values[i]);
          }
        }
      });
    });
    __syncwarp();
  }
  __device__ __forceinline__ void copy_to_output(int slice, const TilePlace& place) const {
    visit_unit([&]<typename Unit>() {
      visit_columns(slice, place, [&](int byte, std::int64_t first, int rows, int row, int next) {
#pragma unroll
        for (int i = 0; i < kSliceRows; ++i) {
          if (i >= kSliceRows / next || row + i * next >= rows) continue;
          const void* const to = in_tensor(consumer_.launch.output, first, row + i * next);
          *static_cast<Unit*>(const_cast<void*>(to)) =
              ptx::load_shared_as<Unit>(in_slot(slice, row + i * next, byte));
        }
      });
    });
    __syncwarp();
  }
  __device__ __forceinline__ const void* in_tensor(const void* data, std::int64_t first, int row) const {
    const std::int64_t offset = first + row * consumer_.p.epilogue.output.strides[1];
    return static_cast<const std::uint8_t*>(data) + offset * element_bytes();
  }
  __device__ __forceinline__ std::uint32_t in_slot(int slice, int row, std::int32_t byte) const {
    return slot(slice) + slice_offset(geometry().im2col_slice_bytes, row, byte);
  }
  // With what has as many bytes as are copied at once.
  template <typename Visitor>
  __device__ __forceinline__ void visit_unit(Visitor&& visitor) const {
    if (copied_bytes() == 8) {
      visitor.template operator()<int2>();
    } else if (copied_bytes() == 4) {
      visitor.template operator()<std::uint32_t>();
    } else {
      visitor.template operator()<std::uint16_t>();
    }
  }

  const Consumer<Sums>& consumer_;
  const Im2colMaps& maps_;
  std::uint32_t slots_, barriers_, parities_ = 0;
  std::int32_t position_ = 0, filter_ = 0;  // of the first slice; in lines of the tile
  Position at_{};                           // of lines, in the grid
};

}  // namespace epiconv::sm80
