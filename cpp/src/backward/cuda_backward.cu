#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <sstream>

#include "backward/cuda_backward.h"
#include "backward/device_memory.h"
#include "backward/kernels.h"
#include "backward/sums.h"
#include "backward/tiles.h"
#include "compiler/compile_kernel.h"
#include "compiler/loaded_kernel.h"
#include "device/current_device.h"
#include "epiconv/error.h"

namespace epiconv {
namespace {

using namespace backward;

constexpr const char* kName = "epiconv_backward";
constexpr std::size_t kUsualSharedBytes = 48 << 10;  // what a block has without being asked
constexpr std::int64_t kMostBlocks = 1 << 30;

struct Nothing {};

__global__ void __launch_bounds__(kMostThreads) reduce_sums(const __grid_constant__ Reductions reductions) {
  __shared__ double shared[kMostThreads];
  const Reduction& reduction = reductions.each[blockIdx.y];
  BlockCrew<Nothing> crew;
  for (std::int64_t block = blockIdx.x; block < reduction_blocks(reduction); block += gridDim.x) {
    reduce_block<DeviceMemory>(reduction, block, shared, crew);
  }
}

std::int64_t blocks_for(std::int64_t threads) { return (threads + kMostThreads - 1) / kMostThreads; }

// A constant of a structure whose bytes are written out as words: the compiler sees the members.
void write_constant(std::ostream& out, const char* type, const char* name, const void* value,
                    std::size_t bytes) {
  const std::size_t count = bytes / sizeof(std::uint32_t);
  const auto* const words = static_cast<const std::uint32_t*>(value);
  out << "struct " << type << "Words {\n  std::uint32_t words[" << count << "];\n};\n__device__ constexpr "
      << type << " " << name << " = __builtin_bit_cast(" << type << ", " << type << "Words{{" << std::hex;
  for (std::size_t i = 0; i < count; ++i) out << (i % 8 == 0 ? "\n    " : " ") << "0x" << words[i] << "u,";
  out << std::dec << "\n}});\n\n";
}

std::string source_of(const PlannedSweep& planned, bool double_precision) {
  static_assert(sizeof(Sweep) % sizeof(std::uint32_t) == 0 && sizeof(Action) % sizeof(std::uint32_t) == 0);
  const auto count = static_cast<std::size_t>(planned.actions.count);
  std::ostringstream out;
  out << R"(#include "backward/device_memory.h"

namespace epiconv::backward {

struct Steps {
  Action each[)"
      << count << "];\n};\n";
  write_constant(out, "Steps", "kSteps", planned.actions.each, count * sizeof(Action));
  write_constant(out, "Sweep", "kSweep", &planned.sweep, sizeof(Sweep));
  out << R"(extern "C" __global__ void __launch_bounds__(kSweep.threads) )" << kName
      << R"((const __grid_constant__ SweepLaunch launch) {
  using T = )"
      << (double_precision ? "double" : "float") << R"(;
  run_tiles<T, InRegisters<T, kSweep.num_slots, kSweep.num_word_sums>>(kSweep, OneProgram<kSweep, kSteps, )"
      << count << R"(>{}, launch);
}

}  // namespace epiconv::backward
)";
  return out.str();
}

std::string elements_text(const Sweep& sweep) {
  std::string text;
  for (const std::int64_t extent : sweep.extents) {
    if (extent != 1) text += concat(text.empty() ? "" : " x ", extent);
  }
  return concat(text.empty() ? "1" : text, " elements");
}

}  // namespace

struct CudaBackward::State {
  PlannedBackward plan;
  std::unique_ptr<const LoadedKernel> norm_sweep, sweep;  // where they are compiled
  std::string kernel;
  std::string why_not_compiled;

  State(const BackwardPass& pass, int capability) : plan(pass, capability > 0) {
    if (capability > 0 && !compile(capability)) plan = PlannedBackward(pass, false);
    kernel = concat(plan.double_precision ? "f64" : "f32", sweep != nullptr ? "_compiled" : "_interpreted");
  }

  bool compile(int capability) {
    sweep = compiled(plan.sweep, capability);
    if (sweep == nullptr || plan.norm_sweep.actions.count == 0) return sweep != nullptr;
    norm_sweep = compiled(plan.norm_sweep, capability);
    if (norm_sweep == nullptr) sweep = nullptr;
    return norm_sweep != nullptr;
  }

