// The kernels of a backward pass, run by the host one thread after another, against the CPU's engine: tiles,
// partial sums and their reduction, for random shapes, strides and operands. Values are small integers and
// programs keep them so, so that every sum is exact; those with a GroupNorm run in float64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backward/sums.h"
#include "backward/tile.h"
#include "backward/tiles.h"
#include "cpu/blocks.h"
#include "cpu/epilogue_backward.h"
#include "expectations.h"
#include "plan/backward_pass_plan.h"

using namespace epiconv;
using namespace expectations;

namespace {

using Extents = std::vector<std::int64_t>;

struct HostMemory {
  template <typename T>
  static T load(const void* data, DType dtype, std::int64_t offset) {
    T value{};
    visit_reader<T>(dtype, [&](auto read) { value = read(data, offset); });
    return value;
  }
  template <typename T>
  static void load_word(const void* data, DType dtype, std::int64_t offset, T* values) {
    check_word(data, dtype, offset);
    for (int j = 0; j < backward::kWord; ++j) values[j] = load<T>(data, dtype, offset + j);
  }
  template <typename T>
  static void store(void* data, DType dtype, std::int64_t offset, T value) {
    Walk one;
    one.rank = 1;
    one.extents[0] = one.count = 1;
    Access access;
    access.dtype = dtype;
    access.strides[0] = 1;
    write_block(one, access, static_cast<std::uint8_t*>(data) + offset * dtype_size(dtype), locate(one, 0, 1),
                &value);
  }
  template <typename T>
  static void store_word(void* data, DType dtype, std::int64_t offset, const T* values) {
    check_word(data, dtype, offset);
    for (int j = 0; j < backward::kWord; ++j) store<T>(data, dtype, offset + j, values[j]);
  }
  static void check_word(const void* data, DType dtype, std::int64_t offset) {
    const auto size = static_cast<std::uintptr_t>(dtype_size(dtype));
    const auto address = reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(offset) * size;
    expect(address % std::min<std::uintptr_t>(16, backward::kWord * size) == 0, "a word is not aligned");
  }
};

struct Nothing {};

// Threads of a block, each of which does its part of a phase before the next one does.
template <typename TheOwn>
struct HostCrew {
  using Own = TheOwn;
  std::vector<Own> own;

  explicit HostCrew(int threads) : own(static_cast<std::size_t>(threads)) {}
  template <typename Part>
  void each(const Part& part) {
    for (std::size_t thread = 0; thread < own.size(); ++thread) part(static_cast<int>(thread), own[thread]);
  }
};

constexpr int kMostSlots = 96;

template <typename T, bool kInRegisters>
class HostExecutor final : public backward::Executor {
 public:
  void run_sweep(const backward::PlannedSweep& planned, const backward::SweepLaunch& launch) override {
    using Own = std::conditional_t<kInRegisters, backward::InRegisters<T, kMostSlots, kNumOperandPlaces>,
                                   backward::InMemory<T>>;
    const backward::Sweep& sweep = planned.sweep;
    expect(planned.shared_bytes <= backward::kSharedBytes, planned.shared_bytes, " bytes of shared memory");
    // Blocks find in shared memory what others left; here it is NaN.
    std::vector<std::uint64_t> shared(planned.shared_bytes / 8 + 1, ~std::uint64_t{0});
    const auto memory = backward::TileMemory<T>::of(sweep, shared.data(), kInRegisters);
    HostCrew<Own> crew(sweep.threads);
    const backward::AnyProgram program{planned.actions};
    for (std::int64_t tile = 0; tile < sweep.num_tiles; ++tile)
      backward::Tile<T, HostMemory, backward::AnyProgram>(sweep, program, launch, tile, memory).run(crew);
  }

  void reduce(const backward::Reductions& reductions) override {
    HostCrew<Nothing> crew(backward::kMostThreads);
    double shared[backward::kMostThreads];
    for (int i = 0; i < reductions.count; ++i) {
      const backward::Reduction& reduction = reductions.each[i];
      for (std::int64_t block = 0; block < backward::reduction_blocks(reduction); ++block)
        backward::reduce_block<HostMemory>(reduction, block, shared, crew);
    }
  }

