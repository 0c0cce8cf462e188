// Walks the elements in blocks: each step runs over the whole block, whose slots stay in the second cache.
//
// Sums: the walk is cut into pieces, which follow from the shapes; each adds up its elements in sums of its
// own, in float64, and those of all pieces are added in their order. Float32 sums would need a tree of them
// over strided elements to be as good, and doubles cost no more than the conversion.
#include "cpu/epilogue_backward.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/vector_math.h"
#include "gradient.h"
#include "operation_dispatch.h"

namespace epiconv {
namespace {

constexpr std::int64_t kMaxPieces = 128;

// Where the sums of each operand begin among those of a piece.
struct SumLayout {
  std::array<std::int64_t, kNumOperandPlaces> begin{};
  std::int64_t count = 0;

  SumLayout(const BackwardPass& pass, const GradientSet& gives) {
    for (int place = 0; place < kNumOperandPlaces; ++place) {
      begin[place] = count;
      if (gives.operands[place] && pass.gradients[place].is_summed) count += pass.gradients[place].num_sums;
    }
  }
};

double sum_of(const auto* values, int count) {
  double lanes[8] = {};
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += values[i + lane];
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += values[i];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <typename T>
void add_block(const Walk& walk, const Access& access, const BlockPosition& position, const T* values,
               double* sums) {
  const std::int64_t stride = access.strides[walk.rank - 1];
  for_each_row(walk, access, position, [&](std::int64_t offset, int begin, int end) {
    if (stride == 0) {
      sums[offset] += sum_of(values + begin, end - begin);
    } else {
      for (int i = begin; i < end; ++i) sums[offset + (i - begin) * stride] += values[i];
    }
  });
}

// The steps of a program over one block.
template <typename T>
class BackwardMachine {
 public:
  BackwardMachine(const BackwardPass& pass, const BackwardProgram& program,
                  const BackwardAddresses& addresses)
      : pass_(pass), program_(program), addresses_(addresses), layout_(pass, program.gives) {}

  // Sums of the whole walk, laid out as `layout` says.
  std::vector<double> run(int threads) const {
    const std::int64_t count = pass_.walk.count;
    // Sums of all pieces together take at most as much memory as a float32 gradient of the output.
    const std::int64_t affordable = count / (2 * std::max<std::int64_t>(layout_.count, 1));
    const std::int64_t useful = (count + kMinPerThread - 1) / kMinPerThread;
    const std::int64_t pieces = std::max<std::int64_t>(1, std::min({useful, affordable, kMaxPieces}));
    std::vector<double> sums(static_cast<std::size_t>(pieces * layout_.count), 0.0);
    parallel_for(pieces, 1, threads, [&](std::int64_t begin, std::int64_t end) {
      std::vector<T> slots(static_cast<std::size_t>(program_.num_slots + 4) * kBlock);
      for (std::int64_t piece = begin; piece < end; ++piece) {
        const std::int64_t last = count * (piece + 1) / pieces;
        for (std::int64_t first = count * piece / pieces; first < last; first += kBlock)
          run_block(locate(pass_.walk, first, last), slots.data(), sums.data() + piece * layout_.count);
      }
    });
    parallel_for(layout_.count, kMinPerThread, threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t piece = 1; piece < pieces; ++piece) {
        const double* own = sums.data() + piece * layout_.count;
        for (std::int64_t i = begin; i < end; ++i) sums[static_cast<std::size_t>(i)] += own[i];
      }
    });
    sums.resize(static_cast<std::size_t>(layout_.count));
    return sums;
  }

  const SumLayout& layout() const { return layout_; }

