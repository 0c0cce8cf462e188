// The programs that have kernels of their own, each behind a conv bias: those of epiconv.recipes, which are
// the yardstick of the interpreter, and one with a gate.
#pragma once

#include "device/static_evaluator.h"

namespace epiconv {

template <int kOperand>
using AddOperand = StaticStep<ops::Add, Opcode::kAdd, Operand<kOperand>>;
template <int kOperand>
using MulOperand = StaticStep<ops::Mul, Opcode::kMul, Operand<kOperand>>;
using MulNumber = StaticStep<ops::Mul, Opcode::kMul>;
using MinimumNumber = StaticStep<ops::Minimum, Opcode::kMinimum>;
using ClampNumbers = StaticStep<ops::Clamp, Opcode::kClamp>;
using Relu = StaticStep<ops::Relu, Opcode::kRelu>;
using Sigmoid = StaticStep<ops::Sigmoid, Opcode::kSigmoid>;
using Gate = StaticStep<Gated, kGate>;
using AddBias = AddOperand<kBiasOperand>;

using MinAddMul = StaticProgram<AddBias, MinimumNumber, AddOperand<0>, MulNumber>;
using ReluAdd = StaticProgram<AddBias, Relu, AddOperand<0>>;
// relu, then hardswish written out, as KernelBench has it.
using ReluGate = StaticProgram<AddBias, Relu, Gate>;
using AddClampMulClampDiv =
    StaticProgram<AddBias, AddOperand<0>, ClampNumbers, MulNumber, ClampNumbers, MulNumber>;
using AddMulSigmoidGroupNorm =
    StaticProgram<AddBias, AddOperand<0>, MulOperand<1>, Sigmoid, AddOperand<kMeanOperand>,
                  MulOperand<kScaleOperand>, AddOperand<kShiftOperand>>;

template <typename... Programs>
struct StaticPrograms {};
using Recipes = StaticPrograms<MinAddMul, ReluAdd, AddClampMulClampDiv, AddMulSigmoidGroupNorm>;

}  // namespace epiconv
