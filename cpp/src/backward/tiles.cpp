#include "backward/tiles.h"

#include <algorithm>
#include <array>
#include <limits>

#include "epiconv/error.h"

namespace epiconv::backward {
namespace {

constexpr std::int64_t kTableBytes = 32 << 10;  // of shared memory, for sums of rows

// Bytes of memory traffic that take as long: one partial sum, written and read; what comes before and behind
// a tile's elements; an element's part in the sum of a row.
constexpr double kPartialSumCost = 16, kTileCost = 4096, kRowSumCost = 0.5;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

Action packed(const BackwardStep& step) {
  Action action{};
  action.kind = step.kind;
  action.op = step.op;
  action.argument = step.argument;
  action.num_values = step.num_values;
  action.adds = step.adds;
  action.target = static_cast<std::int16_t>(step.target);
  action.gradient = static_cast<std::int16_t>(step.gradient);
  for (int k = 0; k < 3; ++k) {
    action.source[k] = step.source[k];
    action.index[k] = static_cast<std::int16_t>(step.index[k]);
    action.number[k] = step.number[k];
    action.late[k] = static_cast<std::int8_t>(step.late[k]);
  }
  action.p = step.p;
  action.q = step.q;
  return action;
}

class SweepPlanning {
 public:
  SweepPlanning(const BackwardPass& pass, const BackwardProgram& program, bool in_registers)
      : pass_(pass), program_(program), in_registers_(in_registers), rank_(pass.walk.rank) {
    for (const BackwardStep& step : program.steps) {
      if (step.kind == BackwardStep::Kind::kGiveOperand && pass.gradients[step.argument].is_summed)
        summed_.push_back(step.argument);
    }
  }

  PlannedSweep run() {
    double least = std::numeric_limits<double>::infinity();
    int best = -1;
    for (int row = -1; row < rank_ - 1; ++row) {
      cut(row);
      const double cost = this->cost();
      if (cost < least) {
        least = cost;
        best = row;
      }
    }
    cut(best);
    result_.sweep = sweep_;
    place_tensors();
    place_actions();
    result_.num_partial_sums = partial_sums_;
    result_.shared_bytes = shared_bytes();
    for (int place = 0; place < kNumOperandPlaces; ++place) {
      if (program_.gives.operands[place] && pass_.gradients[place].is_summed) add_reduction(place);
    }
    return std::move(result_);
  }

 private:
  std::int64_t stride_of_gradient(int place, int d) const { return pass_.gradients[place].access.strides[d]; }

  // Cuts the elements with dimension `row` of the walk as rows, or none; columns are the innermost one.
  void cut(int row) {
    sweep_ = Sweep{};
    std::fill_n(sweep_.extents, kNumDims, 1);
    dim_of_.fill(-1);
    int outer = kNumOuter;
    for (int d = rank_ - 1; d >= 0; --d) {
      dim_of_[d] = d == rank_ - 1 ? kColumn : d == row ? kRow : --outer;
      sweep_.extents[dim_of_[d]] = pass_.walk.extents[d];
    }
    place_sums();
    set_tiles();
    set_partial_sums();
  }

  void place_sums() {
    for (const int place : summed_) {
      Sum& sum = sweep_.sums[sweep_.num_sums++];
      bool by_row = false, by_column = false;
      for (int d = 0; d < rank_; ++d) {
        if (stride_of_gradient(place, d) == 0) continue;
        by_row = by_row || dim_of_[d] == kRow;
        by_column = by_column || dim_of_[d] == kColumn;
      }
      sum.kind = by_row ? (by_column ? SumKind::kElements : SumKind::kRows)
                        : (by_column ? SumKind::kColumns : SumKind::kTile);
      if (sum.kind == SumKind::kRows) sum.index = static_cast<std::uint8_t>(sweep_.num_tables++);
      if (sum.kind == SumKind::kTile || sum.kind == SumKind::kColumns)
        sum.index = static_cast<std::uint8_t>(sweep_.num_word_sums++);
    }
    sweep_.num_slots = program_.num_slots;
  }

