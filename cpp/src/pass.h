// One pass of a program over a tensor, as the CPU and the CUDA engine take it: steps, and how the elements
// are walked and addressed.
//
// Elements are walked in the order of the output's memory. Its dimensions, sorted by stride and merged where
// every tensor allows it, are the walk; a tensor is linear when its memory runs exactly along it.
#pragma once

#include <cstdint>

#include "epiconv/dtype.h"
#include "lowering.h"

namespace epiconv {

struct Walk {
  int rank = 0;
  std::int64_t extents[kMaxDims] = {};  // outermost first
  std::int64_t count = 0;
};

// How a tensor is read or written along a walk; strides are in elements.
struct Access {
  DType dtype = DType::kFloat32;
  bool linear = false;
  std::int64_t strides[kMaxDims] = {};
};

// What a GroupNorm needs besides the steps.
struct GroupNormShape {
  std::int64_t samples = 0;   // N
  std::int64_t channels = 0;  // K
  std::int64_t pixels = 0;    // per sample and channel
  std::int64_t groups = 0;    // per sample
  double epsilon = 0.0;
  // Order of the walk: channels innermost (channels_last) or pixels innermost.
  bool channels_last = false;
  int weight_operand = -1;  // of the affine, or -1
  int shift_operand = -1;
  DType weight_dtype = DType::kFloat32;
  DType shift_dtype = DType::kFloat32;
  std::int64_t weight_stride = 0;
  std::int64_t shift_stride = 0;
};

struct Pass {
  LoweredProgram program;
  bool double_precision = false;
  Walk walk;
  Access input, output;
  Access operands[kNumOperandPlaces];
  GroupNormShape norm;  // where program.has_group_norm
};

// Addresses and numbers of one run.
struct PassPointers {
  const void* input = nullptr;
  void* output = nullptr;
  void* workspace = nullptr;
  void* mean = nullptr;  // with rstd: where a GroupNorm's statistics go, (N, groups); or nullptr
  void* rstd = nullptr;
  const void* operands[kNumOperandPlaces] = {};
  double numbers[kMaxOperands] = {};
};

// The program's steps with late numbers filled in, in the type of the intermediates.
template <typename T>
void fill_steps(const Pass& pass, const PassPointers& pointers, Step<T>* steps) {
  for (std::size_t i = 0; i < pass.program.steps.size(); ++i) {
    const Step<double>& from = pass.program.steps[i];
    Step<T>& to = steps[i];
    to.op = from.op;
    to.save = from.save;
    to.num_values = from.num_values;
    to.times_itself = from.times_itself;
    for (int k = 0; k < 3; ++k) {
      to.source[k] = from.source[k];
      to.index[k] = from.index[k];
      to.number[k] = static_cast<T>(from.number[k]);
    }
    to.p = static_cast<T>(from.p);
    to.q = static_cast<T>(from.q);
  }
  for (const LateNumber& late : pass.program.late_numbers) {
    const T number = static_cast<T>(pointers.numbers[late.operand]);
    steps[late.step].number[late.argument] = late.reciprocal ? T(1) / number : number;
  }
}

}  // namespace epiconv