 private:
  void run_block(const BlockPosition& position, T* slots, double* sums) const {
    T* const scratch = slots + static_cast<std::size_t>(program_.num_slots) * kBlock;
    for (const BackwardStep& step : program_.steps) {
      T* const target = slots + static_cast<std::ptrdiff_t>(std::max(step.target, 0)) * kBlock;
      const T* const gradient = slots + static_cast<std::ptrdiff_t>(std::max(step.gradient, 0)) * kBlock;
      const T* sources[3];
      for (int k = 0; k < 3; ++k) sources[k] = source(step, k, position, slots, scratch + k * kBlock);
      switch (step.kind) {
        case BackwardStep::Kind::kReadSaved:
          read_block(pass_.walk, pass_.saved, addresses_.saved, position, target);
          break;
        case BackwardStep::Kind::kReadGradient:
          read_block(pass_.walk, pass_.output_gradient, addresses_.output_gradient, position, target);
          break;
        case BackwardStep::Kind::kEvaluate:
          evaluate(step, sources, target, position.count);
          break;
        case BackwardStep::Kind::kDifferentiate:
          into_target(step, target, scratch + 3 * kBlock, position.count, [&](T* result) {
            differentiate_step(step, sources, gradient, result, position.count);
          });
          break;
        case BackwardStep::Kind::kDifferentiateNorm:
          read_operand(kNormOffsetOperand, position, scratch + kBlock);
          read_operand(kNormSlopeOperand, position, scratch + 2 * kBlock);
          into_target(step, target, scratch + 3 * kBlock, position.count, [&](T* result) {
            const T* const offset = scratch + kBlock;
            const T* const slope = scratch + 2 * kBlock;
            for (int j = 0; j < position.count; ++j)
              result[j] = gradient[j] + (offset[j] + slope[j] * sources[0][j]);
          });
          break;
        case BackwardStep::Kind::kGiveInput:
          write_block(pass_.walk, pass_.input_gradient, addresses_.input_gradient, position, gradient);
          break;
        case BackwardStep::Kind::kGiveOperand:
          give_operand(step.argument, position, gradient, sums);
      }
    }
  }

  // The block of an argument; one that is not read is anything that can be.
  const T* source(const BackwardStep& step, int k, const BlockPosition& position, const T* slots,
                  T* scratch) const {
    if (k >= step.num_values) return scratch;
    if (step.source[k] == Source::kSlot) return slots + static_cast<std::ptrdiff_t>(step.index[k]) * kBlock;
    if (step.source[k] == Source::kOperand) {
      read_operand(step.index[k], position, scratch);
    } else {
      const double number = step.late[k] >= 0 ? addresses_.numbers[step.late[k]] : step.number[k];
      std::fill_n(scratch, position.count, static_cast<T>(number));
    }
    return scratch;
  }

  void read_operand(int place, const BlockPosition& position, T* values) const {
    read_block(pass_.walk, pass_.operands[place], addresses_.operands[place], position, values);
  }

  static void evaluate(const BackwardStep& step, const T* const* sources, T* target, int count) {
    visit_operation(step.op, [&]<typename Operation>() {
      const T p = static_cast<T>(step.p), q = static_cast<T>(step.q);
#pragma GCC ivdep  // an argument is the target itself or lies apart from it
      for (int j = 0; j < count; ++j) {
        target[j] = Operation::forward(ops::Inputs<T>{sources[0][j], sources[1][j], sources[2][j], p, q});
      }
    });
  }

  static void differentiate_step(const BackwardStep& step, const T* const* sources, const T* gradient,
                                 T* result, int count) {
    visit_operation(step.op, [&]<typename Operation>() {
      switch (step.argument) {
        case 0:
          return differentiate_argument<Operation, 0>(step, sources, gradient, result, count);
        case 1:
          if constexpr (Operation::kInfo.num_arguments() > 1)
            return differentiate_argument<Operation, 1>(step, sources, gradient, result, count);
          break;
        default:
          if constexpr (Operation::kInfo.num_arguments() > 2)
            return differentiate_argument<Operation, 2>(step, sources, gradient, result, count);
      }
    });
  }