  // Tiles of so many elements that what surrounds them is small, and that there are enough for every card.
  void set_tiles() {
    const std::int64_t columns = sweep_.extents[kColumn], rows = sweep_.extents[kRow];
    const std::int64_t words = divide_up(columns, kWord);
    const std::int64_t wanted = std::clamp<std::int64_t>(pass_.walk.count / 2048, 2048, 32768);
    for (sweep_.threads = kMostThreads; sweep_.threads > 32; sweep_.threads /= 2) {
      if (static_cast<std::size_t>(thread_bytes()) * static_cast<std::size_t>(sweep_.threads) + kTableBytes <=
          kSharedBytes)
        break;
    }
    for (sweep_.lanes = 1; sweep_.lanes < sweep_.threads && sweep_.lanes < words;) sweep_.lanes *= 2;
    const std::int64_t line = std::int64_t{sweep_.lanes} * kWord;
    const std::int64_t at_a_time = sweep_.threads / sweep_.lanes;
    std::int64_t tile_rows = divide_up(divide_up(wanted, line), at_a_time) * at_a_time;
    if (sweep_.num_tables > 0) {
      const std::int64_t row_bytes = std::int64_t{sweep_.num_tables} * sweep_.lanes * value_bytes();
      tile_rows = std::min(tile_rows, std::max<std::int64_t>(1, kTableBytes / row_bytes));
    }
    tile_rows = std::min(tile_rows, std::max<std::int64_t>(rows, 1));
    sweep_.row_tiles = static_cast<std::int32_t>(divide_up(rows, tile_rows));
    sweep_.tile_rows = static_cast<std::int32_t>(divide_up(rows, std::max(sweep_.row_tiles, 1)));
    const bool one_word = std::any_of(sweep_.sums, sweep_.sums + sweep_.num_sums,
                                      [](const Sum& sum) { return sum.kind == SumKind::kColumns; });
    const std::int64_t lines = divide_up(words, sweep_.lanes);
    const std::int64_t most = one_word ? 1 : std::max<std::int64_t>(1, wanted / (line * tile_rows));
    const std::int64_t column_tiles = divide_up(lines, std::min(most, std::max<std::int64_t>(lines, 1)));
    sweep_.column_tiles = static_cast<std::int32_t>(column_tiles);
    sweep_.column_words =
        static_cast<std::int32_t>(divide_up(lines, std::max<std::int64_t>(column_tiles, 1)));
    sweep_.num_tiles = std::int64_t{sweep_.row_tiles} * sweep_.column_tiles;
    for (int d = 0; d < kNumOuter; ++d) sweep_.num_tiles *= sweep_.extents[d];
  }

  // Partial sums of one operand after another, dense in the order of the sweep's dimensions.
  void set_partial_sums() {
    partial_sums_ = 0;
    for (int i = 0; i < sweep_.num_sums; ++i) {
      Sum& sum = sweep_.sums[i];
      sum.begin = partial_sums_;
      std::int64_t extents[kNumDims];
      partial_extents(sum, extents);
      std::int64_t stride = 1;
      for (int d = kNumDims - 1; d >= 0; --d) {
        sum.strides[d] = stride;
        stride *= extents[d];
      }
      partial_sums_ += stride;
    }
  }

  void partial_extents(const Sum& sum, std::int64_t (&extents)[kNumDims]) const {
    std::copy_n(sweep_.extents, kNumDims, extents);
    if (sum.kind == SumKind::kTile || sum.kind == SumKind::kColumns) extents[kRow] = sweep_.row_tiles;
    if (sum.kind == SumKind::kTile || sum.kind == SumKind::kRows) extents[kColumn] = sweep_.column_tiles;
  }

  double cost() const {
    const double elements = static_cast<double>(pass_.walk.count);
    return kPartialSumCost * static_cast<double>(partial_sums_) +
           kTileCost * static_cast<double>(sweep_.num_tiles) + kRowSumCost * elements * sweep_.num_tables;
  }

  std::int64_t value_bytes() const { return pass_.double_precision ? 8 : 4; }

  std::int64_t thread_bytes() const {
    const std::int64_t of_sums = static_cast<std::int64_t>(kWord * sizeof(double));
    if (in_registers_) return sweep_.num_word_sums > 0 ? of_sums : 0;
    return sweep_.num_slots * kWord * value_bytes() + sweep_.num_word_sums * of_sums;
  }

  std::size_t shared_bytes() const {
    return static_cast<std::size_t>(thread_bytes() * sweep_.threads + std::int64_t{sweep_.num_tables} *
                                                                          sweep_.tile_rows * sweep_.lanes *
                                                                          value_bytes());
  }

  void place_tensors() {
    const auto place = [&](int i, const Access& access) {
      Tensor& tensor = result_.sweep.tensors[i];
      tensor.dtype = access.dtype;
      tensor.in_words = rank_ > 0 && access.strides[rank_ - 1] == 1 && is_floating(access.dtype) &&
                        pass_.walk.extents[rank_ - 1] % kWord == 0;
      for (int d = 0; d < rank_; ++d) {
        tensor.strides[dim_of_[d]] = access.strides[d];
        if (d != rank_ - 1 && access.strides[d] % kWord != 0) tensor.in_words = false;
      }
    };
    for (int i = 0; i < kNumBackwardPlaces; ++i) place(i, pass_.operands[i]);
    place(kSavedTensor, pass_.saved);
    place(kGradientTensor, pass_.output_gradient);
    place(kInputGradientTensor, pass_.input_gradient);
    for (int i = 0; i < kNumOperandPlaces; ++i) place(kOperandGradients + i, pass_.gradients[i].access);
  }

