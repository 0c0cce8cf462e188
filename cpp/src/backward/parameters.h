// What the kernels of a backward pass take.
//
// A sweep goes through the elements in tiles: a range of columns, the innermost dimension of the walk, of a
// range of rows, one other dimension of it. Each tile adds up its share of every gradient that is summed and
// writes it to a place of its own; a second kernel adds those in their order (sums.h).
#pragma once

#include <cstdint>

#include "backward_step.h"
#include "epiconv/dtype.h"

namespace epiconv::backward {

inline constexpr int kWord = 4;  // elements that a thread computes together
inline constexpr int kMostThreads = 256;

// Dimensions of a sweep: the outer ones, of which a tile has one element, row and column.
inline constexpr int kNumOuter = 4;
inline constexpr int kRow = kNumOuter;
inline constexpr int kColumn = kNumOuter + 1;
inline constexpr int kNumDims = kNumOuter + 2;

// Tensors: operands in their places, and these.
inline constexpr int kSavedTensor = kNumBackwardPlaces;
inline constexpr int kGradientTensor = kNumBackwardPlaces + 1;
inline constexpr int kInputGradientTensor = kNumBackwardPlaces + 2;
inline constexpr int kOperandGradients = kNumBackwardPlaces + 3;  // those of kNumOperandPlaces
inline constexpr int kNumTensors = kOperandGradients + kNumOperandPlaces;

struct Tensor {
  std::int64_t strides[kNumDims];
  DType dtype;
  bool in_words;  // kWord columns side by side, if the address allows it
};

// BackwardStep, packed: a kernel's parameters are limited.
struct Action {
  double number[3];
  double p, q;
  std::int16_t target;  // of kGiveOperand: of Sweep::sums, or -1
  std::int16_t gradient;
  std::int16_t index[3];
  std::int8_t late[3];
  Source source[3];
  BackwardStep::Kind kind;
  Opcode op;
  std::uint8_t argument;
  std::uint8_t num_values;
  bool adds;
};
// Reads, values, and two derivatives of nearly every value are far fewer. Apart from the sweep: constants of
// a kernel that is compiled for its plan are few.
inline constexpr int kMaxActions = 256;
struct Actions {
  std::int32_t count;
  Action each[kMaxActions];
};

// What one operand's gradient is a sum over, in a tile.
enum class SumKind : std::uint8_t {
  kTile,      // rows and columns: one partial sum of a tile
  kColumns,   // rows: one for each column
  kRows,      // columns: one for each row
  kElements,  // neither: one for each element
};

struct Sum {
  std::int64_t begin;              // among the partial sums
  std::int64_t strides[kNumDims];  // of partial sums; of a row or its tile, of a column or its tile
  SumKind kind;
  std::uint8_t index;  // among those of rows; among those of tiles and columns
};

struct Sweep {
  std::int64_t extents[kNumDims];
  std::int64_t num_tiles;
  std::int32_t row_tiles, column_tiles;
  std::int32_t tile_rows;
  std::int32_t column_words;  // of a thread and row, `lanes` words apart
  std::int32_t lanes;         // threads of a row; a power of 2
  std::int32_t threads;
  std::int32_t num_slots;
  std::int32_t num_sums;
  std::int32_t num_word_sums;  // of tiles and columns
  std::int32_t num_tables;     // sums of rows
  Tensor tensors[kNumTensors];
  Sum sums[kNumOperandPlaces];
};

// Addresses and numbers of a run.
struct SweepLaunch {
  void* data[kNumTensors];
  double* partial_sums;
  double numbers[kMaxOperands];
  std::uint64_t in_words;  // bit t: the address of tensor t allows it
};
static_assert(kNumTensors <= 64);

// The sums of one operand's gradient from partial ones: over the dimensions that are summed, for each
// element.
struct Reduction {
  const double* partial_sums;
  const double* more;  // of each element, added; or nullptr
  void* output;
  std::int64_t kept_count, summed_count;
  std::int64_t kept_extents[kNumDims], kept_strides[kNumDims], output_strides[kNumDims];
  std::int64_t summed_extents[kNumDims], summed_strides[kNumDims];
  std::int32_t kept_rank, summed_rank;
  DType dtype;
  bool by_block;  // a block for each element, of which there are few; else a thread
};

struct Reductions {
  std::int32_t count;
  Reduction each[kNumOperandPlaces];
};

// Of a GroupNorm: what steps read, tables of one value for each sample and channel, T each.
struct NormLaunch {
  std::int64_t samples, channels, groups, pixels;
  const void* mean;  // (samples, groups), T, as rstd
  const void* rstd;
  const void* weight;  // of the affine, or nullptr
  const void* shift;
  std::int64_t weight_stride, shift_stride;
  DType weight_dtype, shift_dtype;
  void* tables;  // minus mean, scale, shift, offset, slope
  // Sums of the gradients of scale and shift for each sample and channel; nullptr: no gradient reaches them.
  const double* scale_sums;
  const double* shift_sums;
  double* weight_gradient;  // (channels); or nullptr
  double* shift_gradient;
};

}  // namespace epiconv::backward
