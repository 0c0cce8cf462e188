// One tile of a sweep: its elements, and its share of the sums.
//
// A tile is computed in phases, in each of which every thread does its part, and between which all wait.
// `Crew` runs a phase: on the card a block of threads, in tests of the host one after another.
#pragma once

#include "backward/steps.h"

namespace epiconv::backward {

struct TilePlace {
  std::int64_t outer[kNumOuter];
  std::int64_t row_tile, column_tile;
  std::int64_t row_begin, row_end;
  std::int64_t column_begin;
};

EPICONV_HOST_DEVICE TilePlace place_of(const Sweep& sweep, std::int64_t tile) {
  TilePlace place;
  place.column_tile = tile % sweep.column_tiles;
  tile /= sweep.column_tiles;
  place.row_tile = tile % sweep.row_tiles;
  tile /= sweep.row_tiles;
  EPICONV_UNROLL
  for (int d = kNumOuter - 1; d >= 0; --d) {
    place.outer[d] = tile % sweep.extents[d];
    tile /= sweep.extents[d];
  }
  place.row_begin = place.row_tile * sweep.tile_rows;
  const std::int64_t end = place.row_begin + sweep.tile_rows;
  place.row_end = end < sweep.extents[kRow] ? end : sweep.extents[kRow];
  place.column_begin = place.column_tile * sweep.column_words * sweep.lanes * kWord;
  return place;
}

// Where a partial sum lies; row and column are those of an element or of a tile, as the sum's kind says.
EPICONV_HOST_DEVICE std::int64_t partial_place(const Sum& sum, const TilePlace& place, std::int64_t row,
                                               std::int64_t column) {
  std::int64_t offset = sum.begin + row * sum.strides[kRow] + column * sum.strides[kColumn];
  EPICONV_UNROLL
  for (int d = 0; d < kNumOuter; ++d) offset += place.outer[d] * sum.strides[d];
  return offset;
}

// Shared memory of a tile: slots where they are not registers; words of sums, one of each thread, for each
// sum or for one after another; sums of rows, (table, row, lane).
template <typename T>
struct TileMemory {
  Word<T>* slots;
  Word<double>* sums;
  T* tables;

  static EPICONV_HOST_DEVICE TileMemory of(const Sweep& sweep, void* memory, bool in_registers) {
    TileMemory result;
    result.sums = static_cast<Word<double>*>(memory);
    const int sums = in_registers ? (sweep.num_word_sums > 0 ? 1 : 0) : sweep.num_word_sums;
    result.slots = reinterpret_cast<Word<T>*>(result.sums + sums * sweep.threads);
    result.tables = reinterpret_cast<T*>(result.slots + (in_registers ? 0 : sweep.num_slots * sweep.threads));
    return result;
  }
};

// Slots and sums of a thread in registers; for a program that is known.
template <typename T, int kSlots, int kSums>
struct InRegisters {
  static constexpr bool kSumsInMemory = false;
  Word<T> slots[kSlots > 0 ? kSlots : 1];
  Word<double> sums[kSums > 0 ? kSums : 1];

  EPICONV_HOST_DEVICE void begin(const Sweep&, const TileMemory<T>&, int) {
    EPICONV_UNROLL
    for (int i = 0; i < kSums; ++i) sums[i] = Word<double>{};
  }
  template <typename Index>
  EPICONV_HOST_DEVICE Word<T> read(Index slot) const {
    return slots[slot];
  }
  template <typename Index>
  EPICONV_HOST_DEVICE void write(Index slot, const Word<T>& word) {
    slots[slot] = word;
  }
  template <typename Index>
  EPICONV_HOST_DEVICE void add(Index sum, int j, double value) {
    sums[sum].values[j] += value;
  }
};

// In shared memory; for any program.
template <typename T>
struct InMemory {
  static constexpr bool kSumsInMemory = true;
  Word<T>* slots;
  Word<double>* sums;
  int threads;

  EPICONV_HOST_DEVICE void begin(const Sweep& sweep, const TileMemory<T>& memory, int thread) {
    threads = sweep.threads;
    slots = memory.slots + thread;
    sums = memory.sums + thread;
    for (int i = 0; i < sweep.num_word_sums; ++i) sums[i * threads] = Word<double>{};
  }
  EPICONV_HOST_DEVICE Word<T> read(int slot) const { return slots[slot * threads]; }
  EPICONV_HOST_DEVICE void write(int slot, const Word<T>& word) { slots[slot * threads] = word; }
  EPICONV_HOST_DEVICE void add(int sum, int j, double value) { sums[sum * threads].values[j] += value; }
};

// A word of elements, as the steps see it. `Memory` loads and stores elements of any dtype.
template <typename T, typename Memory, typename Own>
struct Elements {
  const Sweep& sweep;
  const SweepLaunch& launch;
  const TilePlace& place;
  T* tables;
  Own& own;
  std::int64_t row, column;
  int lane;
  int valid;  // of the word's elements