  template <typename Operation, int kArgument>
  static void differentiate_argument(const BackwardStep& step, const T* const* sources, const T* gradient,
                                     T* result, int count) {
    const T p = static_cast<T>(step.p), q = static_cast<T>(step.q);
#pragma GCC ivdep  // what is read is the result itself or lies apart from it
    for (int j = 0; j < count; ++j) {
      const ops::Inputs<T> x{sources[0][j], sources[1][j], sources[2][j], p, q};
      result[j] = gradient_of_argument<Operation, kArgument>(x, gradient[j]);
    }
  }

  template <typename Compute>
  static void into_target(const BackwardStep& step, T* target, T* scratch, int count,
                          const Compute& compute) {
    if (!step.adds) return compute(target);
    compute(scratch);
    for (int j = 0; j < count; ++j) target[j] += scratch[j];
  }

  void give_operand(int place, const BlockPosition& position, const T* gradient, double* sums) const {
    const GradientAccess& to = pass_.gradients[place];
    if (to.is_summed) {
      add_block(pass_.walk, to.access, position, gradient, sums + layout_.begin[place]);
    } else {
      write_block(pass_.walk, to.access, addresses_.gradients[place], position, gradient);
    }
  }

  const BackwardPass& pass_;
  const BackwardProgram& program_;
  const BackwardAddresses& addresses_;
  const SumLayout layout_;
};

// One value for every (sample, channel): what the steps of a GroupNorm read.
template <typename T>
struct NormTables {
  std::vector<T> mean, scale, shift, offset, slope;

  void give(BackwardAddresses& addresses) const {
    addresses.operands[kMeanOperand] = mean.data();
    addresses.operands[kScaleOperand] = scale.data();
    addresses.operands[kShiftOperand] = shift.data();
    addresses.operands[kNormOffsetOperand] = offset.data();
    addresses.operands[kNormSlopeOperand] = slope.data();
  }
};

template <typename T>
class NormBackward {
 public:
  NormBackward(const BackwardPass& pass, const BackwardAddresses& addresses)
      : norm_(pass.norm),
        mean_(static_cast<const T*>(addresses.mean)),
        rstd_(static_cast<const T*>(addresses.rstd)) {
    const std::vector<double> weight =
        affine(addresses, norm_.weight_operand, norm_.weight_dtype, norm_.weight_stride, 1.0);
    const std::vector<double> shift =
        affine(addresses, norm_.shift_operand, norm_.shift_dtype, norm_.shift_stride, 0.0);
    for_each_entry([&](std::size_t group, std::size_t k, std::size_t) {
      tables_.mean.push_back(-mean_[group]);
      tables_.scale.push_back(static_cast<T>(static_cast<double>(rstd_[group]) * weight[k]));
      tables_.shift.push_back(static_cast<T>(shift[k]));
    });
    tables_.offset.assign(tables_.mean.size(), T(0));
    tables_.slope.assign(tables_.mean.size(), T(0));
    weight_ = weight;
  }

  const NormTables<T>& tables() const { return tables_; }

  // From the sums of the gradients of scale and shift.
  void find_lines(const double* scale_sums, const double* shift_sums) {
    const auto groups = static_cast<std::size_t>(norm_.samples * norm_.groups);
    std::vector<double> of_value(groups, 0.0), of_slope(groups, 0.0);
    for_each_entry([&](std::size_t group, std::size_t k, std::size_t entry) {
      of_value[group] += weight_[k] * shift_sums[entry];
      of_slope[group] += weight_[k] * scale_sums[entry];
    });
    const double elements = static_cast<double>(norm_.channels / norm_.groups * norm_.pixels);
    for_each_entry([&](std::size_t group, std::size_t, std::size_t entry) {
      const double rstd = rstd_[group];
      tables_.offset[entry] = static_cast<T>(-rstd / elements * of_value[group]);
      tables_.slope[entry] = static_cast<T>(-rstd * rstd * rstd / elements * of_slope[group]);
    });
  }

