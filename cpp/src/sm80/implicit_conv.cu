#include <algorithm>
#include <array>
#include <atomic>
#include <limits>

#include "conv_math.h"
#include "device/current_device.h"
#include "device/overlapping_launch.h"
#include "device/program_steps.h"
#include "sm80/compiled_conv.h"
#include "sm80/conv_kernels.h"
#include "sm80/im2col_maps.h"
#include "sm80/implicit_conv.h"
#include "sm80/parameters.h"
#include "sm80/turn_input.h"

namespace epiconv::sm80 {
namespace {

constexpr std::int64_t kMostBlocks = 2147483647;  // of a launch
constexpr std::size_t kAlignment = 256;           // of the parts of a workspace

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// How words of an operand lie where the output's lie side by side.
Pattern pattern_of(const TensorLayout& operand, const TensorLayout& output, bool of_filters) {
  const auto& strides = operand.strides;
  if (of_filters) {
    return strides[1] == 0 ? Pattern::kOne : strides[1] == 1 ? Pattern::kWords : Pattern::kScattered;
  }
  const auto all = [&](auto&& predicate) { return predicate(2) && predicate(3) && predicate(4); };
  if (all([&](int d) { return strides[d] == 0; })) return Pattern::kOne;
  return all([&](int d) { return strides[d] == output.strides[d]; }) ? Pattern::kWords : Pattern::kScattered;
}

OutputTensor output_tensor(const TensorLayout& layout, Pattern pattern) {
  // Words are of what a convolution computes in; float64 is one number for all, and is loaded for each.
  const bool in_words = is_floating(layout.dtype) && layout.dtype != DType::kFloat64;
  OutputTensor tensor{{}, layout.dtype, in_words ? pattern : Pattern::kScattered, false, false, -1, 0};
  std::copy(std::begin(layout.strides), std::end(layout.strides), tensor.strides);
  tensor.is_of_filters = is_of_filters(layout);
  return tensor;
}

ConvKernel kernel_of(const ImplicitConvProblem& problem) {
  const LoweredProgram& program = problem.program;
  if (program.num_slots > 1) return dag_kernel();
  // Three products for one take more registers than chains have.
  return program.is_chain() && problem.math != ConvMath::kIeee ? chain_kernel() : one_slot_kernel();
}

// A folded step that only adds an operand costs four times what an addition does.
bool only_adds(const Step<float>& step) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return step.op == kAddClampMul && fetches_of(step) == kFetchB && step.p == -kInfinity &&
         step.q == kInfinity && step.number[2] == 1.0f;
}

// Products whose rows are in registers leave time to round them there.
bool rounds_late(const ImplicitConvProblem& problem) {
  return problem.geometry.has_warpgroups && problem.math == ConvMath::kTf32;
}

void set_program(EpilogueParameters& epilogue, const Pass& pass, const PassPointers& pointers) {
  set_steps(epilogue, pass, pointers, true);
  for (int i = 0; i < epilogue.num_steps; ++i) {
    Step<float>& step = epilogue.steps[i];
    if (!only_adds(step)) continue;
    step.op = Opcode::kAdd;
    step.num_values = 2;
    step.p = 1.0f;
  }
}

void check(cudaError_t status, const char* what, const std::string& kernel, const Geometry& g) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is reported once
  throw CudaError(concat(what, " of ", kernel, " over ", g.batch, " x ", g.groups * g.channels, " x ",
                         g.input[0], " x ", g.input[1], " x ", g.input[2], " with ", g.groups * g.filters,
                         " filters of ", g.taps[0], " x ", g.taps[1], " x ", g.taps[2], " in ", g.groups,
                         " groups failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

}  // namespace

struct ImplicitConv::State {
  ImplicitConvProblem problem;
  ConvKernel kernel;
  std::string name;
  Pass pass;  // for its program
  ConvParameters parameters{};
  std::shared_ptr<const CompiledConv> compiled;  // runs instead of `kernel`, if it is there
  std::string why_interpreted;
  // In the workspace.
  std::size_t partial_sums = 0, arrivals = 0, means = 0, squares = 0, counts = 0, turned = 0, bytes = 0;
  std::size_t arrivals_bytes = 0;
  std::int64_t statistics_rows = 0;  // of an image
  mutable std::atomic<std::uint64_t> prepared_devices{0};

  explicit State(const ImplicitConvProblem& the_problem) : problem(the_problem), kernel(kernel_of(problem)) {
    const Geometry& g = problem.geometry;
    const bool of_filters = !g.filters_are_rows;
    pass.program = problem.program;
    parameters.geometry = g;
    parameters.math = problem.math;
    parameters.takes_statistics = problem.takes_statistics;
    parameters.shared = SharedLayout::of(g, problem.takes_statistics);
    InputTensor& input = parameters.input;
    std::copy(std::begin(problem.input.strides), std::end(problem.input.strides), input.strides);
    input.is_float32 = problem.input.dtype == DType::kFloat32;
    input.in_pieces = problem.in_pieces;
    input.is_copied =
        input.in_pieces && (input.is_float32 ? problem.math == ConvMath::kIeee || rounds_late(problem)
                                             : problem.math != ConvMath::kTf32);
    input.is_rounded_late = input.in_pieces && input.is_float32 && rounds_late(problem);
    parameters.channel_blocks = Divisor(static_cast<std::uint32_t>(g.channel_blocks));
    input.box_pixels = Divisor(static_cast<std::uint32_t>(g.box_pixels));
    input.padding_mode = problem.padding_mode;
    EpilogueParameters& epilogue = parameters.epilogue;
    const bool side_by_side = problem.output.strides[4] == 1 && g.interleave == g.phases[2];
    epilogue.in_rows = of_filters || (side_by_side && (g.is_linear || g.patch(kDims) * g.interleave >= 4));
    epilogue.output = output_tensor(problem.output, Pattern::kWords);
    epilogue.staged_operand = static_cast<std::int8_t>(problem.staged_operand);
    std::int8_t filter_operands = 0;
    for (int i = 0; i < kNumOperandPlaces; ++i) {
      const TensorLayout& operand = problem.operands[i];
      epilogue.operands[i] = output_tensor(operand, pattern_of(operand, problem.output, of_filters));
      epilogue.operands[i].place = static_cast<std::uint8_t>(i);
      epilogue.operands[i].is_like_output = std::equal(std::begin(operand.strides), std::end(operand.strides),
                                                       std::begin(problem.output.strides));
      const bool is_read = problem.program.reads(i);
      if (!is_read || !is_of_filters(operand)) continue;
      epilogue.operands[i].filter_operand = filter_operands;
      epilogue.filter_operands[filter_operands++] = static_cast<std::uint8_t>(i);
    }
    epilogue.num_slots = problem.program.num_slots;
    epilogue.save_input = problem.program.save_input;
    set_program(epilogue, pass, PassPointers{});
    compile();
    const char* const loads = g.im2col_lines    ? "im2col_lines"
                              : g.is_im2col     ? (problem.turns_input ? "turned_im2col" : "im2col")
                              : input.in_pieces ? "pieces"
                                                : "gather";
    name = concat(g.transposed ? "dgrad_" : "fprop_", g.has_warpgroups ? "sm90_" : "sm80_",
                  name_of(problem.math), "_", loads, "_", g.tile_filters, "x", g.tile_positions,
                  g.is_linear && !g.is_im2col ? "_linear" : "",
                  g.splits.divisor > 1 ? concat("_split", g.splits.divisor) : "",
                  g.is_im2col ? concat("_", g.im2col_teams, g.im2col_cluster > 1 ? "_cluster" : "",
                                       g.im2col_share > 0 ? "_shared" : "")
                              : "",
                  "_", compiled == nullptr ? kernel.evaluator : "f32_compiled");
    plan_workspace();
  }

  void compile() {
    if (problem.compiled_for == 0) return;
    if (!problem.program.late_numbers.empty()) {
      why_interpreted = "an operand is a number on the host, known only when it runs";
      return;
    }
    compiled =
        CompiledConv::make(parameters, problem.geometry.chunk_sums, problem.compiled_for, why_interpreted);
  }

  void plan_workspace() {
    const Geometry& g = problem.geometry;
    const auto take = [&](std::size_t size) {
      const std::size_t at = bytes;
      bytes += aligned(size);
      return at;
    };
    const auto tile_bytes = static_cast<std::size_t>(g.tile_filters) * g.tile_positions * sizeof(float);
    if (g.is_im2col && g.im2col_share > 0) {
      const std::int64_t shared_tiles = im2col_tiles(g) - g.im2col_whole_tiles;
      const std::int32_t warpgroups = 2 * g.im2col_cluster;
      arrivals_bytes = static_cast<std::size_t>(shared_tiles) * warpgroups * sizeof(std::uint32_t);
      arrivals = take(arrivals_bytes);
      partial_sums = take(static_cast<std::size_t>(g.im2col_workers) * g.im2col_cluster * 2 * tile_bytes);
    }
    if (g.splits.divisor > 1) {
      const std::int64_t blocks = g.position_tiles * g.position_blocks();
      arrivals_bytes = static_cast<std::size_t>(blocks / g.splits.divisor) * sizeof(std::uint32_t);
      arrivals = take(arrivals_bytes);
      partial_sums = take(static_cast<std::size_t>(blocks) * tile_bytes);
    }
    if (problem.turns_input) turned = take(turned_bytes());
    if (problem.takes_statistics) {
      const std::int64_t patches = g.position_tiles / g.batch;  // of an image
      statistics_rows = patches * g.tile_phases.divisor;
      const auto rows = static_cast<std::size_t>(g.batch * statistics_rows);
      const auto filters = static_cast<std::size_t>(g.groups) * g.filters;
      means = take(rows * filters * sizeof(float));
      squares = take(rows * filters * sizeof(float));
      counts = take(rows * sizeof(float));
    }
  }

  std::size_t turned_bytes() const {
    const Geometry& g = problem.geometry;
    const std::int64_t pixels = g.batch * g.input[0] * g.input[1] * g.input[2];
    return static_cast<std::size_t>(
        pixels * turned_channels(std::int64_t{g.groups} * g.channels, g.element_bytes) * g.element_bytes);
  }

  const void* function() const { return compiled == nullptr ? kernel.function : compiled->function(); }

  // The limit of shared memory is a device's.
  void prepare(int device) const {
    const std::uint64_t bit = std::uint64_t{1} << (device % 64);
    if (prepared_devices.load(std::memory_order_relaxed) & bit) return;
    check(cudaFuncSetAttribute(function(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               most_shared_bytes(problem.geometry)),
          "the setup", name, problem.geometry);
    prepared_devices.fetch_or(bit, std::memory_order_relaxed);
  }

  // As many blocks as there are multiprocessors go through all tiles.
  void launch_im2col(ConvLaunch& pointed, std::uint8_t* workspace, void* stream) const {
    const Geometry& g = problem.geometry;
    TensorLayout input = problem.input;
    const void* data = pointed.input;
    if (problem.turns_input) {
      const std::int64_t channels = std::int64_t{g.groups} * g.channels;
      TurnProblem turn{input, g.batch, channels, {g.input[0], g.input[1], g.input[2]}, problem.math};
      turn_input(turn, data, workspace + turned, stream);
      data = workspace + turned;
      std::int64_t stride = turned_channels(channels, g.element_bytes);
      input.strides[1] = 1;
      for (int d = kDims - 1; d >= 0; --d) {
        input.strides[2 + d] = stride;
        stride *= g.input[d];
      }
      input.strides[0] = stride;
    }
    Im2colMaps maps{};
    if (g.im2col_lines) {
      maps.of_phase[0] = make_input_line_map(g, problem.math, input, data);
    } else {
      make_im2col_maps(g, problem.math, input, data, maps);
    }
    if (g.im2col_cluster > 1) maps.weights = make_weights_map(g, pointed.weights);
    if (g.im2col_slots > 0) {
      const auto is_aligned = [](const void* address) {
        return reinterpret_cast<std::uintptr_t>(address) % kPieceBytes == 0;
      };
      if (!is_aligned(pointed.output)) {
        throw InvalidArgument(concat("the output of ", name, " begins at an address that is no multiple of ",
                                     kPieceBytes, ": allocate it so"));
      }
      const int place = parameters.epilogue.staged_operand;
      pointed.stages_operand = place >= 0 && is_aligned(pointed.operands[place]);
      if (!g.im2col_copies_slices) {
        maps.output = make_slice_map(g, problem.output, pointed.output);
        if (pointed.stages_operand) {
          maps.operand = make_slice_map(g, problem.output, pointed.operands[place]);
        }
      }
    }
    const std::int32_t blocks = g.im2col_workers / g.im2col_teams * g.im2col_cluster;
    void* arguments[] = {&pointed, &maps};
    check(launch_overlapping(function(), static_cast<unsigned>(blocks),
                             static_cast<unsigned>(g.im2col_teams * kThreads + kThreads / 2), arguments,
                             static_cast<std::size_t>(parameters.shared.bytes), stream,
                             static_cast<unsigned>(g.im2col_cluster)),
          "the launch", name, g);
  }
};

ImplicitConv::ImplicitConv(const ImplicitConvProblem& problem)
    : state_(std::make_unique<const State>(problem)) {}
ImplicitConv::~ImplicitConv() = default;

const std::string& ImplicitConv::kernel() const { return state_->name; }
const std::string& ImplicitConv::why_interpreted() const { return state_->why_interpreted; }
std::size_t ImplicitConv::workspace_bytes() const { return state_->bytes; }

StoredStatistics ImplicitConv::statistics(const void* workspace) const {
  const auto floats = [&](std::size_t at) {
    return reinterpret_cast<const float*>(static_cast<const std::uint8_t*>(workspace) + at);
  };
  return {floats(state_->means), floats(state_->squares), floats(state_->counts), state_->statistics_rows};
}

void ImplicitConv::launch(const PassPointers& pointers, const void* weights, int device, void* stream) const {
  const State& state = *state_;
  const Geometry& g = state.problem.geometry;
  make_current(device);
  state.prepare(device);
  ConvParameters p = state.parameters;
  auto* const workspace = static_cast<std::uint8_t*>(pointers.workspace);
  const auto floats = [&](std::size_t at) { return reinterpret_cast<float*>(workspace + at); };
  ConvLaunch pointed{};
  pointed.input = pointers.input;
  pointed.weights = weights;
  pointed.output = pointers.output;
  std::copy(std::begin(pointers.operands), std::end(pointers.operands), pointed.operands);
  if (!state.pass.program.late_numbers.empty()) set_program(p.epilogue, state.pass, pointers);
  if (state.arrivals_bytes > 0) {
    pointed.partial_sums = floats(state.partial_sums);
    pointed.arrivals = reinterpret_cast<std::uint32_t*>(workspace + state.arrivals);
    check(cudaMemsetAsync(pointed.arrivals, 0, state.arrivals_bytes, static_cast<cudaStream_t>(stream)),
          "the clearing of counters", state.name, g);
  }
  if (state.problem.takes_statistics) {
    pointed.statistics = {floats(state.means), floats(state.squares), floats(state.counts)};
  }
  if (g.is_im2col) return state.launch_im2col(pointed, workspace, stream);
  // Nearly always one launch.
  const std::int64_t of_position = g.position_blocks(), most = kMostBlocks / of_position;
  for (std::int64_t first = 0; first < g.position_tiles; first += most) {
    pointed.first_position_tile = static_cast<std::int32_t>(first);
    const std::int64_t tiles = std::min(most, g.position_tiles - first);
    void* both[] = {&p, &pointed};
    void** const arguments = state.compiled == nullptr ? both : both + 1;
    check(cudaLaunchKernel(state.function(), dim3(static_cast<unsigned>(tiles * of_position)), dim3(kThreads),
                           arguments, static_cast<std::size_t>(p.shared.bytes),
                           static_cast<cudaStream_t>(stream)),
          "the launch", state.name, g);
  }
}

}  // namespace epiconv::sm80