  void place_actions() {
    Actions& actions = result_.actions;
    if (program_.steps.size() > kMaxActions) {
      throw NotSupported(concat("the backward pass of the program has ", program_.steps.size(),
                                " steps, and a kernel takes at most ", kMaxActions));
    }
    int sum = 0;
    for (const BackwardStep& step : program_.steps) {
      Action& action = actions.each[actions.count++] = packed(step);
      if (step.kind != BackwardStep::Kind::kGiveOperand) continue;
      action.target = static_cast<std::int16_t>(pass_.gradients[step.argument].is_summed ? sum++ : -1);
    }
  }

  void add_reduction(int place) {
    const GradientAccess& gradient = pass_.gradients[place];
    Reduction reduction{};
    // The norm's own are read again in float64.
    const bool is_norms = place == kScaleOperand || place == kShiftOperand;
    reduction.dtype = is_norms ? DType::kFloat64 : gradient.access.dtype;
    reduction.kept_count = reduction.summed_count = 1;
    const auto found = std::find(summed_.begin(), summed_.end(), place);
    const Sweep& sweep = result_.sweep;
    const Sum* sum = found == summed_.end() ? nullptr : &sweep.sums[found - summed_.begin()];
    const auto add_summed = [&](std::int64_t extent, std::int64_t stride) {
      reduction.summed_extents[reduction.summed_rank] = extent;
      reduction.summed_strides[reduction.summed_rank++] = stride;
      reduction.summed_count *= extent;
    };
    for (int d = 0; d < rank_; ++d) {
      const int dim = dim_of_[d];
      const std::int64_t partial_stride = sum == nullptr ? 0 : sum->strides[dim];
      if (gradient.access.strides[d] != 0) {
        reduction.kept_extents[reduction.kept_rank] = sweep.extents[dim];
        reduction.kept_strides[reduction.kept_rank] = partial_stride;
        reduction.output_strides[reduction.kept_rank++] = gradient.access.strides[d];
        reduction.kept_count *= sweep.extents[dim];
      } else {
        add_summed(dim == kRow      ? sweep.row_tiles
                   : dim == kColumn ? sweep.column_tiles
                                    : sweep.extents[dim],
                   partial_stride);
      }
    }
    if (sum == nullptr || pass_.walk.count == 0) reduction.summed_count = 0;
    reduction.by_block = reduction.summed_count >= 32;
    result_.reductions.push_back({place, sum == nullptr ? 0 : sum->begin, reduction});
  }

