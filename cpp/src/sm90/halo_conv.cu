#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>

#include "conv_math.h"
#include "device/current_device.h"
#include "device/program_steps.h"
#include "device/ptx/published_words.h"
#include "sm90/conv_kernels.h"
#include "sm90/conv_parameters.h"
#include "sm90/halo_conv.h"
#include "sm90/in_place.h"
#include "sm90/pipeline.h"
#include "sm90/tensor_map.h"

namespace epiconv::sm90 {

// Of all images, when a convolution has written its partial results.
cudaError_t merge_statistics(const NormParameters& norm, std::int32_t images, std::int32_t filters,
                             cudaStream_t stream);

namespace {

// How a program's operand lies: one element for each filter, like the output, or in any other way.
// An element for each filter of each image is one where no tile has several images.
Pattern pattern_of(const TensorLayout& layout, const HaloConvProblem& problem) {
  const auto& strides = layout.strides;
  const auto& output = problem.output;
  const bool is_one = strides[0] == 0 || !problem.geometry.stacked;
  if (is_one && strides[2] == 0 && strides[3] == 0) return Pattern::kOne;
  const bool like_output =
      strides[0] == output.strides[0] && strides[2] == output.strides[2] && strides[3] == output.strides[3];
  return like_output ? Pattern::kLinear : Pattern::kScattered;
}

bool only_of_filters(const HaloConvProblem& problem) {
  for (int i = 0; i < kNumOperandPlaces; ++i) {
    if (problem.is_used[i] && pattern_of(problem.operands[i], problem) != Pattern::kOne) return false;
  }
  return true;
}

// Those of a GroupNorm aside.
bool only_of_all_images(const HaloConvProblem& problem) {
  for (int i = 0; i < kMeanOperand; ++i) {
    if (problem.is_used[i] && problem.operands[i].strides[0] != 0) return false;
  }
  return true;
}

ConvKernel kernel_of(const HaloConvProblem& problem) {
  const int interleave = problem.geometry.interleave;
  ConvKernel kernel{};
  // A static program that ends where a norm begins takes no statistics.
  const bool is_whole = problem.norm_plan != NormPlan::kOfStored;
  if (only_of_filters(problem) && only_of_all_images(problem) && is_whole)
    kernel = static_kernel(problem.program, problem.math, interleave, problem.geometry.joint_rows);
  if (kernel.function == nullptr && problem.program.is_chain()) kernel = chain_kernel(interleave);
  return kernel.function != nullptr ? kernel : dag_kernel(interleave);
}

const char* name_of(InputLoad load) {
  return load == InputLoad::kBoxes ? "tma" : load == InputLoad::kRows ? "rows" : "gather";
}

HaloConvProblem with_gates_of(const HaloConvProblem& problem) {
  HaloConvProblem result = problem;
  result.program = with_gates(problem.program);
  return result;
}

PixelTensor pixel_tensor(const TensorLayout& layout, const HaloConvProblem& problem) {
  PixelTensor tensor{nullptr, {}, layout.dtype, pattern_of(layout, problem)};
  for (int d = 0; d < 4; ++d) tensor.strides[d] = static_cast<std::int32_t>(layout.strides[d]);
  return tensor;
}

bool is_aligned(const void* pointer, int bytes = 16) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

GatheredInput gathered_input(const HaloConvProblem& problem) {
  const auto& strides = problem.input.strides;
  const bool in_vectors = in_words(problem.input, 1, 16 / dtype_size(problem.input.dtype));
  const bool in_pairs = in_words(problem.input, 3, 2) && problem.geometry.width % 2 == 0 &&
                        problem.padding_mode == PaddingMode::kZeros;
  return {nullptr,
          strides[0],
          strides[1],
          strides[2],
          static_cast<std::int32_t>(strides[3]),
          problem.padding_mode,
          in_vectors,
          in_pairs};
}

// Bytes that divide the address of an output that is stored so.
int store_alignment(StoreKind store, DType dtype) {
  const int size = dtype_size(dtype);
  if (store == StoreKind::kPixels) return size;
  return store == StoreKind::kSectors || store == StoreKind::kPairsOfPixels ? 2 * size : 16;
}

void check(cudaError_t status, const char* what, const std::string& kernel, const HaloGeometry& g) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat(what, " of ", kernel, " over ", g.batch, " x ", g.channels, " x ", g.height, " x ",
                         g.width, " with ", g.filters, " filters of ", g.taps_r, " x ", g.taps_s,
                         " failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

constexpr int kMaxDevices = 64;

int multiprocessors(int device) {
  static std::array<std::atomic<int>, kMaxDevices> known{};
  std::atomic<int>* const place = device < kMaxDevices ? &known[device] : nullptr;
  int count = place != nullptr ? place->load(std::memory_order_relaxed) : 0;
  if (count > 0) return count;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) count = 1;
  if (place != nullptr) place->store(count, std::memory_order_relaxed);
  return count;
}

}  // namespace

struct HaloConv::State {
  HaloConvProblem problem;
  ConvKernel kernel;
  std::string name;
  Pass pass;  // for its program
  ConvParameters parameters{};
  mutable std::atomic<std::uint64_t> prepared_devices{0};