  // Adds the gradients of the affine to the sums of its operands, K of them; nullptr where one is not wanted.
  void add_affine(const double* scale_sums, const double* shift_sums, double* weight, double* shift) const {
    for_each_entry([&](std::size_t group, std::size_t k, std::size_t entry) {
      if (weight != nullptr) weight[k] += static_cast<double>(rstd_[group]) * scale_sums[entry];
      if (shift != nullptr) shift[k] += shift_sums[entry];
    });
  }

 private:
  // Calls visit(group, channel, entry) for every entry of the tables.
  template <typename Visit>
  void for_each_entry(const Visit& visit) const {
    const std::int64_t group_channels = norm_.channels / norm_.groups;
    std::size_t entry = 0;
    for (std::int64_t sample = 0; sample < norm_.samples; ++sample) {
      for (std::int64_t k = 0; k < norm_.channels; ++k, ++entry) {
        visit(static_cast<std::size_t>(sample * norm_.groups + k / group_channels),
              static_cast<std::size_t>(k), entry);
      }
    }
  }

  std::vector<double> affine(const BackwardAddresses& addresses, int operand, DType dtype,
                             std::int64_t stride, double otherwise) const {
    std::vector<double> values(static_cast<std::size_t>(norm_.channels), otherwise);
    if (operand < 0 || addresses.operands[operand] == nullptr) return values;
    visit_reader<double>(dtype, [&](auto read) {
      for (std::int64_t k = 0; k < norm_.channels; ++k)
        values[static_cast<std::size_t>(k)] = read(addresses.operands[operand], k * stride);
    });
    return values;
  }

  const GroupNormShape& norm_;
  const T* const mean_;
  const T* const rstd_;
  std::vector<double> weight_;
  NormTables<T> tables_;
};

void store_sums(const GradientAccess& gradient, const double* sums, void* data) {
  Walk line;
  line.rank = 1;
  line.extents[0] = line.count = gradient.num_sums;
  Access access;
  access.dtype = gradient.access.dtype;
  access.strides[0] = 1;
  for (std::int64_t first = 0; first < line.count; first += kBlock)
    write_block(line, access, data, locate(line, first, line.count), sums + first);
}

template <typename T>
void run_typed(const BackwardPass& pass, const BackwardAddresses& given, int threads) {
  BackwardAddresses addresses = given;
  std::vector<double> norm_sums;
  std::optional<NormBackward<T>> norm;
  const BackwardMachine<T> norm_machine(pass, pass.norm_program, addresses);
  const double* scale_sums = nullptr;
  const double* shift_sums = nullptr;
  if (pass.norm.groups > 0) {
    norm.emplace(pass, addresses);
    norm->tables().give(addresses);
    if (!pass.norm_program.steps.empty()) {
      norm_sums = norm_machine.run(threads);
      scale_sums = norm_sums.data() + norm_machine.layout().begin[kScaleOperand];
      shift_sums = norm_sums.data() + norm_machine.layout().begin[kShiftOperand];
      norm->find_lines(scale_sums, shift_sums);
    }
  }
  const BackwardMachine<T> machine(pass, pass.program, addresses);
  std::vector<double> sums = machine.run(threads);
  const auto sums_of = [&](int place) {
    return place >= 0 && pass.program.gives.operands[place] ? sums.data() + machine.layout().begin[place]
                                                            : nullptr;
  };
  if (scale_sums != nullptr)
    norm->add_affine(scale_sums, shift_sums, sums_of(pass.norm.weight_operand),
                     sums_of(pass.norm.shift_operand));
  for (int place = 0; place < kNumOperandPlaces; ++place) {
    const GradientAccess& gradient = pass.gradients[place];
    if (pass.program.gives.operands[place] && gradient.is_summed)
      store_sums(gradient, sums_of(place), addresses.gradients[place]);
  }
}

}  // namespace

void run_backward_pass_cpu(const BackwardPass& pass, const BackwardAddresses& addresses, int threads) {
  if (pass.double_precision) {
    run_typed<double>(pass, addresses, threads);
  } else {
    run_typed<float>(pass, addresses, threads);
  }
}

}  // namespace epiconv
