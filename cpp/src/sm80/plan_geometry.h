// Host side of geometry.h: from a problem to where everything lies.
#pragma once

#include <cstddef>
#include <string>

#include "ceilings.h"
#include "sm80/geometry.h"

namespace epiconv::sm80 {

struct GeometryProblem {
  std::int64_t batch;
  std::int64_t groups, channels, filters;  // the latter of a group
  std::int64_t input[kDims], output[kDims], taps[kDims];
  std::int64_t stride[kDims], dilation[kDims], padding[kDims];
  bool transposed;
  bool is_batch_invariant;  // sums are added in an order that does not depend on the batch
  int element_bytes;
  bool takes_statistics;   // of tiles: each of one image, and of one phase or a row's
  bool stores_columns;     // pixels of a row of the output lie side by side
  bool words_are_filters;  // filters of an output pixel do
  bool stores_images;      // pixels of an image of the output do, row by row
  bool turns_input;        // of is_im2col: it is to be copied first,
  bool reads_lines;        // or to be read as it is, where the plan can (im2col_lines.h);
  bool stores_lines;       // and slices of lines can be stored by the copy engine
  bool in_pieces;          // pieces of the input's channels do
  int output_bytes;        // of an element of the output
  bool stores_slices;   // of it the copy engine can store a tile's: all pixels follow each other, or images'
  bool stages_operand;  // an operand that is laid out like it is brought the way that it is stored
  bool has_warpgroups;  // that multiply, and not warps
  bool is_im2col;       // these, of what the copy engine brings (im2col_conv.h)
  int filter_operands;  // of the epilogue, that have one element for each filter
  // As of each image alone, for plans that do not depend on the batch: these operands, and whether one is
  // like the output there.
  int image_filter_operands;
  bool stages_image_operand;
  int chunk_sums;        // of a thread, that the epilogue computes at once
  double output_clocks;  // of is_im2col: of a multiprocessor, that an output's epilogue takes
};

// "" and the geometry, or why 32-bit index arithmetic does not reach.
std::string plan_geometry(const GeometryProblem& problem, Geometry& geometry);
// The same by what costs least for the problem's batch.
std::string plan_for_batch(const GeometryProblem& problem, Geometry& geometry);
// Of im2col_conv.h: what plan_geometry leaves to it. "" or why the copy engine does not reach.
std::string plan_im2col(const GeometryProblem& problem, Geometry& geometry);
// Of im2col_conv.h: each tile is one team's.
void share_no_tiles(Geometry& geometry);
// What a plan takes, by the model that its tiles were chosen by, without the copy of an input.
PlannedClocks planned_clocks(const GeometryProblem& problem, const Geometry& geometry);
inline std::size_t packed_bytes(const Geometry& g) {
  return static_cast<std::size_t>(g.packed_step(g.all_phases(), 0, 0, 0));
}

}  // namespace epiconv::sm80
