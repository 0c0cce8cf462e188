// Host side: the maps with which the copy engine reads an input for im2col_conv.h. The driver makes them; its
// function is asked of the runtime, so that nothing links libcuda.
#pragma once

#include "sm80/im2col_geometry.h"
#include "sm80/implicit_conv.h"

namespace epiconv::sm80 {

// Of each phase, of an input whose channels lie side by side, in what is multiplied.
void make_im2col_maps(const Geometry& geometry, ConvMath math, const TensorLayout& input, const void* data,
                      Im2colMaps& maps);
// Of an input whose pixels lie side by side, in what is multiplied (im2col_lines.h).
Im2colMap make_input_line_map(const Geometry& geometry, ConvMath math, const TensorLayout& input,
                              const void* data);
Im2colMap make_weights_map(const Geometry& geometry, const void* packed);
// Of slices of a tensor that is laid out like the output.
Im2colMap make_slice_map(const Geometry& geometry, const TensorLayout& output, const void* data);

}  // namespace epiconv::sm80