  explicit State(const HaloConvProblem& the_problem)
      : problem(with_gates_of(the_problem)),
        kernel(kernel_of(problem)),
        name(concat(problem.transposed ? "dgrad_sm90_" : "fprop_sm90_", name_of(problem.math), "_",
                    name_of(problem.load), "_", kernel.evaluator)) {
    const HaloGeometry& g = problem.geometry;
    pass.program = problem.program;
    parameters.math = problem.math;
    parameters.load = problem.load;
    parameters.geometry = g;
    parameters.input = gathered_input(problem);
    EpilogueParameters& epilogue = parameters.epilogue;
    epilogue.output = pixel_tensor(problem.output, problem);
    for (int i = 0; i < kNumOperandPlaces; ++i) {
      epilogue.operands[i] = pixel_tensor(problem.operands[i], problem);
    }
    list_of_filters(epilogue);
    set_norm();
    epilogue.save_input = problem.program.save_input;
    epilogue.store = store_kind(g, problem.output);
    set_steps(epilogue, pass, PassPointers{}, kernel.takes_folded_steps);
    epilogue.runs_in_place = only_of_filters(problem) && runs_in_place(epilogue);
  }

  // Those of the norm, whose places are the last ones, come last.
  void list_of_filters(EpilogueParameters& epilogue) const {
    for (const bool of_all_images : {true, false}) {
      for (int i = 0; i < kNumOperandPlaces; ++i) {
        const PixelTensor& operand = epilogue.operands[i];
        const bool is_listed = problem.is_used[i] && operand.pattern == Pattern::kOne;
        if (!is_listed || (operand.strides[0] == 0) != of_all_images) continue;
        epilogue.of_filters[epilogue.num_of_filters++] = static_cast<std::uint8_t>(i);
      }
      if (of_all_images) epilogue.num_of_all_images = epilogue.num_of_filters;
    }
  }

  void set_norm() {
    const GroupNormShape& from = problem.norm;
    NormParameters& norm = parameters.norm;
    norm.plan = problem.norm_plan;
    if (norm.plan == NormPlan::kNone) return;
    const NormLayout layout = NormLayout::of(problem.geometry);
    norm.groups = static_cast<std::int32_t>(from.groups);
    const std::int32_t filters = problem.geometry.filters / norm.groups;
    norm.group_filters = Divisor(static_cast<std::uint32_t>(filters));
    norm.segment_filters = std::gcd(filters, problem.geometry.share_filters());
    norm.segments = problem.geometry.filters / norm.segment_filters;
    norm.share_segments = problem.geometry.share_filters() / norm.segment_filters;
    norm.group_segments = filters / norm.segment_filters;
    norm.image_rows = static_cast<std::int32_t>(layout.image_rows);
    norm.last_arrives = static_cast<std::uint32_t>(layout.image_tiles * problem.geometry.sharers - 2);
    norm.epsilon = from.epsilon;
    norm.inverse_count = 1.0 / (1.0 * filters * problem.geometry.out_height * problem.geometry.out_width);
    norm.weight_dtype = from.weight_dtype;
    norm.shift_dtype = from.shift_dtype;
    norm.weight_stride = from.weight_stride;
    norm.shift_stride = from.shift_stride;
  }

  void set_norm_pointers(ConvParameters& p, const PassPointers& pointers) const {
    NormParameters& norm = p.norm;
    if (norm.plan == NormPlan::kNone) return;
    const NormLayout layout = NormLayout::of(problem.geometry);
    auto* const memory = static_cast<std::uint8_t*>(pointers.workspace);
    norm.negated_means = reinterpret_cast<float*>(memory + layout.means);
    norm.scales = reinterpret_cast<float*>(memory + layout.scales);
    norm.shifts = reinterpret_cast<float*>(memory + layout.shifts);
    norm.arrived = reinterpret_cast<std::uint32_t*>(memory + layout.arrived);
    norm.partials = reinterpret_cast<float2*>(memory + layout.partials);
    norm.counts = reinterpret_cast<float*>(memory + layout.counts);
    const auto operand = [&](int place) { return place < 0 ? nullptr : pointers.operands[place]; };
    norm.weight = operand(problem.norm.weight_operand);
    norm.shift = operand(problem.norm.shift_operand);
  }

  std::size_t norm_bytes() const { return NormLayout::of(problem.geometry).bytes; }

  // The limit of shared memory is a device's.
  void prepare(int device) const {
    const std::uint64_t bit = std::uint64_t{1} << (device % 64);
    if (prepared_devices.load(std::memory_order_relaxed) & bit) return;
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedLimit),
          "the setup", name, problem.geometry);
    prepared_devices.fetch_or(bit, std::memory_order_relaxed);
  }
};

