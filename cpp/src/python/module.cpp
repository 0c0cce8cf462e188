// The Python module epiconv._core; python/epiconv/_core.pyi is its documentation. Tensors cross as addresses.
#include <pybind11/stl.h>

#include "epiconv/device.h"
#include "epiconv/opcode.h"
#include "python/bindings.h"

namespace epiconv::python {

PYBIND11_MODULE(_core, module) {
  module.attr("version") = EPICONV_VERSION;
  module.attr("has_cuda") = bool(EPICONV_HAS_CUDA);
  module.attr("cuda_architectures") = EPICONV_CUDA_ARCHITECTURES_STRING;
  module.attr("max_operands") = kMaxOperands;
  module.attr("max_statements") = kMaxStatements;
  module.attr("max_live_values") = kMaxLiveValues;
  bind_errors(module);
  bind_operations(module);
  bind_program(module);
  bind_conv_problem(module);
  bind_epilogue_plan(module);
  bind_backward_plan(module);
  bind_conv_plan(module);
  module.attr("cuda_toolkit") = cuda_toolkit_version();
  module.def("driver_version", &cuda_driver_version);
  module.def("why_not_on_card", &why_not_on_card, py::arg("major"), py::arg("minor"));
  module.def("why_not_on_driver", &why_not_on_driver, py::arg("driver"));
}

}  // namespace epiconv::python
