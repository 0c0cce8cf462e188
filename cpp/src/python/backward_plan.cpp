// The backward pass of a program over a tensor in memory.
#include "epiconv/backward_plan.h"

#include <pybind11/stl.h>

#include "python/bindings.h"
#include "python/crossing.h"

namespace epiconv::python {
namespace {

Saved parse_saved(const std::string& word) {
  return parse_word<Saved>("word for what is saved", word, {"nothing", "output", "conv"});
}

BackwardNeeds find_backward_needs(const Program& program, bool wants_input, bool wants_bias,
                                  const std::vector<bool>& wants_operands, const std::string& saved) {
  return backward_needs(program, wants_input, wants_bias, wants_operands, parse_saved(saved));
}

// As it crosses: dtype and strides, or None where the gradient is not wanted.
using Gradient = std::optional<std::pair<std::string, Extents>>;

std::optional<GradientLayout> gradient_layout(const Gradient& gradient) {
  if (!gradient) return std::nullopt;
  return GradientLayout{parse_dtype(gradient->first), gradient->second};
}

BackwardPlan make_backward_plan(const Program& program, const std::string& device, int compiled_for,
                                Extents extents, const std::string& input_dtype,
                                const std::string& output_dtype, const std::string& saved,
                                Extents saved_strides, const std::string& gradient_dtype,
                                Extents gradient_strides, std::optional<OperandLayout> bias,
                                std::vector<OperandLayout> operands, const Gradient& input_gradient,
                                const Gradient& bias_gradient,
                                const std::vector<Gradient>& operand_gradients) {
  BackwardProblem problem{program,
                          is_cuda(device),
                          compiled_for,
                          std::move(extents),
                          parse_dtype(input_dtype),
                          parse_dtype(output_dtype),
                          parse_saved(saved),
                          std::move(saved_strides),
                          parse_dtype(gradient_dtype),
                          std::move(gradient_strides),
                          std::move(bias),
                          std::move(operands),
                          gradient_layout(input_gradient),
                          gradient_layout(bias_gradient),
                          {}};
  for (const Gradient& gradient : operand_gradients)
    problem.operand_gradients.push_back(gradient_layout(gradient));
  return BackwardPlan(problem);
}

void run_backward_plan(const BackwardPlan& plan, std::uintptr_t saved, std::uintptr_t output_gradient,
                       std::uintptr_t mean, std::uintptr_t rstd, std::uintptr_t input_gradient,
                       std::uintptr_t bias, std::uintptr_t bias_gradient, std::uintptr_t workspace,
                       int device, std::uintptr_t stream, int threads, const py::tuple& operands,
                       const py::tuple& operand_gradients) {
  BackwardPointers pointers;
  pointers.saved = reinterpret_cast<const void*>(saved);
  pointers.output_gradient = reinterpret_cast<const void*>(output_gradient);
  pointers.mean = reinterpret_cast<const void*>(mean);
  pointers.rstd = reinterpret_cast<const void*>(rstd);
  pointers.input_gradient = reinterpret_cast<void*>(input_gradient);
  pointers.bias = reinterpret_cast<const void*>(bias);
  pointers.bias_gradient = reinterpret_cast<void*>(bias_gradient);
  pointers.workspace = reinterpret_cast<void*>(workspace);
  pointers.device = device;
  pointers.stream = reinterpret_cast<void*>(stream);
  pointers.threads = threads;
  const CrossedOperands crossed(operands);
  crossed.give(pointers);
  std::vector<void*> gradients;
  for (const py::handle gradient : operand_gradients)
    gradients.push_back(reinterpret_cast<void*>(gradient.cast<std::uintptr_t>()));
  pointers.operand_gradients = gradients;
  const py::gil_scoped_release release;
  plan.run(pointers);
}

}  // namespace

void bind_backward_plan(py::module_& module) {
  py::class_<BackwardNeeds>(module, "BackwardNeeds")
      .def_property_readonly("saved",
                             [](const BackwardNeeds& needs) {
                               constexpr const char* kWords[] = {"nothing", "output", "conv"};
                               return kWords[static_cast<int>(needs.saved)];
                             })
      .def_readonly("reads_bias", &BackwardNeeds::reads_bias)
      .def_readonly("reads_operand", &BackwardNeeds::reads_operand)
      .def_readonly("gives_input", &BackwardNeeds::gives_input)
      .def_readonly("gives_bias", &BackwardNeeds::gives_bias)
      .def_readonly("gives_operand", &BackwardNeeds::gives_operand);
  module.def("backward_needs", &find_backward_needs, py::arg("program"), py::arg("wants_input"),
             py::arg("wants_bias"), py::arg("wants_operand"), py::arg("saved"));
  py::class_<BackwardPlan>(module, "BackwardPlan")
      .def(py::init(&make_backward_plan), py::arg("program"), py::arg("device"), py::arg("compiled_for"),
           py::arg("extents"), py::arg("input_dtype"), py::arg("output_dtype"), py::arg("saved"),
           py::arg("saved_strides"), py::arg("gradient_dtype"), py::arg("gradient_strides"), py::arg("bias"),
           py::arg("operands"), py::arg("input_gradient"), py::arg("bias_gradient"),
           py::arg("operand_gradients"))
      .def_property_readonly("kernel", &BackwardPlan::kernel)
      .def_property_readonly("why_not_compiled", &BackwardPlan::why_not_compiled)
      .def_property_readonly("workspace_bytes", &BackwardPlan::workspace_bytes)
      .def("run", &run_backward_plan);
}

}  // namespace epiconv::python