HaloConv::HaloConv(const HaloConvProblem& problem) : state_(std::make_unique<const State>(problem)) {}
HaloConv::~HaloConv() = default;

const std::string& HaloConv::kernel() const { return state_->name; }
double HaloConv::interpreter_clocks(int special_functions) const {
  if (state_->kernel.is_static) return 0;
  constexpr double kStepInPlace = 0.05, kLongActivation = 0.4, kStepOfChain = 0.45, kStepOfDag = 1.05;
  constexpr double kFunction = 0.13;
  const EpilogueParameters& epilogue = state_->parameters.epilogue;
  const LoweredProgram& program = state_->problem.program;
  const auto steps = static_cast<double>(program.steps.size());
  if (epilogue.runs_in_place) return steps * kStepInPlace + long_activations(epilogue) * kLongActivation;
  return steps * (program.is_chain() ? kStepOfChain : kStepOfDag) + special_functions * kFunction;
}

void HaloConv::launch(const PassPointers& pointers, const void* weights, int device, void* stream) const {
  make_current(device);
  state_->prepare(device);
  const HaloConvProblem& problem = state_->problem;
  const HaloGeometry& g = problem.geometry;
  ConvParameters p = state_->parameters;
  if (problem.load != InputLoad::kGather) p.input_map = input_map(problem, pointers.input);
  p.input.data = pointers.input;
  p.input.in_vectors = p.input.in_vectors && is_aligned(pointers.input);
  p.input.in_pairs = p.input.in_pairs && is_aligned(pointers.input, 2 * dtype_size(problem.input.dtype));
  p.weights = weights;
  EpilogueParameters& epilogue = p.epilogue;
  epilogue.output.data = pointers.output;
  if (!is_aligned(pointers.output, store_alignment(epilogue.store, epilogue.output.dtype))) {
    epilogue.store = StoreKind::kPixels;
  }
  if (epilogue.store == StoreKind::kBoxes) p.output_map = output_map(problem, pointers.output);
  PassPointers addresses = pointers;
  state_->set_norm_pointers(p, addresses);
  // Of a norm: blocks wait for each other.
  const bool is_cooperative = in_one_kernel(p.norm.plan);
  for (int i = 0; i < kNumOperandPlaces; ++i) epilogue.operands[i].data = addresses.operands[i];
  if (!problem.program.late_numbers.empty()) {
    set_steps(epilogue, state_->pass, pointers, state_->kernel.takes_folded_steps);
  }
  void* arguments[] = {&p};
  const int blocks = std::min(g.tiles, multiprocessors(device));
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  if (is_cooperative) {
    if (!Visits::can_hold(g, blocks)) p.norm.plan = NormPlan::kRecompute;
    p.visits = p.norm.plan == NormPlan::kHold ? Visits::holding(g, blocks) : Visits::twice(g, blocks);
    check(cudaMemsetAsync(pointers.workspace, ptx::kUnpublishedByte, state_->norm_bytes(), cuda_stream),
          "the setup", state_->name, g);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(g.shared_bytes);
  config.stream = cuda_stream;
  // Blocks that wait for each other must all be running.
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = is_cooperative ? 1 : 0;
  check(cudaLaunchKernelExC(&config, state_->kernel.function, arguments), "the launch", state_->name, g);
  if (p.norm.plan == NormPlan::kOfStored) {
    check(merge_statistics(p.norm, g.batch, g.filters, cuda_stream), "the statistics", state_->name, g);
  }
}

NormLayout NormLayout::of(const HaloGeometry& g) {
  NormLayout layout{};
  layout.image_tiles = g.tiles / g.batch;
  layout.image_rows = layout.image_tiles / g.filter_tiles.divisor * g.phases_h;
  const auto take = [&](std::int64_t bytes) {
    constexpr std::int64_t kAlignment = 128;
    const std::size_t begin = layout.bytes;
    layout.bytes += static_cast<std::size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
    return begin;
  };
  const std::int64_t table = std::int64_t{4} * g.batch * g.filters, rows = g.batch * layout.image_rows;
  layout.means = take(table);
  layout.scales = take(table);
  layout.shifts = take(table);
  layout.counts = take(4 * rows);
  layout.arrived = take(4 * g.batch);
  layout.partials = take(8 * rows * g.filters);
  return layout;
}

std::size_t HaloConv::workspace_bytes() const {
  return state_->problem.norm_plan == NormPlan::kNone ? 0 : state_->norm_bytes();
}

void set_norm_tables(const HaloGeometry& g, void* workspace, PassPointers& pointers) {
  const NormLayout layout = NormLayout::of(g);
  const auto* const memory = static_cast<const std::uint8_t*>(workspace);
  pointers.operands[kMeanOperand] = memory + layout.means;
  pointers.operands[kScaleOperand] = memory + layout.scales;
  pointers.operands[kShiftOperand] = memory + layout.shifts;
}

}  // namespace epiconv::sm90
