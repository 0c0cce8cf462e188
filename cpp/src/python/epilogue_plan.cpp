// A program over a tensor in memory.
#include "epiconv/epilogue_plan.h"

#include <pybind11/stl.h>

#include "python/bindings.h"
#include "python/crossing.h"

namespace epiconv::python {
namespace {

OperandLayout make_operand_layout(const std::string& dtype, Extents extents, Extents strides,
                                  bool is_number) {
  return {parse_dtype(dtype), std::move(extents), std::move(strides), is_number};
}

EpiloguePlan make_epilogue_plan(const Program& program, const std::string& device, Extents extents,
                                const std::string& input_dtype, Extents input_strides,
                                const std::string& output_dtype, Extents output_strides,
                                std::optional<OperandLayout> bias, std::vector<OperandLayout> operands) {
  return EpiloguePlan({program, is_cuda(device), std::move(extents), parse_dtype(input_dtype),
                       std::move(input_strides), parse_dtype(output_dtype), std::move(output_strides),
                       std::move(bias), std::move(operands)});
}

// With a GroupNorm's statistics written out, where there are places for them.
void run_with_statistics(const EpiloguePlan& plan, std::uintptr_t input, std::uintptr_t output,
                         std::uintptr_t bias, std::uintptr_t mean, std::uintptr_t rstd,
                         std::uintptr_t workspace, int device, std::uintptr_t stream, int threads,
                         const py::args& operands) {
  EpiloguePointers pointers;
  pointers.input = reinterpret_cast<const void*>(input);
  pointers.output = reinterpret_cast<void*>(output);
  pointers.bias = reinterpret_cast<const void*>(bias);
  pointers.mean = reinterpret_cast<void*>(mean);
  pointers.rstd = reinterpret_cast<void*>(rstd);
  pointers.workspace = reinterpret_cast<void*>(workspace);
  pointers.device = device;
  pointers.stream = reinterpret_cast<void*>(stream);
  pointers.threads = threads;
  const CrossedOperands crossed(operands);
  crossed.give(pointers);
  const py::gil_scoped_release release;
  plan.run(pointers);
}

// What every call goes through: plain integers and floats only.
void run_epilogue_plan(const EpiloguePlan& plan, std::uintptr_t input, std::uintptr_t output,
                       std::uintptr_t bias, std::uintptr_t workspace, int device, std::uintptr_t stream,
                       int threads, const py::args& operands) {
  run_with_statistics(plan, input, output, bias, 0, 0, workspace, device, stream, threads, operands);
}

}  // namespace

void bind_epilogue_plan(py::module_& module) {
  py::class_<OperandLayout>(module, "OperandLayout")
      .def(py::init(&make_operand_layout), py::arg("dtype"), py::arg("extents"), py::arg("strides"),
           py::arg("is_number") = false);
  py::class_<EpiloguePlan>(module, "EpiloguePlan")
      .def(py::init(&make_epilogue_plan), py::arg("program"), py::arg("device"), py::arg("extents"),
           py::arg("input_dtype"), py::arg("input_strides"), py::arg("output_dtype"),
           py::arg("output_strides"), py::arg("bias"), py::arg("operands"))
      .def_property_readonly("kernel", &EpiloguePlan::kernel)
      .def_property_readonly("workspace_bytes", &EpiloguePlan::workspace_bytes)
      .def_property_readonly("bytes_moved", &EpiloguePlan::bytes_moved)
      .def("run", &run_epilogue_plan)
      .def("run_with_statistics", &run_with_statistics);
}

}  // namespace epiconv::python
