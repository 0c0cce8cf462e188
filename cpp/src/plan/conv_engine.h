// What a family of kernels offers the planner: a convolution with its epilogue, ready to be launched; or the
// reason why it does not take it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "conv_math.h"
#include "epiconv/conv_plan.h"
#include "pass.h"

namespace epiconv {

class ConvEngine {
 public:
  virtual ~ConvEngine() = default;

  // What it takes on an H200, with a kernel compiled for it if the problem allows that.
  virtual const PredictedTime& predicted() const = 0;
  // Makes it ready: "", or why it cannot be. Only its prediction may be asked for before. `compiles`: a
  // kernel is compiled for it, if its family has others, too.
  virtual std::string finish(const ConvPlanProblem& problem, bool compiles) = 0;
  virtual const std::string& kernel() const = 0;
  // Why no kernel was compiled for it, "" if one was, or none was to be.
  virtual std::string why_interpreted() const { return ""; }
  virtual std::size_t workspace_bytes() const = 0;
  virtual const std::string& weight_format() const = 0;
  virtual std::size_t packed_bytes() const = 0;
  // The device is the current one.
  virtual void pack(const WeightSource& weight, void* packed, int device, void* stream) const = 0;
  virtual void run(const PassPointers& pointers, const void* weights, int device, void* stream) const = 0;
};

// nullptr, with a sentence in `why_not`, where the family does not take the problem. The problem has been
// checked, and its output has elements. Nothing is compiled yet.
std::unique_ptr<ConvEngine> plan_sm80_engine(const ConvPlanProblem& problem, std::string& why_not);
// The portable convolution compiled for the plan, with products of warpgroups.
std::unique_ptr<ConvEngine> plan_sm90_compiled_engine(const ConvPlanProblem& problem, std::string& why_not);
// The same, of what the copy engine brings.
std::unique_ptr<ConvEngine> plan_sm90_im2col_engine(const ConvPlanProblem& problem, std::string& why_not);
std::unique_ptr<ConvEngine> plan_sm90_engine(const ConvPlanProblem& problem, std::string& why_not);

// The program behind a convolution that has stored what it computes, without bias, in float32.
inline EpilogueProblem pass_behind(const ConvPlanProblem& given, const Extents& stored_strides) {
  EpilogueProblem problem;
  problem.program = given.program;
  problem.on_cuda = true;
  problem.extents = given.conv.output();
  problem.input_dtype = DType::kFloat32;
  problem.input_strides = stored_strides;
  problem.output_dtype = given.output_dtype;
  problem.output_strides = given.output_strides;
  problem.bias = given.bias;
  problem.operands = given.operands;
  return problem;
}

// Bytes of a float32 tensor that is laid out like the output.
inline std::size_t stored_bytes(const ConvPlanProblem& problem) {
  const Extents& extents = problem.conv.output();
  std::int64_t last = 0;
  for (std::size_t d = 0; d < extents.size(); ++d) last += (extents[d] - 1) * problem.output_strides[d];
  return static_cast<std::size_t>(last + 1) * sizeof(float);
}

}  // namespace epiconv
