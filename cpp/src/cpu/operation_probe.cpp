#include "epiconv/operation_probe.h"

#include "cpu/vector_math.h"
#include "epiconv/error.h"
#include "operation_dispatch.h"

namespace epiconv {
namespace {

template <typename Operation, typename T>
void evaluate(const OperationProbe& probe) {
  const auto input = [&](int index, std::int64_t i) { return static_cast<const T*>(probe.inputs[index])[i]; };
  const auto result = [&](int index) { return static_cast<T*>(probe.results[index]); };
  for (std::int64_t i = 0; i < probe.count; ++i) {
    const ops::Inputs<T> x{input(0, i), input(1, i), input(2, i), static_cast<T>(probe.parameters[0]),
                           static_cast<T>(probe.parameters[1])};
    const ops::Gradients<T> gradients = Operation::derivative(x);
    result(0)[i] = Operation::forward(x);
    result(1)[i] = gradients.a;
    result(2)[i] = gradients.b;
    result(3)[i] = gradients.c;
  }
}

}  // namespace

void evaluate_operation_cpu(const OperationProbe& probe) {
  require(probe.op != Opcode::kGroupNorm, "group_norm is not computed value by value");
  require(probe.dtype == DType::kFloat32 || probe.dtype == DType::kFloat64,
          "an operation is evaluated in float32 or float64, not in ", dtype_name(probe.dtype));
  visit_operation(probe.op, [&]<typename Operation>() {
    if (probe.dtype == DType::kFloat32) {
      evaluate<Operation, float>(probe);
    } else {
      evaluate<Operation, double>(probe);
    }
  });
}

}  // namespace epiconv
