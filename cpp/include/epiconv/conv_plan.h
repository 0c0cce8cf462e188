// ConvPlan: a convolution with its epilogue on kernels of this library, for tensors of one form; or the
// reason why they do not take it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "epiconv/conv_problem.h"
#include "epiconv/conv_types.h"
#include "epiconv/epilogue_plan.h"
#include "epiconv/export.h"
#include "epiconv/predicted_time.h"

namespace epiconv {

struct ComputeCapability {
  int major = 0, minor = 0;
};

// Families of kernels.
enum class ConvFamily : std::uint8_t {
  kAny,           // whichever is fastest
  kSm80,          // any convolution, on any card from compute capability 8.0 on
  kSm90,          // some, on 9.0
  kSm90Compiled,  // any but for products of float32, on 9.0, compiled for the plan
  kSm90Im2col,    // nearly as many, of channels that lie side by side, or are copied so; compiled, too
};

// Whether a kernel is compiled for the plan at run time (epiconv/compiler.h), which takes seconds, and is
// kept for later processes. Where it cannot be, one of the library's runs. It concerns kernels of sm_80, and
// those that are compiled for the plan, which are there only if it is not kNever.
enum class Compile : std::uint8_t {
  kNever,
  kIfFaster,  // than a pass behind another convolution: where ConvPlan::why_slower is ""
  kAlways,
};

struct ConvPlanProblem {
  ConvProblem conv;
  ConvMath math = ConvMath::kTf32;
  DType input_dtype = DType::kFloat32;
  Extents input_strides;    // (N, C, spatial…), in elements
  int input_alignment = 1;  // bytes that divide every address of the input that the plan will be run with
  PaddingMode padding_mode = PaddingMode::kZeros;
  Program program;
  std::optional<OperandLayout> bias;  // added before the program
  std::vector<OperandLayout> operands;
  DType output_dtype = DType::kFloat32;
  Extents output_strides;
  ComputeCapability card;
  ConvFamily family = ConvFamily::kAny;
  Compile compile = Compile::kNever;
  // Whether an image's result has the same bits whatever the batch is, and whatever other images are in it.
  bool is_batch_invariant = false;
};

struct ConvPointers {
  const void* input = nullptr;
  const void* weights = nullptr;  // packed for this plan, aligned to 128 bytes
  void* output = nullptr;
  const void* bias = nullptr;
  void* workspace = nullptr;              // workspace_bytes() of them, aligned to 256
  std::span<const void* const> operands;  // nullptr for numbers
  std::span<const double> numbers;        // one per operand, read for numbers
  int device = 0;                         // the current CUDA device
  void* stream = nullptr;                 // a cudaStream_t of that device
};

// A weight as its owner has it.
struct WeightSource {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  Extents strides;  // (K, C, spatial…), transposed (C, K, spatial…), in elements
};

class EPICONV_API ConvPlan {
 public:
  // nullopt, with a sentence in `why_not`, where no kernel computes it. Throws InvalidArgument when shapes do
  // not fit. An output without elements has a plan that does nothing.
  static std::optional<ConvPlan> make(const ConvPlanProblem& problem, std::string& why_not);
  ~ConvPlan();
  ConvPlan(ConvPlan&&) noexcept;
  ConvPlan& operator=(ConvPlan&&) noexcept;

  // What runs: "fprop_sm90_tf32_tma_f32_static"; "dgrad" for a transposed convolution. With a GroupNorm
  // "…_holding", which keeps an image until its statistics are complete, "…_recomputing", which computes
  // everything twice and stores once, or "…_with_statistics" and the pass that normalises what that stored.
  const std::string& kernel() const;
  // Why it is this kernel and no other.
  const std::string& why_kernel() const;
  // Why a pass behind another convolution is faster, "" if it is not.
  const std::string& why_slower() const;
  // What it takes on an H200.
  const PredictedTime& predicted() const;
  std::size_t workspace_bytes() const;
  // Weights packed for one plan serve every plan with the same format.
  const std::string& weight_format() const;
  std::size_t packed_bytes() const;

  // Both are asynchronous, and safe to call from several threads. `packed` is aligned to 128 bytes.
  void pack(const WeightSource& weight, void* packed, int device, void* stream) const;
  void run(const ConvPointers& pointers) const;

 private:
  struct State;
  explicit ConvPlan(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

// A family of kernels, or torch's convolution with a pass behind it.
struct PredictedWay {
  std::string name;     // as EPICONV_KERNELS has it, or "cudnn+epilogue"
  std::string why_not;  // it takes the problem, "" if it does
  PredictedTime time;
};
// What all of them would take on an H200, whichever is asked for, and also if it would have to be compiled
// for that. Nothing is compiled.
EPICONV_API std::vector<PredictedWay> predict_ways(const ConvPlanProblem& problem);

// Why this build has no convolution kernels for a card, "" if it has.
EPICONV_API std::string why_no_conv_kernels(const ComputeCapability& card);

}  // namespace epiconv