  EPICONV_HOST_DEVICE std::int64_t offset_of(const Tensor& tensor) const {
    std::int64_t offset = row * tensor.strides[kRow] + column * tensor.strides[kColumn];
    EPICONV_UNROLL
    for (int d = 0; d < kNumOuter; ++d) offset += place.outer[d] * tensor.strides[d];
    return offset;
  }

  // Of a tensor of words, whether its address allows them.
  template <typename Which>
  EPICONV_HOST_DEVICE bool in_words(const Which& which) const {
    return sweep.tensors[which.number].in_words && (launch.in_words >> which.number & 1) != 0;
  }

  template <typename Which>
  EPICONV_HOST_DEVICE Word<T> load(const Which& which) const {
    const Tensor& tensor = sweep.tensors[which.number];
    const void* const data = launch.data[which.number];
    const std::int64_t offset = offset_of(tensor);
    const std::int64_t stride = tensor.strides[kColumn];
    Word<T> word = {};
    if constexpr (Which::kMayBeOneForAll) {
      if (stride == 0) {
        const T value = Memory::template load<T>(data, which.dtype(tensor), offset);
        EPICONV_UNROLL
        for (int j = 0; j < kWord; ++j) word.values[j] = value;
        return word;
      }
    }
    if constexpr (Which::kMayBeInWords) {
      if (in_words(which)) {
        Memory::template load_word<T>(data, which.dtype(tensor), offset, word.values);
        return word;
      }
    }
    if constexpr (Which::kMayBeApart) {
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) {
        if (j < valid)
          word.values[j] = Memory::template load<T>(data, which.dtype(tensor), offset + j * stride);
      }
    }
    return word;
  }

  template <typename Which>
  EPICONV_HOST_DEVICE void store(const Which& which, const Word<T>& word) {
    const Tensor& tensor = sweep.tensors[which.number];
    void* const data = launch.data[which.number];
    const std::int64_t offset = offset_of(tensor);
    const std::int64_t stride = tensor.strides[kColumn];
    if constexpr (Which::kMayBeInWords) {
      if (in_words(which))
        return Memory::template store_word<T>(data, which.dtype(tensor), offset, word.values);
    }
    EPICONV_UNROLL
    for (int j = 0; j < kWord; ++j) {
      if (j < valid)
        Memory::template store<T>(data, which.dtype(tensor), offset + j * stride, word.values[j]);
    }
  }

  EPICONV_HOST_DEVICE double number(int operand) const { return launch.numbers[operand]; }

  template <typename Step>
  EPICONV_HOST_DEVICE void add(const Step& step, const Word<T>& word) {
    const Sum& sum = sweep.sums[step.action.target];
    if (sum.kind == SumKind::kRows) {
      T total = T(0);
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) total += j < valid ? word.values[j] : T(0);
      tables[table_place(sweep, sum, row - place.row_begin, lane)] += total;
      return;
    }
    EPICONV_UNROLL
    for (int j = 0; j < kWord; ++j) {
      if (j >= valid) continue;
      if (sum.kind == SumKind::kElements) {
        launch.partial_sums[partial_place(sum, place, row, column + j)] = static_cast<double>(word.values[j]);
      } else {
        own.add(step.sum_index(sum), j, static_cast<double>(word.values[j]));
      }
    }
  }

  static EPICONV_HOST_DEVICE std::int64_t table_place(const Sweep& sweep, const Sum& sum, std::int64_t row,
                                                      int lane) {
    return (static_cast<std::int64_t>(sum.index) * sweep.tile_rows + row) * sweep.lanes + lane;
  }
};

template <typename T, typename Memory, typename Program>
struct Tile {
  const Sweep& sweep;
  const Program& program;
  const SweepLaunch& launch;
  TilePlace place;
  TileMemory<T> memory;

  EPICONV_HOST_DEVICE Tile(const Sweep& the_sweep, const Program& the_program, const SweepLaunch& the_launch,
                           std::int64_t tile, const TileMemory<T>& the_memory)
      : sweep(the_sweep),
        program(the_program),
        launch(the_launch),
        place(place_of(the_sweep, tile)),
        memory(the_memory) {}

