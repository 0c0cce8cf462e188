// Host side of the sm_90a convolutions: what the planner has decided, ready to be launched any number of
// times.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "epiconv/conv_plan.h"
#include "pass.h"
#include "sm90/stored_pairs.h"
#include "sm90/tile_walk.h"

namespace epiconv::sm90 {

// A tensor over (N, K, P, Q) or (N, C, H, W); strides in elements.
struct TensorLayout {
  DType dtype = DType::kFloat32;
  std::int64_t strides[4] = {};
};

// Whether all strides but dimension `inner`'s, which is 1, are multiples of `word` elements.
inline bool in_words(const TensorLayout& layout, int inner, std::int64_t word) {
  for (int d = 0; d < 4; ++d) {
    if (d == inner ? layout.strides[d] != 1 : layout.strides[d] % word != 0) return false;
  }
  return true;
}

// Whether an output's filters lie side by side, a multiple of 16 bytes of them at multiples of 16 bytes.
inline bool stores_filters(const TensorLayout& output, std::int32_t filters) {
  const int word = 16 / dtype_size(output.dtype);
  return filters % word == 0 && in_words(output, 1, word);
}

// How an output at a multiple of 16 bytes is stored.
inline StoreKind store_kind(const HaloGeometry& g, const TensorLayout& output) {
  if (stores_filters(output, g.filters)) {
    return boxes_lie_in_rows(g, dtype_size(output.dtype)) ? StoreKind::kBoxes : StoreKind::kFilters;
  }
  // Words begin at multiples of them, and no strip ends within one.
  const auto in_pixels = [&](int word) {
    const int numbers = word >> g.interleave;  // of the raster
    const bool whole =
        numbers <= 1 || (g.strip_width % numbers == 0 && (g.step == static_cast<int>(g.pitch.divisor) ||
                                                          static_cast<int>(g.pitch.divisor) % numbers == 0));
    const bool are_phases = 1 << g.interleave == g.phases_w;
    return in_words(output, 3, word) && g.out_width % word == 0 && whole && are_phases;
  };
  const bool is_wide = dtype_size(output.dtype) == 4;
  if (is_wide && g.interleave > 0 && in_pixels(4)) return StoreKind::kQuadsOfPixels;
  if (!in_pixels(2)) return StoreKind::kPixels;
  const bool is_dense = output.strides[2] == g.out_width;
  return is_dense && is_wide && stores_in_sectors(g) ? StoreKind::kSectors : StoreKind::kPairsOfPixels;
}

// Where a norm's statistics lie in the workspace, in bytes: tables of what the normalising steps read, and
// partial results.
struct NormLayout {
  std::int64_t image_tiles, image_rows;
  std::size_t means, scales, shifts, counts, arrived, partials, bytes;

  static NormLayout of(const HaloGeometry& g);
};

struct HaloConvProblem {
  HaloGeometry geometry{};
  bool transposed = false;
  ConvMath math = ConvMath::kTf32;
  InputLoad load = InputLoad::kGather;
  PaddingMode padding_mode = PaddingMode::kZeros;
  LoweredProgram program;
  TensorLayout input, output;  // strides of the output fit 32 bits, and so do the operands'
  TensorLayout operands[kNumOperandPlaces];
  bool is_used[kNumOperandPlaces] = {};  // the operand is a tensor
  NormPlan norm_plan = NormPlan::kNone;
  GroupNormShape norm;  // of that plan
};

class HaloConv {
 public:
  explicit HaloConv(const HaloConvProblem& problem);
  ~HaloConv();

  // "fprop_sm90_tf32_tma_f32_static"; "dgrad" of a transposed convolution; "rows" or "gather" in the place of
  // "tma"
  const std::string& kernel() const;
  // Of a multiprocessor for an output, as measured on an H200 (docs/sm90-convolution.md), beyond those of a
  // static program: few where the program is computed over whole tiles. An interpreter that goes chunk by
  // chunk takes far longer: nothing hides what its one warp per scheduler waits for.
  double interpreter_clocks(int special_functions) const;
  // Of the norm's statistics.
  std::size_t workspace_bytes() const;
  // `pointers.input` is the convolution's. The device is the current one. With NormPlan::kOfStored the
  // workspace then holds what `norm_tables` finds there.
  void launch(const PassPointers& pointers, const void* weights, int device, void* stream) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

// Sets the addresses of the operands kMeanOperand, kScaleOperand and kShiftOperand in a workspace.
void set_norm_tables(const HaloGeometry& g, void* workspace, PassPointers& pointers);

// Writes packed weights (halo_geometry.h); weight: (K, C, R, S), whatever the order of its strides.
void pack_weights(const HaloGeometry& geometry, ConvMath math, const void* weight, const TensorLayout& layout,
                  void* packed, int device, void* stream);

}  // namespace epiconv::sm90
