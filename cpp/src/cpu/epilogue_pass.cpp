// Walks the elements in blocks: a block of the input is read into the accumulator, each step then runs over
// the whole block, and the accumulator is written to the output.
#include "cpu/epilogue_pass.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/vector_math.h"
#include "operation_dispatch.h"

namespace epiconv {
namespace {

constexpr int kBlock = 256;                    // elements; a block of every slot stays in the first cache
constexpr std::int64_t kMinPerThread = 32768;  // elements that pay for starting a thread

// Calls body(begin, end) over pieces of [0, count), on several threads where it pays.
template <typename Body>
void parallel_for(std::int64_t count, std::int64_t min_per_thread, int threads, const Body& body) {
  const std::int64_t useful = (count + min_per_thread - 1) / min_per_thread;
  const auto workers = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
  const auto begin_of = [&](int worker) { return count * worker / workers; };
  std::vector<std::jthread> others;
  for (int worker = 1; worker < workers; ++worker) {
    others.emplace_back([&, worker] { body(begin_of(worker), begin_of(worker + 1)); });
  }
  if (workers > 0) body(begin_of(0), begin_of(1));
}

// ---- Elements in memory.

float from_bfloat16(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

// By way of a float whose exponent is 112 too small, so that float16's denormals come out as floats.
float from_float16(std::uint16_t bits) {
  const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return __builtin_bit_cast(float, sign | magnitude | 0x7f800000u);  // inf, NaN
  const float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) | sign);
}

std::uint16_t to_bfloat16(float value) {
  if (value != value) return 0x7fc0u;
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, ops::math::round_to_bfloat16(value)) >>
                                    16);
}

std::uint16_t to_float16(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, ops::math::round_to_float16(value));
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude == 0x7f800000u) return sign | 0x7c00u;
  // Exact: the value is a float16 already.
  const float scaled = __builtin_bit_cast(float, magnitude) * 0x1p-112f;
  return sign | static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, scaled) >> 13);
}

// Calls visitor(read) with a function from (address, element) to T for a dtype.
template <typename T, typename Visitor>
void visit_reader(DType dtype, const Visitor& visitor) {
  const auto plain = [&]<typename Stored>(Stored) {
    visitor(
        [](const void* data, std::int64_t i) { return static_cast<T>(static_cast<const Stored*>(data)[i]); });
  };
  switch (dtype) {
    case DType::kFloat32:
      return plain(float{});
    case DType::kFloat64:
      return plain(double{});
    case DType::kFloat16:
      return visitor([](const void* data, std::int64_t i) {
        return static_cast<T>(from_float16(static_cast<const std::uint16_t*>(data)[i]));
      });
    case DType::kBFloat16:
      return visitor([](const void* data, std::int64_t i) {
        return static_cast<T>(from_bfloat16(static_cast<const std::uint16_t*>(data)[i]));
      });
    case DType::kBool:
    case DType::kUInt8:
      return plain(std::uint8_t{});
    case DType::kInt8:
      return plain(std::int8_t{});
    case DType::kInt16:
      return plain(std::int16_t{});
    case DType::kInt32:
      return plain(std::int32_t{});
    case DType::kInt64:
      return plain(std::int64_t{});
  }
}

// Where a block of the walk begins, and the offsets of its elements in a tensor.
struct BlockPosition {
  std::int64_t first;
  int count;
  std::array<std::int64_t, kMaxDims> coordinates;
};

BlockPosition locate(const Walk& walk, std::int64_t first, std::int64_t end) {
  BlockPosition position{first, static_cast<int>(std::min<std::int64_t>(kBlock, end - first)), {}};
  for (int d = walk.rank - 1; d >= 0; --d) {
    position.coordinates[d] = first % walk.extents[d];
    first /= walk.extents[d];
  }
  return position;
}

