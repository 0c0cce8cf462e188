// The backward pass of a program over one tensor: from the gradient of its output those of its input, its
// bias and its operands, each summed to its own shape, in one walk over the elements.
//
//   const BackwardPlan plan({.program = Program::parse("v1 = mul(v0, b0); v2 = gelu(v1)"), …});
//   plan.run({.saved = y, .output_gradient = dz, .input_gradient = dy, …});
//
// Derivatives are those of the table of operations, ties included; rounding (a cast, a store) has the
// derivative 1. Sums are added up in float64 whatever the program computes in, over pieces of the elements
// that follow from shapes alone: the bits are the same for any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "epiconv/dtype.h"
#include "epiconv/epilogue.h"
#include "epiconv/epilogue_plan.h"
#include "epiconv/export.h"

namespace epiconv {

// What the forward pass keeps for the backward pass besides operands. A later one suffices where an earlier
// one does, but for kOutput: that suffices where the result says as much as the value that the derivative of
// the last operation reads, as behind a relu.
enum class Saved : std::uint8_t { kNothing, kOutput, kInput };

// What a backward pass reads and gives, which does not depend on shapes.
struct BackwardNeeds {
  Saved saved = Saved::kNothing;  // the least that suffices
  bool reads_bias = false;        // from Saved::kInput; from the others nothing but operands is read
  std::vector<bool> reads_operand;
  // Which of the wanted gradients there are. No gradient passes a comparison, nor a condition.
  bool gives_input = false;
  bool gives_bias = false;
  std::vector<bool> gives_operand;
};

// Throws InvalidArgument unless there is one entry of wants_operand for each of the program's operands.
EPICONV_API BackwardNeeds backward_needs(const Program& program, bool wants_input, bool wants_bias,
                                         const std::vector<bool>& wants_operand, Saved saved);

// Where a gradient is written. Strides, in elements, are of every dimension of the operand's own extents, or
// of the input; those of a gradient that is summed are contiguous.
struct GradientLayout {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> strides;
};

struct BackwardProblem {
  Program program;
  bool on_cuda = false;
  // On CUDA: of the card for which kernels are compiled for the plan, 90 for 9.0; 0: nothing is compiled.
  int compiled_for = 0;
  std::vector<std::int64_t> extents;  // (N, K, spatial…)
  DType input_dtype = DType::kFloat32;
  DType output_dtype = DType::kFloat32;
  Saved saved = Saved::kInput;
  std::vector<std::int64_t> saved_strides;  // of the input, or of the output; none for Saved::kNothing
  DType gradient_dtype = DType::kFloat32;
  std::vector<std::int64_t> gradient_strides;  // of the output's gradient
  std::optional<OperandLayout> bias;
  std::vector<OperandLayout> operands;
  // Those that are wanted.
  std::optional<GradientLayout> input_gradient;
  std::optional<GradientLayout> bias_gradient;
  std::vector<std::optional<GradientLayout>> operand_gradients;  // one per operand
};

struct BackwardPointers {
  const void* saved = nullptr;
  const void* output_gradient = nullptr;
  const void* bias = nullptr;
  std::span<const void* const> operands;  // nullptr for numbers, and for those that are not read
  std::span<const double> numbers;
  // Of a GroupNorm, (N, groups) of the type that the program computes in, as the forward pass gave them.
  const void* mean = nullptr;
  const void* rstd = nullptr;
  void* input_gradient = nullptr;
  void* bias_gradient = nullptr;
  std::span<void* const> operand_gradients;  // nullptr for those that are not wanted
  void* workspace = nullptr;                 // workspace_bytes() of them, aligned to 16
  int device = 0;                            // the current CUDA device
  void* stream = nullptr;                    // a cudaStream_t of that device
  int threads = 1;                           // at most, on the CPU
};

class EPICONV_API BackwardPlan {
 public:
  // Throws InvalidArgument when shapes do not fit, what is saved does not suffice, or a gradient is wanted
  // that there is not; NotSupported when CUDA kernels are missing, or take no program of so many steps.
  explicit BackwardPlan(const BackwardProblem& problem);
  ~BackwardPlan();
  BackwardPlan(BackwardPlan&&) noexcept;
  BackwardPlan& operator=(BackwardPlan&&) noexcept;

  // What runs: "backward_cpu_f32", "backward_cuda_f32_compiled".
  const std::string& kernel() const;
  // Why nothing was compiled, where that was asked for; else "".
  const std::string& why_not_compiled() const;
  std::size_t workspace_bytes() const;

  // Safe to call from several threads. On CUDA it is asynchronous.
  void run(const BackwardPointers& pointers) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace epiconv