  void set_tables(const backward::NormLaunch& norm) override {
    for (std::int64_t entry = 0; entry < norm.samples * norm.channels; ++entry)
      backward::set_tables<T, HostMemory>(norm, entry);
  }

  void set_lines(const backward::NormLaunch& norm) override {
    HostCrew<Nothing> crew(backward::kMostThreads);
    double shared[2 * backward::kMostThreads];
    for (std::int64_t group = 0; group < norm.samples * norm.groups; ++group)
      backward::set_lines<T, HostMemory>(norm, group, shared, crew);
    for (std::int64_t channel = 0; channel < norm.channels; ++channel) backward::add_affine<T>(norm, channel);
  }
};

std::mt19937 random_numbers(1);
int below(int n) { return static_cast<int>(random_numbers() % static_cast<unsigned>(n)); }

// Of a dense tensor whose dimensions lie in memory in the given order, the outermost first; `gap` elements
// behind each row.
Extents strides_in_order(const Extents& extents, const std::vector<int>& order, int gap) {
  Extents strides(extents.size());
  std::int64_t stride = 1;
  for (std::size_t i = order.size(); i-- > 0;) {
    const auto d = static_cast<std::size_t>(order[i]);
    strides[d] = stride;
    stride *= extents[d];
    if (i + 1 == order.size()) stride += gap;
  }
  return strides;
}

std::vector<int> order_of(std::size_t rank, bool channels_last) {
  std::vector<int> order(rank);
  std::iota(order.begin(), order.end(), 0);
  if (channels_last) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  return order;
}

Extents dense(const Extents& extents) {
  std::vector<int> order(extents.size());
  std::iota(order.begin(), order.end(), 0);
  return strides_in_order(extents, order, 0);
}

struct Buffer {
  DType dtype = DType::kFloat32;
  std::vector<std::uint8_t> bytes;
  std::size_t begin = 0;  // 0, or one element