  template <typename Crew>
  EPICONV_HOST_DEVICE void run(Crew& crew) {
    crew.each([&](int thread, auto& own) { go_through(thread, own); });
    EPICONV_UNROLL
    for (int i = 0; i < kNumOperandPlaces; ++i) {
      if (i >= sweep.num_sums) continue;
      if (sweep.sums[i].kind == SumKind::kTile || sweep.sums[i].kind == SumKind::kColumns) add_up(i, crew);
    }
    if (sweep.num_tables > 0) add_up_rows(crew);
  }

 private:
  template <typename Own>
  EPICONV_HOST_DEVICE void go_through(int thread, Own& kept) {
    Own own;  // what is kept from phase to phase would be stored at each change
    own.begin(sweep, memory, thread);
    const int lane = thread % sweep.lanes;
    const int rows = sweep.threads / sweep.lanes;  // at a time
    for (std::int64_t row = place.row_begin + thread / sweep.lanes; row < place.row_end; row += rows) {
      Elements<T, Memory, Own> elements{sweep, launch, place, memory.tables, own, row, 0, lane, 0};
      for (int i = 0; i < sweep.num_tables; ++i) {
        memory
            .tables[(static_cast<std::int64_t>(i) * sweep.tile_rows + (row - place.row_begin)) * sweep.lanes +
                    lane] = T(0);
      }
      for (int word = 0; word < sweep.column_words; ++word) {
        elements.column = place.column_begin + (static_cast<std::int64_t>(word) * sweep.lanes + lane) * kWord;
        const std::int64_t left = sweep.extents[kColumn] - elements.column;
        if (left <= 0) break;
        elements.valid = left < kWord ? static_cast<int>(left) : kWord;
        program.template run<T>(elements, own);
      }
    }
    kept = own;
  }

  // Threads of one lane, then, of a tile's sum, lanes; in halves, so that the order is always the same.
  template <typename Crew>
  EPICONV_HOST_DEVICE void add_up(int i, Crew& crew) {
    const Sum& sum = sweep.sums[i];
    const int least = sum.kind == SumKind::kTile ? 1 : sweep.lanes;
    Word<double>* of_sum = memory.sums;
    if constexpr (Crew::Own::kSumsInMemory) {
      of_sum += sum.index * sweep.threads;
    } else {
      crew.each([&](int thread, auto& own) { of_sum[thread] = own.sums[sum.index]; });
    }
    for (int half = sweep.threads / 2; half >= least; half /= 2) {
      crew.each([&](int thread, auto&) {
        if (thread >= half) return;
        EPICONV_UNROLL
        for (int j = 0; j < kWord; ++j) of_sum[thread].values[j] += of_sum[thread + half].values[j];
      });
    }
    crew.each([&](int thread, auto&) {
      if (thread >= least) return;
      const Word<double> total = of_sum[thread];
      if (sum.kind == SumKind::kTile) {
        launch.partial_sums[partial_place(sum, place, place.row_tile, place.column_tile)] =
            (total.values[0] + total.values[1]) + (total.values[2] + total.values[3]);
        return;
      }
      const std::int64_t column = place.column_begin + thread * kWord;
      EPICONV_UNROLL
      for (int j = 0; j < kWord; ++j) {
        if (column + j >= sweep.extents[kColumn]) continue;
        launch.partial_sums[partial_place(sum, place, place.row_tile, column + j)] = total.values[j];
      }
    });
  }

  template <typename Crew>
  EPICONV_HOST_DEVICE void add_up_rows(Crew& crew) {
    const int rows = static_cast<int>(place.row_end - place.row_begin);
    const int lines = sweep.num_tables * sweep.tile_rows;
    const int at_a_time = sweep.threads / sweep.lanes;
    for (int half = sweep.lanes / 2; half >= 1; half /= 2) {
      crew.each([&](int thread, auto&) {
        const int lane = thread % sweep.lanes;
        if (lane >= half) return;
        for (int line = thread / sweep.lanes; line < lines; line += at_a_time) {
          if (line % sweep.tile_rows >= rows) continue;
          T* const values = memory.tables + static_cast<std::int64_t>(line) * sweep.lanes + lane;
          values[0] += values[half];
        }
      });
    }
    crew.each([&](int thread, auto&) {
      for (int i = 0; i < sweep.num_sums; ++i) {
        const Sum& sum = sweep.sums[i];
        if (sum.kind != SumKind::kRows) continue;
        const T* const table =
            memory.tables + static_cast<std::int64_t>(sum.index) * sweep.tile_rows * sweep.lanes;
        for (int row = thread; row < rows; row += sweep.threads) {
          launch.partial_sums[partial_place(sum, place, place.row_begin + row, place.column_tile)] =
              static_cast<double>(table[static_cast<std::int64_t>(row) * sweep.lanes]);
        }
      }
    });
  }
};

}  // namespace epiconv::backward
