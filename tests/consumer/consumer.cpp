// Parses an epilogue program, runs it on the CPU, and plans a convolution that ends in it.
#include <epiconv/conv_plan.h>
#include <epiconv/epilogue_plan.h>
#include <epiconv/error.h>

#include <array>
#include <exception>
#include <iostream>
#include <optional>
#include <string>

using namespace epiconv;

namespace {

// An operand of one value per channel, aligned with the output from the right.
OperandLayout per_channel(DType dtype) {
  OperandLayout layout;
  layout.dtype = dtype;
  layout.extents = {2, 1, 1};
  layout.strides = {1, 1, 1};
  return layout;
}

// The program over what a convolution wrote, in place: (1, 2, 1, 2), two channels of two pixels.
void run_on_cpu(const Program& program) {
  EpilogueProblem problem;
  problem.program = program;
  problem.extents = {1, 2, 1, 2};
  problem.input_strides = problem.output_strides = {4, 2, 2, 1};
  problem.operands = {per_channel(DType::kFloat32)};
  const EpiloguePlan plan(problem);

  std::array<float, 4> y{-1.0F, 2.0F, -3.0F, 4.0F};
  const std::array<float, 2> shift{0.5F, 3.5F};
  const std::array<const void*, 1> operands{shift.data()};
  const std::array<double, 1> numbers{};  // of operands that are numbers, which this one is not
  EpiloguePointers pointers;
  pointers.input = pointers.output = y.data();
  pointers.operands = operands;
  pointers.numbers = numbers;
  plan.run(pointers);
  std::cout << plan.kernel() << ':';
  for (const float value : y) std::cout << ' ' << value;
  std::cout << '\n';
}

// The plan of a convolution of bfloat16 with channels side by side, 64 of 56 x 56 pixels to 2, on a card of
// compute capability 9.0, which need not be there.
void plan_for_card(const Program& program) {
  ConvArguments arguments;
  arguments.input = {32, 64, 56, 56};
  arguments.weight = {2, 64, 3, 3};
  arguments.stride = arguments.dilation = {1, 1};
  arguments.padding_begin = arguments.padding_end = {1, 1};
  arguments.output_padding = {0, 0};
  ConvPlanProblem problem{.conv = ConvProblem(arguments)};
  problem.math = ConvMath::kBf16;
  problem.input_dtype = problem.output_dtype = DType::kBFloat16;
  problem.input_strides = {64 * 56 * 56, 1, 64 * 56, 64};
  problem.input_alignment = 16;
  problem.output_strides = {2 * 56 * 56, 1, 2 * 56, 2};
  problem.program = program;
  problem.operands = {per_channel(DType::kBFloat16)};
  problem.card = {9, 0};
  std::cout << problem.conv.flops() << " FLOPs\n";
  std::string why_not;
  const std::optional<ConvPlan> plan = ConvPlan::make(problem, why_not);
  std::cout << (plan ? plan->kernel() + ": " + plan->why_kernel() : "no kernel: " + why_not) << '\n';
}

}  // namespace

int main() {
  try {
    const Program program = Program::parse("v1 = add(v0, b0); v2 = relu(v1)");
    std::cout << program.text() << '\n';
    run_on_cpu(program);
    plan_for_card(program);
    Program::parse("v1 = foo(v0)");
  } catch (const InvalidArgument& error) {
    std::cout << "refused: " << error.what() << '\n';
  } catch (const std::exception& error) {
    std::cout << "failed: " << error.what() << '\n';
    return 1;
  }
}
