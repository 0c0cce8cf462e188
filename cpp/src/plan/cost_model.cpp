#include "plan/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "plan/operand_strides.h"

namespace epiconv {
namespace {

// Of an H200, by the layers of the benchmark's half "tuning" (docs/planner.md): of a call microseconds
// besides the kernel's clocks, and by how much those are too few.
struct Fitted {
  double launch_us, factor;
  double of_memory;  // the part of a copy's rate that it reaches
};
constexpr Fitted kFitted[] = {
    {2.4, 1.0, 0.5},   // KernelKind::kPortable
    {2.9, 1.05, 0.9},  // kGathered
    {2.9, 0.93, 0.9},  // kInPieces
    {0.0, 1.1, 0.9},   // kIm2col, whose clocks begin with the launch
    {8.0, 1.25, 0.9},  // kHalo
};
constexpr double kPassOfMemory = 0.95;                      // a pass over float32
constexpr double kPassOf16Bits = 0.75;                      // and over 16 bits, for most programs
constexpr double kPassLaunch = 3, kPassLaunchOf16Bits = 8;  // behind another convolution
constexpr double kCopyLaunch = 1.8, kCopyOfMemory = 0.87;   // of an input

double product(const Extents& extents, std::size_t begin = 0) {
  return std::accumulate(extents.begin() + static_cast<std::ptrdiff_t>(begin), extents.end(), 1.0,
                         [](double all, std::int64_t extent) { return all * static_cast<double>(extent); });
}

double up(double value, double by) { return std::ceil(value / by); }

int multiplied_bytes(ConvMath math) { return math == ConvMath::kTf32 || math == ConvMath::kIeee ? 4 : 2; }

int functions_of(Opcode op) {
  switch (op) {
    case Opcode::kMish:
      return 6;
    case Opcode::kPow:
    case Opcode::kSilu:
    case Opcode::kSigmoid:
    case Opcode::kLogSigmoid:
    case Opcode::kTanh:
    case Opcode::kSoftplus:
    case Opcode::kGelu:
      return 2;
    case Opcode::kSqrt:
    case Opcode::kRsqrt:
    case Opcode::kExp:
    case Opcode::kLog:
    case Opcode::kElu:
    case Opcode::kSelu:
    case Opcode::kCelu:
    case Opcode::kSoftsign:
      return 1;
    default:
      return 0;
  }
}

// Whether each statement takes the value before it and no older one.
bool is_chain(const Program& program) {
  int before = 0;
  for (const Statement& statement : program.statements()) {
    for (const Argument& argument : statement.arguments) {
      if (argument.kind == Argument::Kind::kValue && argument.index != before) return false;
    }
    ++before;
  }
  return true;
}

double operand_bytes(const ConvPlanProblem& problem) {
  double bytes = 0;
  for (const OperandLayout& operand : problem.operands) {
    if (!operand.is_number) bytes += product(operand.extents) * dtype_size(operand.dtype);
  }
  return bytes;
}

// What a convolution reads of its input: with channels side by side only pixels that a tap meets.
double read_part(const ConvPlanProblem& problem, bool has_channels_side_by_side) {
  double part = 1;
  if (problem.conv.transposed() || !has_channels_side_by_side) return part;
  for (std::size_t d = 0; d < problem.conv.stride().size(); ++d) {
    part *= std::min(1.0, 1.0 * problem.conv.weight()[2 + d] / problem.conv.stride()[d]);
  }
  return part;
}

double input_bytes(const ConvPlanProblem& problem) {
  return product(problem.conv.input()) * dtype_size(problem.input_dtype);
}
double weight_bytes(const ConvPlanProblem& problem) {
  return product(problem.conv.weight()) * multiplied_bytes(problem.math);
}

// A pass over so many bytes and outputs, whose program is interpreted.
double pass_us(const Program& program, double bytes, int element_bytes, double outputs) {
  constexpr double kOutput = 0.15, kStep = 0.1, kFunction = 0.1, kDag = 1.5;  // clocks of a multiprocessor
  const double steps = static_cast<double>(program.statements().size());
  const double clocks =
      (kOutput + steps * kStep + special_functions(program) * kFunction) * (is_chain(program) ? 1.0 : kDag);
  const double computed = outputs * clocks / (kH200.multiprocessors * kH200.clocks_per_us);
  const double moved = bytes / (kH200.bytes_per_us * (element_bytes < 4 ? kPassOf16Bits : kPassOfMemory));
  return (element_bytes < 4 ? kPassLaunchOf16Bits : kPassLaunch) + std::max(moved, computed);
}

// From terms that are set to the whole: `main` is the kernel's time by its clocks.
void set_whole(PredictedTime& time, double main) {
  const double balanced = std::max({time[Ceiling::kTensor] + time[Ceiling::kPower],
                                    time[Ceiling::kSharedMemory], time[Ceiling::kL2]}) +
                          time[Ceiling::kIssue];
  time[Ceiling::kWaves] = std::max(0.0, main - balanced);
  time.us = time[Ceiling::kLaunch] + time[Ceiling::kPasses] +
            std::max({main, time[Ceiling::kDram], time[Ceiling::kSpecialFunctions]});
}

}  // namespace

int special_functions(const Program& program) {
  int functions = 0;
  for (const Statement& statement : program.statements()) functions += functions_of(statement.op);
  return functions;
}

double compiled_clocks(const ConvPlanProblem& problem, bool has_staged_operand) {
  constexpr double kStep = 0.0063, kFunction = 0.067, kStagedOperand = 0.051;
  const auto steps = static_cast<double>(problem.program.statements().size()) + (problem.bias ? 1 : 0);
  return steps * kStep + special_functions(problem.program) * kFunction +
         (has_staged_operand ? kStagedOperand : 0.0);
}

PredictedTime predict_kernel(const ConvPlanProblem& problem, const KernelDemand& demand) {
  const Fitted& fitted = kFitted[static_cast<int>(demand.kind)];
  const double of_clock = fitted.factor / kH200.clocks_per_us;
  const double outputs = product(problem.conv.output());
  const int output_bytes = dtype_size(problem.output_dtype);
  const bool is_in_pieces = demand.copies_input || problem.input_strides[1] == 1;
  const double read = input_bytes(problem) * read_part(problem, is_in_pieces);
  const double stored = outputs * (demand.stored_bytes > 0 ? demand.stored_bytes : output_bytes);
  PredictedTime time;
  time[Ceiling::kTensor] = demand.clocks.tensor * of_clock;
  time[Ceiling::kPower] = demand.clocks.power * of_clock;
  time[Ceiling::kSharedMemory] = demand.clocks.shared_memory * of_clock;
  time[Ceiling::kL2] = demand.clocks.fill * of_clock;
  time[Ceiling::kIssue] = demand.clocks.store * of_clock;
  time[Ceiling::kDram] = (read + weight_bytes(problem) + operand_bytes(problem) + stored) /
                         (kH200.bytes_per_us * fitted.of_memory);
  constexpr double kFunctionsOfClock = 16;
  time[Ceiling::kSpecialFunctions] =
      outputs * special_functions(problem.program) / (kFunctionsOfClock * kH200.multiprocessors) * of_clock;
  const double program = outputs * demand.program_clocks / (kH200.multiprocessors * kH200.clocks_per_us);
  time[Ceiling::kIssue] += program;
  const double main = demand.clocks.all * of_clock + program;
  time[Ceiling::kLaunch] = fitted.launch_us;
  if (demand.copies_input) {
    const double turned = product(problem.conv.input()) * multiplied_bytes(problem.math);
    time[Ceiling::kPasses] +=
        kCopyLaunch + (input_bytes(problem) + turned) / (kH200.bytes_per_us * kCopyOfMemory);
  }
  if (demand.pass_bytes > 0) {
    time[Ceiling::kPasses] += pass_us(problem.program, outputs * demand.pass_bytes, 4, outputs);
  }
  set_whole(time, main);
  return time;
}

PredictedTime predict_fallback(const ConvPlanProblem& problem) {
  // As measured of cuDNN's convolutions by the same layers, with torch.backends.cudnn.benchmark.
  constexpr double kFallbackOfMemory = 0.9;
  constexpr double kLaunch = 5.4, kSplit = 7.9;          // a launch; parts of gemm_k, and their sum
  constexpr double kStep = 0.18, kIeeeStep = 7 * kStep;  // 128 x 128 sums, 64 bytes of gemm_k
  constexpr double kTile32 = 0.26, kTile16 = 0.68;       // begin and end of a tile
  constexpr double kOfFewChannels = 2.2, kOfFewFilters = 1.5, kOfTransposed = 1.24;
  constexpr double kTurn = 1.09, kTurnLaunches = 11;  // to channels side by side, and back
  constexpr double kBytesOfStep = 64, kFewChannels = 8, kFewFilters = 64, kLeastSplitSteps = 16;
  const ConvProblem& conv = problem.conv;
  const double groups = static_cast<double>(conv.groups());
  const double channels = static_cast<double>(conv.C()) / groups;
  const double filters = static_cast<double>(conv.K()) / groups;
  const double outputs = product(conv.output()), positions = outputs / static_cast<double>(conv.K());
  const double taps = product(conv.weight(), 2), strides = product(conv.stride());
  const int size = dtype_size(problem.input_dtype);
  const bool is_ieee = problem.math == ConvMath::kIeee;

  const double taps_of_phase = conv.transposed() ? std::max(1.0, taps / strides) : taps;
  const double steps = taps_of_phase * up(channels * size, kBytesOfStep);
  const bool has_few_filters = filters <= kFewFilters;
  const double tiles =
      groups * (has_few_filters ? up(positions, 256) : up(positions, 128) * up(filters, 128));
  double of_step = is_ieee ? kIeeeStep : kStep;
  const double ideal = steps * of_step * 0.8;
  if (channels <= kFewChannels) {
    of_step *= kOfFewChannels;
  } else if (has_few_filters) {
    of_step *= kOfFewFilters;
  }
  if (conv.transposed()) of_step *= kOfTransposed;
  const double of_tile = (size == 4 ? kTile32 : kTile16) + steps * of_step;
  const double rounds = tiles / kH200.multiprocessors;
  // Up to four rounds the last one counts half; fewer tiles than multiprocessors are split.
  double main = of_tile * (rounds > 4 ? rounds : (rounds + std::ceil(rounds)) / 2);
  if (rounds < 1) {
    const double parts = std::min(1 / rounds, std::max(1.0, steps / kLeastSplitSteps));
    main = of_tile / parts + (parts > 1.5 ? kSplit : 0.0);
  }

  const double input = input_bytes(problem), weights = weight_bytes(problem);
  const bool is_channels_last = problem.input_strides[1] == 1 && conv.C() > 1;
  const auto all_are = [](const Extents& values, std::int64_t wanted) {
    return std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value == wanted; });
  };
  const bool is_matrix = taps == 1 && all_are(conv.stride(), 1) && all_are(conv.padding_begin(), 0);
  PredictedTime time;
  time[Ceiling::kTensor] = rounds * ideal;
  time[Ceiling::kDram] = (input + weights + outputs * size) / (kH200.bytes_per_us * kFallbackOfMemory);
  time[Ceiling::kLaunch] = kLaunch;
  if (!is_channels_last && !is_matrix) {
    const double turned = 2 * (input + weights + outputs * size);
    time[Ceiling::kPasses] += kTurnLaunches + kTurn * turned / kH200.bytes_per_us;
  }
  if (problem.bias || !problem.program.statements().empty()) {
    const double reads = problem.program.group_norm_statement() >= 0 ? 2.0 : 1.0;
    const double bytes =
        reads * (outputs * size + operand_bytes(problem)) + outputs * dtype_size(problem.output_dtype);
    time[Ceiling::kPasses] += pass_us(problem.program, bytes, size, outputs);
  }
  set_whole(time, main);
  return time;
}

}  // namespace epiconv
