#include <algorithm>
#include <iterator>
#include <limits>
#include <variant>

#include "device/current_device.h"
#include "elementwise/epilogue_pass.h"
#include "elementwise/epilogue_pass_kernel.h"
#include "elementwise/group_norm.h"
#include "elementwise/launch.h"
#include "elementwise/pass_kernels.h"
#include "epiconv/device.h"

namespace epiconv {
namespace {

// As many as keep a large card busy to the end.
constexpr std::int64_t kBlocks = 4096;

// Whether element numbers and offsets fit 32 bits. Blocks reach past the last element.
bool fits_32_bit(const Pass& pass) {
  constexpr std::int64_t kLimit = std::numeric_limits<std::int32_t>::max() - (1 << 20);
  const auto fits = [&](const Access& access) {
    std::int64_t reach = 0;
    for (int d = 0; d < pass.walk.rank; ++d) reach += access.strides[d] * (pass.walk.extents[d] - 1);
    return reach <= kLimit;
  };
  return pass.walk.count <= kLimit && fits(pass.input) && fits(pass.output) &&
         std::all_of(std::begin(pass.operands), std::end(pass.operands), fits);
}

const PassKernels& kernels_of(const Pass& pass) {
  if (pass.double_precision) return kernels_double(pass.program);
  if (pass.walk.rank > kNarrowDims || !fits_32_bit(pass)) return kernels_large(pass.program);
  return dtype_size(pass.output.dtype) == 2 ? kernels_16_bit(pass.program) : kernels_32_bit(pass.program);
}

template <typename Parameters>
void launch_pass(const Pass& pass, const PassKernels& kernels, Parameters parameters,
                 const PassPointers& pointers, void* stream) {
  set_pointers(parameters, pass, pointers, kernels);
  // Longer threads wait for their first chunk less often, as long as there are blocks enough for every card.
  const std::int64_t short_block = std::int64_t{kBlockThreads} * kernels.word * kernels.words;
  int chunks_per_thread =
      static_cast<int>(std::clamp<std::int64_t>(pass.walk.count / short_block / kBlocks, 1, 8));
  const std::int64_t block = short_block * chunks_per_thread;
  const std::int64_t blocks = (pass.walk.count + block - 1) / block;
  void* arguments[] = {&parameters, &chunks_per_thread};
  launch_kernel("elementwise_cuda_", kernels.name, pass, kernels.pass, blocks, kBlockThreads, arguments,
                stream);
}

}  // namespace

struct CudaPass::State {
  Pass pass;
  const PassKernels& kernels;
  std::variant<StaticParameters, InterpretedParameters, LargeParameters, DoubleParameters> parameters;

  explicit State(const Pass& the_pass) : pass(the_pass), kernels(kernels_of(pass)) {
    if (pass.walk.count == 0) return;
    visit_parameters(kernels, [&]<typename Parameters>() {
      parameters.emplace<Parameters>(prepare_parameters<Parameters>(pass, kernels, true));
    });
  }
};

CudaPass::CudaPass(const Pass& pass) : state_(std::make_unique<const State>(pass)) {}
CudaPass::~CudaPass() = default;

std::string CudaPass::kernel() const { return state_->kernels.name; }

std::size_t CudaPass::workspace_bytes() const {
  return state_->pass.program.has_group_norm ? group_norm_workspace_bytes(state_->pass) : 0;
}

void CudaPass::launch(const PassPointers& given, int device, void* stream) const {
  make_current(device);
  const Pass& pass = state_->pass;
  PassPointers pointers = given;
  if (pass.program.has_group_norm) launch_group_norm_statistics(pass, state_->kernels, pointers, stream);
  std::visit([&](const auto& prepared) { launch_pass(pass, state_->kernels, prepared, pointers, stream); },
             state_->parameters);
}

std::string cuda_toolkit_version() { return concat(CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10); }

std::string cuda_driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
    cudaGetLastError();
    return "";
  }
  return concat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace epiconv
