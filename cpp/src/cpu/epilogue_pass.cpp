// Walks the elements in blocks: a block of the input is read into the accumulator, each step then runs over
// the whole block, and the accumulator is written to the output.
#include "cpu/epilogue_pass.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/vector_math.h"
#include "operation_dispatch.h"

namespace epiconv {
namespace {

// The program over one block.
template <typename T>
struct Machine {
  const Pass& pass;
  const PassPointers& pointers;
  std::vector<Step<T>> steps;

  Machine(const Pass& the_pass, const PassPointers& the_pointers)
      : pass(the_pass), pointers(the_pointers), steps(the_pass.program.steps.size()) {
    fill_steps(pass, pointers, steps.data());
  }

  // Reads a block of the input and runs the first num_steps steps; the result is in `accumulator`. They run
  // over whole vectors, behind the block's end too: the vector version of a function may round otherwise than
  // the one for a single element, and an element's bits are not to depend on where it lies.
  void run(const BlockPosition& position, int num_steps, T* accumulator) const {
    constexpr int kVectors = 64;  // elements of the widest ones, or more
    static_assert(kBlock % kVectors == 0);
    const int count = (position.count + kVectors - 1) / kVectors * kVectors;
    T slots[kMaxLiveValues][kBlock];
    T arguments[3][kBlock];
    const auto read = [&](const Access& access, const void* data, T* values) {
      read_block(pass.walk, access, data, position, values);
      std::fill(values + position.count, values + count, T{});
    };
    read(pass.input, pointers.input, accumulator);
    const auto save = [&](int slot) {
      if (slot >= 0) std::copy_n(accumulator, count, slots[slot]);
    };
    save(pass.program.save_input);
    for (int i = 0; i < num_steps; ++i) {
      const Step<T>& step = steps[i];
      const T* sources[3] = {arguments[0], arguments[1], arguments[2]};
      for (int k = 0; k < step.num_values; ++k) {
        const int index = step.index[k];
        switch (step.source[k]) {
          case Source::kAccumulator:
            sources[k] = accumulator;
            break;
          case Source::kSlot:
            sources[k] = slots[index];
            break;
          case Source::kNumber:
            std::fill_n(arguments[k], count, step.number[k]);
            break;
          case Source::kOperand:
            read(pass.operands[index], pointers.operands[index], arguments[k]);
        }
      }
      for (int k = step.num_values; k < 3; ++k) sources[k] = accumulator;  // not read, but must be readable
      visit_operation(step.op, [&]<typename Operation>() {
        const T* a = sources[0];
        const T* b = sources[1];
        const T* c = sources[2];
        const T p = step.p;
        const T q = step.q;
#pragma GCC ivdep  // an argument is the accumulator itself or lies apart from it
        for (int j = 0; j < count; ++j) {
          accumulator[j] = Operation::forward(ops::Inputs<T>{a[j], b[j], c[j], p, q});
        }
      });
      save(step.save);
    }
  }
};

// Sums and sums of squares would lose the variance of values with a large mean: counts, means and squared
// deviations are merged instead (Chan, Golub, LeVeque, 1979).
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count;
    const double distance = other.mean - mean;
    mean += distance * (other.count / total);
    squares += other.squares + distance * distance * (count * other.count / total);
    count = total;
  }
};

// Moments of values[0], values[stride], …
template <typename T>
Moments moments_of(const T* values, std::int64_t count, std::int64_t stride) {
  Moments moments;
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += values[i * stride];
  moments.count = static_cast<double>(count);
  moments.mean = sum / moments.count;
  for (std::int64_t i = 0; i < count; ++i) {
    const double distance = values[i * stride] - moments.mean;
    moments.squares += distance * distance;
  }
  return moments;
}

// Adds a block of the walk to the moments of its channels; `within` is where it begins in its sample.
template <typename T>
void add_block(const GroupNormShape& norm, const T* values, int count, std::int64_t within,
               Moments* channels) {
  if (norm.channels_last) {
    const std::int64_t distinct = std::min<std::int64_t>(norm.channels, count);
    for (std::int64_t j = 0; j < distinct; ++j) {
      const std::int64_t pixels = (count - j + norm.channels - 1) / norm.channels;
      channels[(within + j) % norm.channels].merge(moments_of(values + j, pixels, norm.channels));
    }
    return;
  }
  for (std::int64_t j = 0; j < count;) {
    const std::int64_t channel = (within + j) / norm.pixels;
    const std::int64_t run = std::min<std::int64_t>(count - j, (channel + 1) * norm.pixels - within - j);
    channels[channel].merge(moments_of(values + j, run, 1));
    j += run;
  }
}

constexpr std::int64_t kPiece = 256 * kBlock;  // elements of a sample whose moments are gathered together

