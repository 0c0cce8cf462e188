// Host side of a launch: the parameters of a pass, and errors that name the kernel and the problem.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "device/chunk.h"
#include "device/program_steps.h"
#include "elementwise/pass_kernels.h"
#include "epiconv/error.h"

namespace epiconv {

// How words of `word` elements lie in a tensor whose memory is aligned. `words_are_aligned`: each begins at a
// multiple of its size in the walk.
inline Pattern pattern_of(const Access& access, const Walk& walk, int word, bool words_are_aligned) {
  const std::int64_t inner = access.strides[walk.rank - 1];
  if (inner == 0) return Pattern::kOne;
  if (inner != 1 || !words_are_aligned || !is_floating(access.dtype)) return Pattern::kScattered;
  if (access.linear) return Pattern::kLinear;
  const std::int64_t bytes = std::min(16, word * dtype_size(access.dtype));
  bool aligned = walk.extents[walk.rank - 1] % word == 0;
  for (int d = 0; d < walk.rank - 1; ++d)
    aligned = aligned && access.strides[d] * dtype_size(access.dtype) % bytes == 0;
  return aligned ? Pattern::kWords : Pattern::kScattered;
}

// Everything that does not depend on the pointers of a run.
template <typename Parameters>
Parameters prepare_parameters(const Pass& pass, const PassKernels& kernels, bool words_are_aligned) {
  using Index = typename Parameters::Index;
  Parameters parameters{};
  const Walk& walk = pass.walk;
  const int unused = Parameters::kDims - walk.rank;
  const auto tensor_ref = [&](const Access& access) {
    typename Parameters::Tensor ref{
        nullptr, {}, access.dtype, pattern_of(access, walk, kernels.word, words_are_aligned)};
    // Where intermediates are float, float64 comes as one element for all, and is loaded for each.
    const bool is_double = std::is_same_v<typename Parameters::T, double>;
    if (access.dtype == DType::kFloat64 && !is_double) ref.pattern = Pattern::kScattered;
    for (int d = 0; d < walk.rank; ++d) ref.strides[unused + d] = static_cast<Index>(access.strides[d]);
    return ref;
  };
  parameters.count = walk.count;
  for (int d = 0; d < walk.rank; ++d) {
    parameters.extents[unused + d] = Divisor(static_cast<std::uint32_t>(walk.extents[d]));
  }
  parameters.input = tensor_ref(pass.input);
  parameters.output = tensor_ref(pass.output);
  for (int i = 0; i < kNumOperandPlaces; ++i) parameters.operands[i] = tensor_ref(pass.operands[i]);
  parameters.save_input = pass.program.save_input;
  set_steps(parameters, pass, PassPointers{}, kernels.takes_folded_steps);
  return parameters;
}

template <typename Parameters>
void set_pointers(Parameters& parameters, const Pass& pass, const PassPointers& pointers,
                  const PassKernels& kernels) {
  const auto set = [&](typename Parameters::Tensor& tensor, const void* data) {
    tensor.data = data;
    const bool in_words = tensor.pattern == Pattern::kLinear || tensor.pattern == Pattern::kWords;
    const std::uintptr_t bytes = std::min(16, kernels.word * dtype_size(tensor.dtype));
    if (in_words && reinterpret_cast<std::uintptr_t>(data) % bytes != 0) tensor.pattern = Pattern::kScattered;
  };
  set(parameters.input, pointers.input);
  set(parameters.output, pointers.output);
  for (int i = 0; i < kNumOperandPlaces; ++i) set(parameters.operands[i], pointers.operands[i]);
  if (!pass.program.late_numbers.empty()) set_steps(parameters, pass, pointers, kernels.takes_folded_steps);
}

// Calls visitor.operator()<Parameters>() for the type with which the kernels are launched.
template <typename Visitor>
void visit_parameters(const PassKernels& kernels, Visitor&& visitor) {
  switch (kernels.parameters) {
    case ParametersKind::kStatic:
      return visitor.template operator()<StaticParameters>();
    case ParametersKind::kInterpreted:
      return visitor.template operator()<InterpretedParameters>();
    case ParametersKind::kLarge:
      return visitor.template operator()<LargeParameters>();
    case ParametersKind::kDouble:
      return visitor.template operator()<DoubleParameters>();
  }
}

inline std::string walk_text(const Walk& walk) {
  std::string text;
  for (int d = 0; d < walk.rank; ++d) text += concat(d ? " x " : "", walk.extents[d]);
  return text + " elements";
}

// `name` and `evaluator` make up what errors call the kernel.
inline void launch_kernel(const char* name, const char* evaluator, const Pass& pass, const void* kernel,
                          std::int64_t blocks, int threads, void** arguments, void* stream) {
  const cudaError_t status = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads),
                                              arguments, 0, static_cast<cudaStream_t>(stream));
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat("the launch of ", name, evaluator, " over ", walk_text(pass.walk),
                         " failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace epiconv
