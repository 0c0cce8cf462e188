// The parts of the module epiconv._core, each of which adds its classes and functions.
#pragma once

#include <pybind11/pybind11.h>

namespace epiconv::python {

namespace py = pybind11;

void bind_errors(py::module_& module);
void bind_operations(py::module_& module);
void bind_program(py::module_& module);
void bind_conv_problem(py::module_& module);
void bind_epilogue_plan(py::module_& module);
void bind_backward_plan(py::module_& module);
void bind_conv_plan(py::module_& module);

}  // namespace epiconv::python
