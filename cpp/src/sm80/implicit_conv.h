// Host side of the portable convolution: a problem ready to be launched any number of times.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "epiconv/conv_plan.h"
#include "pass.h"
#include "sm80/plan_geometry.h"

namespace epiconv::sm80 {

// Over (N, K, D, H, W) or (N, C, D, H, W), strides in elements; 0 in dimensions of one element.
struct TensorLayout {
  DType dtype = DType::kFloat32;
  std::int64_t strides[2 + kDims] = {};
};

// Whether a tensor that is laid over the output has one element for each filter, or one.
inline bool is_of_filters(const TensorLayout& layout) {
  const auto& strides = layout.strides;
  return strides[0] == 0 &&
         std::all_of(strides + 2, strides + 2 + kDims, [](auto stride) { return stride == 0; });
}

// Sums of a thread that the epilogue computes at once: fewer where more values are kept.
inline int chunk_sums(const LoweredProgram& program) { return program.num_slots > 1 ? 8 : 16; }

struct ImplicitConvProblem {
  Geometry geometry{};
  ConvMath math = ConvMath::kTf32;
  PaddingMode padding_mode = PaddingMode::kZeros;
  LoweredProgram program;
  TensorLayout input, output;
  bool in_pieces = false;    // channels lie in pieces of 16 bytes of what is multiplied
  bool turns_input = false;  // it is copied first (turn_input.h), and that copy is in pieces
  TensorLayout operands[kNumOperandPlaces];
  int staged_operand = -1;  // the place of that of GeometryProblem::stages_operand
  int compiled_for = 0;     // a card for which a kernel is compiled for this problem, 90 for 9.0; 0: none
  bool takes_statistics = false;  // of what is stored, for a GroupNorm; of takes_statistics' geometry
};

// Where statistics of what was stored lie: [image][row][filter], float32; `counts` of [image][row] values
// each.
struct StoredStatistics {
  const float* means;
  const float* squares;
  const float* counts;
  std::int64_t rows;  // of an image
};

class ImplicitConv {
 public:
  explicit ImplicitConv(const ImplicitConvProblem& problem);
  ~ImplicitConv();

  // "fprop_sm80_tf32_gather_64x128_f32_interpreted_chain": what is multiplied, how the input is loaded,
  // filters and positions of a tile, evaluator, which is "f32_compiled" of a kernel compiled for the problem;
  // "dgrad" of a transposed convolution.
  const std::string& kernel() const;
  // Why no kernel was compiled for it, "" if one was, or none was to be.
  const std::string& why_interpreted() const;
  std::size_t workspace_bytes() const;
  // `pointers.input` is the convolution's. The device is the current one.
  void launch(const PassPointers& pointers, const void* weights, int device, void* stream) const;
  // What a launch has left in its workspace.
  StoredStatistics statistics(const void* workspace) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

// Writes packed weights (geometry.h); strides of the weight are (K / groups, C / groups, D, H, W), and from a
// group to the next.
struct WeightLayout {
  DType dtype = DType::kFloat32;
  std::int64_t strides[2 + kDims] = {};
  std::int64_t group_stride = 0;
};
void pack_weights(const Geometry& geometry, ConvMath math, const void* weight, const WeightLayout& layout,
                  void* packed, int device, void* stream);

}  // namespace epiconv::sm80