  const BackwardPass& pass_;
  const BackwardProgram& program_;
  const bool in_registers_;
  const int rank_;
  std::vector<int> summed_;  // places of the sums, in the order of the steps that give them
  Sweep sweep_{};
  std::array<int, kMaxDims> dim_of_{};  // of the sweep, by those of the walk
  std::int64_t partial_sums_ = 0;
  PlannedSweep result_;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

SweepLaunch launch_of(const Sweep& sweep, const BackwardAddresses& addresses, void* workspace) {
  SweepLaunch launch{};
  const auto set = [&](int i, const void* data) {
    launch.data[i] = const_cast<void*>(data);
    const Tensor& tensor = sweep.tensors[i];
    const auto word = static_cast<std::uintptr_t>(std::min(16, kWord * dtype_size(tensor.dtype)));
    if (tensor.in_words && reinterpret_cast<std::uintptr_t>(data) % word == 0)
      launch.in_words |= std::uint64_t{1} << i;
  };
  for (int i = 0; i < kNumBackwardPlaces; ++i) set(i, addresses.operands[i]);
  set(kSavedTensor, addresses.saved);
  set(kGradientTensor, addresses.output_gradient);
  set(kInputGradientTensor, addresses.input_gradient);
  for (int i = 0; i < kNumOperandPlaces; ++i) set(kOperandGradients + i, addresses.gradients[i]);
  launch.partial_sums = static_cast<double*>(workspace);
  std::copy_n(addresses.numbers, kMaxOperands, launch.numbers);
  return launch;
}

NormLaunch norm_launch(const PlannedBackward& plan, const BackwardAddresses& addresses,
                       std::uint8_t* memory) {
  const GroupNormShape& shape = plan.norm;
  NormLaunch norm{};
  norm.samples = shape.samples;
  norm.channels = shape.channels;
  norm.groups = shape.groups;
  norm.pixels = shape.pixels;
  norm.mean = addresses.mean;
  norm.rstd = addresses.rstd;
  if (shape.weight_operand >= 0) norm.weight = addresses.operands[shape.weight_operand];
  if (shape.shift_operand >= 0) norm.shift = addresses.operands[shape.shift_operand];
  norm.weight_dtype = shape.weight_dtype;
  norm.shift_dtype = shape.shift_dtype;
  norm.weight_stride = shape.weight_stride;
  norm.shift_stride = shape.shift_stride;
  norm.tables = memory + plan.norm_tables;
  if (plan.norm_sweep.actions.count == 0) return norm;
  norm.scale_sums = reinterpret_cast<double*>(memory + plan.norm_sums);
  norm.shift_sums = norm.scale_sums + shape.samples * shape.channels;
  norm.weight_gradient = reinterpret_cast<double*>(memory + plan.affine_sums);
  norm.shift_gradient = norm.weight_gradient + shape.channels;
  return norm;
}

void reduce(const PlannedBackward& plan, const PlannedSweep& planned,
            void* const (&outputs)[kNumOperandPlaces], const NormLaunch& norm, const double* partial_sums,
            Executor& executor) {
  Reductions reductions{};
  for (const PlannedSweep::OfPlace& of : planned.reductions) {
    Reduction& reduction = reductions.each[reductions.count++];
    reduction = of.reduction;
    reduction.partial_sums = partial_sums + of.begin;
    if (of.place == plan.norm.weight_operand) reduction.more = norm.weight_gradient;
    if (of.place == plan.norm.shift_operand) reduction.more = norm.shift_gradient;
    reduction.output = outputs[of.place];
  }
  if (reductions.count > 0) executor.reduce(reductions);
}

}  // namespace

PlannedSweep plan_sweep(const BackwardPass& pass, const BackwardProgram& program, bool in_registers) {
  return SweepPlanning(pass, program, in_registers).run();
}

PlannedBackward::PlannedBackward(const BackwardPass& pass, bool in_registers)
    : double_precision(pass.double_precision), norm(pass.norm) {
  if (!pass.norm_program.steps.empty()) norm_sweep = plan_sweep(pass, pass.norm_program, in_registers);
  sweep = plan_sweep(pass, pass.program, in_registers);
  const auto entries = static_cast<std::size_t>(norm.samples * norm.channels);
  const bool has_sums = norm_sweep.actions.count > 0;
  const std::int64_t partial_sums = std::max(norm_sweep.num_partial_sums, sweep.num_partial_sums);
  norm_sums = aligned(static_cast<std::size_t>(partial_sums) * sizeof(double));
  affine_sums = norm_sums + (has_sums ? aligned(2 * entries * sizeof(double)) : 0);
  norm_tables =
      affine_sums + (has_sums ? aligned(2 * static_cast<std::size_t>(norm.channels) * sizeof(double)) : 0);
  workspace_bytes = norm_tables + (norm.groups > 0 ? aligned(5 * entries * (double_precision ? 8 : 4)) : 0);
}

void run_backward(const PlannedBackward& plan, const BackwardAddresses& given, void* workspace,
                  Executor& executor) {
  auto* const memory = static_cast<std::uint8_t*>(workspace);
  const auto* const partial_sums = static_cast<const double*>(workspace);
  BackwardAddresses addresses = given;
  NormLaunch norm{};
  if (plan.norm.groups > 0) {
    norm = norm_launch(plan, addresses, memory);
    executor.set_tables(norm);
    const std::int64_t entries = plan.norm.samples * plan.norm.channels;
    std::uint8_t* table = memory + plan.norm_tables;
    for (const int place :
         {kMeanOperand, kScaleOperand, kShiftOperand, kNormOffsetOperand, kNormSlopeOperand}) {
      addresses.operands[place] = table;
      table += entries * (plan.double_precision ? 8 : 4);
    }
  }
  if (plan.norm_sweep.actions.count > 0) {
    executor.run_sweep(plan.norm_sweep, launch_of(plan.norm_sweep.sweep, addresses, workspace));
    void* outputs[kNumOperandPlaces] = {};
    outputs[kScaleOperand] = const_cast<double*>(norm.scale_sums);
    outputs[kShiftOperand] = const_cast<double*>(norm.shift_sums);
    reduce(plan, plan.norm_sweep, outputs, NormLaunch{}, partial_sums, executor);
    executor.set_lines(norm);
  }
  executor.run_sweep(plan.sweep, launch_of(plan.sweep.sweep, addresses, workspace));
  reduce(plan, plan.sweep, addresses.gradients, norm, partial_sums, executor);
}

}  // namespace epiconv::backward
