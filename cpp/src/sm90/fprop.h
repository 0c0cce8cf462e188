// Host side of the sm_90a convolution: what the planner has decided, ready to be launched any number of
// times.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "epiconv/conv_plan.h"
#include "pass.h"
#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

// A tensor over (N, K, P, Q) or (N, C, H, W); strides in elements.
struct TensorLayout {
  DType dtype = DType::kFloat32;
  std::int64_t strides[4] = {};
};

struct FpropProblem {
  HaloGeometry geometry{};
  ConvMath math = ConvMath::kTf32;
  bool gathered = false;
  PaddingMode padding_mode = PaddingMode::kZeros;
  LoweredProgram program;
  TensorLayout input, output;  // strides of the output fit 32 bits, and so do the operands'
  TensorLayout operands[kNumOperandPlaces];
  bool is_used[kNumOperandPlaces] = {};  // the operand is a tensor
};

class Fprop {
 public:
  explicit Fprop(const FpropProblem& problem);
  ~Fprop();

  // "fprop_sm90_tf32_tma_f32_static"
  const std::string& kernel() const;
  // Whether the program is computed over whole tiles, most of the time while another tile is multiplied. An
  // interpreter that goes chunk by chunk takes far longer: nothing hides what its one warp per scheduler
  // waits for.
  bool hides_epilogue() const;
  // `pointers.input` is the convolution's. The device is the current one.
  void launch(const PassPointers& pointers, const void* weights, int device, void* stream) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

// Writes packed weights (halo_geometry.h); weight: (K, C, R, S).
void pack_weights(const HaloGeometry& geometry, ConvMath math, const void* weight, const TensorLayout& layout,
                  void* packed, int device, void* stream);

}  // namespace epiconv::sm90