  // Small integers, or 99; of a span that may be larger than the elements.
  Buffer() = default;
  Buffer(DType the_dtype, const Extents& extents, const Extents& strides, bool is_zero = false)
      : dtype(the_dtype) {
    std::int64_t reach = 1;
    for (std::size_t d = 0; d < extents.size(); ++d)
      reach += std::max<std::int64_t>(extents[d] - 1, 0) * strides[d];
    bytes.resize(static_cast<std::size_t>(reach * dtype_size(dtype)) + 16);
    if (!is_zero && below(6) == 0) begin = static_cast<std::size_t>(dtype_size(dtype));
    for (std::int64_t i = 0; i < reach; ++i) set(i, is_zero ? 99.0 : below(5) - 2);
  }
  void set(std::int64_t i, double value) { HostMemory::store<double>(data(), dtype, i, value); }
  void* data() { return bytes.data() + begin; }
};

const char* const kPrograms[] = {
    "v1 = add(v0, b0)",
    "v1 = mul(v0, b0); v2 = relu(v1); v3 = add(v2, b1)",
    "v1 = minimum(v0, b0); v2 = mul(v1, b1); v3 = sub(v2, b0); v4 = mul(v3, v1)",
    "v1 = relu(v0); v2 = mul(v1, 2.0); v3 = add(v2, v0); v4 = maximum(v3, b0); v5 = mul(v4, b1); v6 = "
    "add(v5, b2)",
    "v1 = where(v0, b0, b1); v2 = mul(v1, v0)",
    "v1 = sub(b0, v0); v2 = clamp(v1, min=-1.0, max=1.0); v3 = mul(v2, b1); v4 = mul(v3, b1)",
};
const char* const kNormPrograms[] = {
    "v1 = group_norm(v0, 2, weight=b0, bias=b1, eps=0.5); v2 = mul(v1, b2)",
    "v1 = add(v0, b2); v2 = group_norm(v1, 2, weight=b0, bias=b1, eps=0.5); v3 = relu(v2); v4 = add(v3, v1)",
    "v1 = group_norm(v0, 2, eps=0.5); v2 = mul(v1, v1); v3 = add(v2, b0)",
    "v1 = mul(v0, b1); v2 = group_norm(v1, 2, weight=b0, eps=0.5); v3 = mul(v2, b2)",
    "v1 = prelu(v0, b0); v2 = group_norm(v1, 2, weight=b0, bias=b1, eps=0.5)",
};

// An operand's extents: of each dimension all or one, or fewer dimensions.
Extents operand_extents(const Extents& extents) {
  const int kind = below(6);
  if (kind == 0) return {};
  Extents result = extents;
  for (std::int64_t& extent : result) {
    if (kind == 1 || below(2) == 0) extent = 1;
  }
  if (kind == 2) return extents;
  if (kind == 1) result[1] = extents[1];
  if (kind == 3) result.erase(result.begin(), result.begin() + below(static_cast<int>(extents.size())));
  return result;
}

struct Case {
  BackwardProblem problem;
  Buffer saved, gradient, bias, mean, rstd;
  std::vector<Buffer> operands;
};

Case random_case(bool with_norm) {
  Case result;
  BackwardProblem& problem = result.problem;
  const std::size_t rank = 3 + static_cast<std::size_t>(below(3));
  const int sizes[] = {1, 2, 3, 5, 8, 12, 33, 70};
  problem.extents = {sizes[below(5)], with_norm ? 2 * sizes[below(6)] : sizes[below(8)]};
  while (problem.extents.size() < rank) problem.extents.push_back(sizes[below(rank == 3 ? 8 : 6)]);
  if (below(12) == 0) problem.extents.back() = rank == 3 ? 9001 : 70;
  const std::string text =
      with_norm ? kNormPrograms[below(std::size(kNormPrograms))] : kPrograms[below(std::size(kPrograms))];
  problem.program = Program::parse(text);
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
  const DType dtype = with_norm ? DType::kFloat64 : dtypes[below(4)];
  problem.input_dtype = problem.output_dtype = problem.gradient_dtype = dtype;
  const auto order = order_of(rank, below(2) == 1);
  const auto strides = [&] {
    return strides_in_order(problem.extents, order, below(4) == 0 ? 1 + below(4) : 0);
  };
  problem.saved_strides = strides();
  problem.gradient_strides = below(6) == 0 ? dense(problem.extents) : strides();
  result.saved = Buffer(dtype, problem.extents, problem.saved_strides);
  result.gradient = Buffer(dtype, problem.extents, problem.gradient_strides);
  problem.input_gradient = GradientLayout{dtype, strides()};
  if (below(2) == 1) {
    problem.bias = OperandLayout{dtype, {problem.extents[1]}, {1}, false};
    problem.bias_gradient = GradientLayout{dtype, {1}};
    result.bias = Buffer(dtype, problem.bias->extents, problem.bias->strides);
  }
  for (int i = 0; i < problem.program.num_operands(); ++i) {
    OperandLayout operand;
    operand.dtype = dtype;
    const bool is_channel = problem.program.operand_is_channel(i);
    operand.extents = is_channel ? Extents{problem.extents[1]} : operand_extents(problem.extents);
    const bool is_whole = operand.extents == problem.extents;
    operand.strides = is_whole ? strides() : dense(operand.extents);
    problem.operand_gradients.push_back(GradientLayout{dtype, is_whole ? strides() : dense(operand.extents)});
    result.operands.emplace_back(dtype, operand.extents, operand.strides);
    problem.operands.push_back(operand);
  }
  if (with_norm) {
    const Extents groups{problem.extents[0], 2};
    result.mean = Buffer(dtype, groups, dense(groups));
    result.rstd = Buffer(dtype, groups, dense(groups));
  }
  subject = concat(text, " over ", problem.extents.size(), " dimensions:");
  for (const std::int64_t extent : problem.extents) subject += concat(" ", extent);
  return result;
}

// Gradients that no operation passes are not wanted; kept out of the problem.
void keep_given(BackwardProblem& problem) {
  std::vector<bool> wanted(problem.operands.size(), true);
  const BackwardNeeds needs =
      backward_needs(problem.program, true, problem.bias.has_value(), wanted, Saved::kInput);
  if (!needs.gives_input) problem.input_gradient.reset();
  if (!needs.gives_bias) problem.bias_gradient.reset();
  for (std::size_t i = 0; i < problem.operands.size(); ++i) {
    if (!needs.gives_operand[i]) problem.operand_gradients[i].reset();
  }
}

struct Results {
  Buffer input, bias;
  std::vector<Buffer> operands;
};

template <typename Run>
Results run_case(Case& given, const Run& run) {
  const BackwardProblem& problem = given.problem;
  Results results;
  BackwardAddresses addresses;
  addresses.saved = given.saved.data();
  addresses.output_gradient = given.gradient.data();
  addresses.mean = given.mean.data();
  addresses.rstd = given.rstd.data();
  const auto make = [](const std::optional<GradientLayout>& layout, const Extents& extents) {
    return layout ? Buffer(layout->dtype, extents, layout->strides, true) : Buffer();
  };
  results.input = make(problem.input_gradient, problem.extents);
  addresses.input_gradient = results.input.data();
  if (problem.bias) {
    addresses.operands[kBiasOperand] = given.bias.data();
    results.bias = make(problem.bias_gradient, problem.bias->extents);
    addresses.gradients[kBiasOperand] = results.bias.data();
  }
  for (std::size_t i = 0; i < problem.operands.size(); ++i) {
    addresses.operands[i] = given.operands[i].data();
    results.operands.push_back(make(problem.operand_gradients[i], problem.operands[i].extents));
  }
  for (std::size_t i = 0; i < problem.operands.size(); ++i)
    addresses.gradients[i] = results.operands[i].data();
  run(addresses);
  return results;
}

void compare(Buffer& found, Buffer& expected, bool exactly, const std::string& what) {
  if (exactly) {
    expect(found.bytes == expected.bytes, what, " differs");
    return;
  }
  const auto size = static_cast<std::int64_t>((expected.bytes.size() - 16) / 8);
  for (std::int64_t i = 0; expected.bytes.size() > 16 && i < size; ++i) {
    const double a = HostMemory::load<double>(found.data(), DType::kFloat64, i);
    const double b = HostMemory::load<double>(expected.data(), DType::kFloat64, i);
    // Sums of some thousands of terms, of size 100 and less.
    expect(std::abs(a - b) <= 1e-9 * (1 + std::abs(b)) || (a != a && b != b), what, " is ", a, " and not ",
           b);
  }
}

template <typename T, bool kInRegisters>
void check(Case& given, const BackwardPass& pass, Results& expected, bool exactly) {
  const backward::PlannedBackward plan(pass, kInRegisters);
  std::vector<std::uint64_t> workspace(plan.workspace_bytes / 8 + 2, ~std::uint64_t{0});
  Results found = run_case(given, [&](const BackwardAddresses& addresses) {
    HostExecutor<T, kInRegisters> executor;
    backward::run_backward(plan, addresses, workspace.data(), executor);
  });
  expect(workspace.back() == ~std::uint64_t{0}, "the workspace is overrun");
  compare(found.input, expected.input, exactly, "the input's gradient");
  compare(found.bias, expected.bias, exactly, "the bias's gradient");
  for (std::size_t i = 0; i < found.operands.size(); ++i)
    compare(found.operands[i], expected.operands[i], exactly, concat("the gradient of b", i));
}

void check_random(bool with_norm) {
  Case given = random_case(with_norm);
  BackwardProblem& problem = given.problem;
  keep_given(problem);
  const BackwardPass pass = make_backward_pass(problem);
  Results expected =
      run_case(given, [&](const BackwardAddresses& addresses) { run_backward_pass_cpu(pass, addresses, 2); });
  if (pass.double_precision) {
    check<double, true>(given, pass, expected, !with_norm);
    check<double, false>(given, pass, expected, !with_norm);
  } else {
    check<float, true>(given, pass, expected, true);
    check<float, false>(given, pass, expected, true);
  }
}

}  // namespace

int main() {
  for (int i = 0; i < 400; ++i) check_random(false);
  for (int i = 0; i < 200; ++i) check_random(true);
  return failures == 0 ? 0 : 1;
}