// Calls body(offset, begin, end) for the runs of a block that lie in one innermost row: elements begin…end
// of the block are at offset, offset + stride, …
template <typename Body>
void for_each_row(const Walk& walk, const Access& access, const BlockPosition& position, const Body& body) {
  std::array<std::int64_t, kMaxDims> coordinates = position.coordinates;
  const int inner = walk.rank - 1;
  for (int begin = 0; begin < position.count;) {
    std::int64_t offset = 0;
    for (int d = 0; d < walk.rank; ++d) offset += coordinates[d] * access.strides[d];
    const auto run = static_cast<int>(
        std::min<std::int64_t>(position.count - begin, walk.extents[inner] - coordinates[inner]));
    body(offset, begin, begin + run);
    begin += run;
    coordinates[inner] = 0;
    for (int d = inner - 1; d >= 0 && ++coordinates[d] == walk.extents[d]; --d) coordinates[d] = 0;
  }
}

template <typename T>
void read_block(const Walk& walk, const Access& access, const void* data, const BlockPosition& position,
                T* values) {
  const std::int64_t stride = access.strides[walk.rank - 1];
  visit_reader<T>(access.dtype, [&](auto read) {
    for_each_row(walk, access, position, [&](std::int64_t offset, int begin, int end) {
      if (stride == 0) {
        std::fill(values + begin, values + end, read(data, offset));
      } else if (stride == 1) {  // apart, since this loop becomes vector instructions
        for (int i = begin; i < end; ++i) values[i] = read(data, offset + (i - begin));
      } else {
        for (int i = begin; i < end; ++i) values[i] = read(data, offset + (i - begin) * stride);
      }
    });
  });
}

template <typename T>
void write_block(const Walk& walk, const Access& access, void* data, const BlockPosition& position,
                 const T* values) {
  const std::int64_t stride = access.strides[walk.rank - 1];
  const auto write = [&](auto* typed, auto convert) {
    for_each_row(walk, access, position, [&](std::int64_t offset, int begin, int end) {
      if (stride == 1) {
        for (int i = begin; i < end; ++i) typed[offset + (i - begin)] = convert(values[i]);
      } else {
        for (int i = begin; i < end; ++i) typed[offset + (i - begin) * stride] = convert(values[i]);
      }
    });
  };
  switch (access.dtype) {
    case DType::kFloat16:
      return write(static_cast<std::uint16_t*>(data),
                   [](T value) { return to_float16(static_cast<float>(value)); });
    case DType::kBFloat16:
      return write(static_cast<std::uint16_t*>(data),
                   [](T value) { return to_bfloat16(static_cast<float>(value)); });
    case DType::kFloat64:
      return write(static_cast<double*>(data), [](T value) { return static_cast<double>(value); });
    default:
      return write(static_cast<float*>(data), [](T value) { return static_cast<float>(value); });
  }
}

// ---- The program over one block.

template <typename T>
struct Machine {
  const Pass& pass;
  const PassPointers& pointers;
  std::vector<Step<T>> steps;

  Machine(const Pass& the_pass, const PassPointers& the_pointers)
      : pass(the_pass), pointers(the_pointers), steps(the_pass.program.steps.size()) {
    fill_steps(pass, pointers, steps.data());
  }

  // Reads a block of the input and runs the first num_steps steps; the result is in `accumulator`.
  void run(const BlockPosition& position, int num_steps, T* accumulator) const {
    T slots[kMaxLiveValues][kBlock];
    T arguments[3][kBlock];
    read_block(pass.walk, pass.input, pointers.input, position, accumulator);
    const auto save = [&](int slot) {
      if (slot >= 0) std::copy_n(accumulator, position.count, slots[slot]);
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
            std::fill_n(arguments[k], position.count, step.number[k]);
            break;
          case Source::kOperand:
            read_block(pass.walk, pass.operands[index], pointers.operands[index], position, arguments[k]);
        }
      }
      for (int k = step.num_values; k < 3; ++k) sources[k] = accumulator;  // not read, but must be readable
      visit_operation(step.op, [&]<typename Operation>() {
        const T* a = sources[0];
        const T* b = sources[1];
        const T* c = sources[2];
        const T p = step.p;
        const T q = step.q;
        const int count = position.count;
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