  std::unique_ptr<const LoadedKernel> compiled(const PlannedSweep& planned, int capability) {
    const KernelSource source{source_of(planned, plan.double_precision), concat("sm_", capability)};
    std::optional<KernelCode> code = compile_kernel(source, why_not_compiled);
    if (!code) return nullptr;
    return std::make_unique<const LoadedKernel>(std::move(code->machine_code), kName);
  }
};

namespace {

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(const PlannedBackward& plan, const LoadedKernel* norm_sweep, const LoadedKernel* sweep,
               const std::string& name, void* stream)
      : plan_(plan),
        norm_sweep_(norm_sweep),
        sweep_(sweep),
        name_(name),
        kernels_(plan.double_precision ? double_kernels() : float_kernels()),
        stream_(static_cast<cudaStream_t>(stream)) {}

  void run_sweep(const PlannedSweep& planned, const SweepLaunch& given) override {
    Sweep sweep = planned.sweep;
    Actions actions = planned.actions;
    SweepLaunch launch = given;
    const LoadedKernel* const compiled = &planned == &plan_.sweep ? sweep_ : norm_sweep_;
    const auto blocks = static_cast<unsigned>(std::min(sweep.num_tiles, kMostBlocks));
    if (blocks == 0) return;
    if (compiled != nullptr) {
      void* arguments[] = {&launch};
      start(compiled->function(), blocks, 1, sweep.threads, arguments, planned.shared_bytes);
      return;
    }
    allow_shared_memory(planned.shared_bytes);
    void* arguments[] = {&sweep, &actions, &launch};
    start(kernels_.sweep, blocks, 1, sweep.threads, arguments, planned.shared_bytes);
  }

  void reduce(const Reductions& given) override {
    Reductions reductions = given;
    std::int64_t blocks = 0;
    for (int i = 0; i < reductions.count; ++i)
      blocks = std::max(blocks, reduction_blocks(reductions.each[i]));
    if (blocks == 0) return;
    void* arguments[] = {&reductions};
    start(reinterpret_cast<const void*>(&reduce_sums), static_cast<unsigned>(std::min(blocks, kMostBlocks)),
          static_cast<unsigned>(reductions.count), kMostThreads, arguments, 0);
  }

  void set_tables(const NormLaunch& norm) override {
    start_norm(kernels_.set_tables, blocks_for(norm.samples * norm.channels), norm);
  }

  void set_lines(const NormLaunch& norm) override {
    start_norm(kernels_.set_lines, norm.samples * norm.groups, norm);
    start_norm(kernels_.add_affine, blocks_for(norm.channels), norm);
  }

 private:
  void start_norm(const void* kernel, std::int64_t blocks, NormLaunch norm) {
    void* arguments[] = {&norm};
    if (blocks > 0) start(kernel, static_cast<unsigned>(blocks), 1, kMostThreads, arguments, 0);
  }

  // Of the kernel of any program; the others need no more than what a block has.
  void allow_shared_memory(std::size_t bytes) {
    if (bytes <= kUsualSharedBytes) return;
    check(cudaFuncSetAttribute(kernels_.sweep, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(kSharedBytes)));
  }

  void start(const void* kernel, unsigned blocks, unsigned kinds, int threads, void** arguments,
             std::size_t shared_bytes) {
    check(cudaLaunchKernel(kernel, dim3(blocks, kinds), dim3(static_cast<unsigned>(threads)), arguments,
                           shared_bytes, stream_));
  }

  void check(cudaError_t status) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error that does not stick is reported once
    throw CudaError(concat("the launch of backward_cuda_", name_, " over ", elements_text(plan_.sweep.sweep),
                           " failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
  }

  const PlannedBackward& plan_;
  const LoadedKernel* const norm_sweep_;
  const LoadedKernel* const sweep_;
  const std::string& name_;
  const Kernels& kernels_;
  const cudaStream_t stream_;
};

}  // namespace

CudaBackward::CudaBackward(const BackwardPass& pass, int capability)
    : state_(std::make_unique<const State>(pass, capability)) {}
CudaBackward::~CudaBackward() = default;

const std::string& CudaBackward::kernel() const { return state_->kernel; }
const std::string& CudaBackward::why_not_compiled() const { return state_->why_not_compiled; }
std::size_t CudaBackward::workspace_bytes() const { return state_->plan.workspace_bytes; }

void CudaBackward::launch(const BackwardAddresses& addresses, void* workspace, int device,
                          void* stream) const {
  make_current(device);
  CudaExecutor executor(state_->plan, state_->norm_sweep.get(), state_->sweep.get(), state_->kernel, stream);
  run_backward(state_->plan, addresses, workspace, executor);
}

}  // namespace epiconv