// Moments of every (sample, piece, channel). Pieces depend on the shape alone, so that the sums do not depend
// on the number of threads.
template <typename T>
std::vector<Moments> gather_moments(const Pass& pass, const Machine<T>& machine, std::int64_t pieces,
                                    int threads) {
  const GroupNormShape& norm = pass.norm;
  const std::int64_t sample_size = norm.channels * norm.pixels;
  std::vector<Moments> moments(static_cast<std::size_t>(norm.samples * pieces * norm.channels));
  const std::int64_t items_that_pay =
      std::max<std::int64_t>(1, kMinPerThread / std::min(sample_size, kPiece));
  parallel_for(norm.samples * pieces, items_that_pay, threads, [&](std::int64_t begin, std::int64_t end) {
    T values[kBlock];
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t sample_begin = item / pieces * sample_size;
      const std::int64_t first = sample_begin + item % pieces * kPiece;
      const std::int64_t last = std::min(first + kPiece, sample_begin + sample_size);
      for (std::int64_t i = first; i < last; i += kBlock) {
        const BlockPosition position = locate(pass.walk, i, last);
        machine.run(position, pass.program.num_before_norm, values);
        add_block(norm, values, position.count, i - sample_begin, moments.data() + item * norm.channels);
      }
    }
  });
  return moments;
}

// Mean, scale and shift of every (sample, channel): the operands kMeanOperand, kScaleOperand, kShiftOperand.
template <typename T>
struct NormTables {
  std::vector<T> mean, scale, shift;
};

template <typename T>
NormTables<T> norm_tables(const Pass& pass, const PassPointers& pointers, const Machine<T>& machine,
                          int threads) {
  const GroupNormShape& norm = pass.norm;
  const std::int64_t pieces = (norm.channels * norm.pixels + kPiece - 1) / kPiece;
  const std::vector<Moments> moments = gather_moments(pass, machine, pieces, threads);
  const auto entries = static_cast<std::size_t>(norm.samples * norm.channels);
  NormTables<T> tables{std::vector<T>(entries), std::vector<T>(entries), std::vector<T>(entries)};
  const auto affine = [&](int operand, DType dtype, std::int64_t offset, double value) {
    if (operand >= 0) {
      visit_reader<double>(dtype, [&](auto read) { value = read(pointers.operands[operand], offset); });
    }
    return value;
  };
  const std::int64_t group_channels = norm.channels / norm.groups;
  for (std::int64_t item = 0; item < norm.samples * norm.groups; ++item) {
    const std::int64_t sample = item / norm.groups;
    const std::int64_t first_channel = item % norm.groups * group_channels;
    Moments total;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      for (std::int64_t k = first_channel; k < first_channel + group_channels; ++k) {
        total.merge(moments[static_cast<std::size_t>((sample * pieces + piece) * norm.channels + k)]);
      }
    }
    const double scale = 1.0 / std::sqrt(total.squares / total.count + norm.epsilon);
    if (pointers.mean != nullptr) static_cast<T*>(pointers.mean)[item] = static_cast<T>(total.mean);
    if (pointers.rstd != nullptr) static_cast<T*>(pointers.rstd)[item] = static_cast<T>(scale);
    for (std::int64_t k = first_channel; k < first_channel + group_channels; ++k) {
      const auto entry = static_cast<std::size_t>(sample * norm.channels + k);
      const double weight = affine(norm.weight_operand, norm.weight_dtype, k * norm.weight_stride, 1.0);
      tables.mean[entry] = static_cast<T>(-total.mean);
      tables.scale[entry] = static_cast<T>(scale * weight);
      tables.shift[entry] =
          static_cast<T>(affine(norm.shift_operand, norm.shift_dtype, k * norm.shift_stride, 0.0));
    }
  }
  return tables;
}

template <typename T>
void run_typed(const Pass& pass, const PassPointers& given, int threads) {
  PassPointers pointers = given;
  const Machine<T> machine(pass, pointers);
  NormTables<T> tables;
  if (pass.program.has_group_norm) {
    tables = norm_tables<T>(pass, pointers, machine, threads);
    pointers.operands[kMeanOperand] = tables.mean.data();
    pointers.operands[kScaleOperand] = tables.scale.data();
    pointers.operands[kShiftOperand] = tables.shift.data();
  }
  const auto num_steps = static_cast<int>(pass.program.steps.size());
  parallel_for(pass.walk.count, kMinPerThread, threads, [&](std::int64_t begin, std::int64_t end) {
    T values[kBlock];
    for (std::int64_t first = begin; first < end; first += kBlock) {
      const BlockPosition position = locate(pass.walk, first, end);
      machine.run(position, num_steps, values);
      write_block(pass.walk, pass.output, pointers.output, position, values);
    }
  });
}

}  // namespace

void run_pass_cpu(const Pass& pass, const PassPointers& pointers, int threads) {
  if (pass.double_precision) {
    run_typed<double>(pass, pointers, threads);
  } else {
    run_typed<float>(pass, pointers, threads);
  }
}

}  // namespace epiconv
