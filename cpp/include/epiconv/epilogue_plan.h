// A program over one tensor, ready to run: output = program(input + bias), element by element.
//
//   const EpiloguePlan plan({.program = Program::parse("v1 = relu(v0)"), .on_cuda = true,
//                            .extents = {8, 64, 32, 32}, .input = {DType::kFloat32, strides}, …});
//   plan.run({.input = y, .output = y, .stream = stream});
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "epiconv/dtype.h"
#include "epiconv/epilogue.h"
#include "epiconv/export.h"

namespace epiconv {

// A tensor that a program reads. Extents and strides, in elements, are aligned with the output's from the
// right, as in broadcasting; a channel operand (and the conv bias) has one dimension, (K,) or (1,).
struct OperandLayout {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> extents;
  std::vector<std::int64_t> strides;
  bool is_number = false;  // a 0-d tensor on the host; its value is given when the plan runs
};

struct EpilogueProblem {
  Program program;
  bool on_cuda = false;
  std::vector<std::int64_t> extents;  // (N, K, spatial…)
  DType input_dtype = DType::kFloat32;
  std::vector<std::int64_t> input_strides;
  DType output_dtype = DType::kFloat32;
  std::vector<std::int64_t> output_strides;
  std::optional<OperandLayout> bias;  // added before the program
  std::vector<OperandLayout> operands;
};

struct EpiloguePointers {
  const void* input = nullptr;
  void* output = nullptr;  // may be the input
  const void* bias = nullptr;
  void* workspace = nullptr;  // workspace_bytes() of them, aligned to 16
  // Where the statistics of a GroupNorm go, if anywhere: (N, groups) of the type that the program computes
  // in, float or double.
  void* mean = nullptr;
  void* rstd = nullptr;
  std::span<const void* const> operands;  // nullptr for numbers
  std::span<const double> numbers;        // one per operand, read for numbers
  int device = 0;                         // the current CUDA device
  void* stream = nullptr;                 // a cudaStream_t of that device
  int threads = 1;                        // at most, on the CPU
};

class EPICONV_API EpiloguePlan {
 public:
  // Throws InvalidArgument when shapes do not fit, NotSupported when CUDA kernels are missing.
  explicit EpiloguePlan(const EpilogueProblem& problem);
  ~EpiloguePlan();
  EpiloguePlan(EpiloguePlan&&) noexcept;
  EpiloguePlan& operator=(EpiloguePlan&&) noexcept;

  // What runs: "elementwise_cuda_f32_static".
  const std::string& kernel() const;
  std::size_t workspace_bytes() const;
  // Memory traffic of a run, every tensor counted once per pass over it.
  std::int64_t bytes_moved() const;

  // Safe to call from several threads. On CUDA it is asynchronous.
  void run(const EpiloguePointers& pointers) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace epiconv
