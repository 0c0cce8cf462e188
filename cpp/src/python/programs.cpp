// Operations, programs and errors.
#include <pybind11/stl.h>

#include "epiconv/epilogue.h"
#include "epiconv/error.h"
#include "epiconv/operation_probe.h"
#include "python/bindings.h"

namespace epiconv::python {
namespace {

constexpr const char* kArgumentKindNames[] = {
    "tensor", "any", "optional", "number", "integer", "channel", "optional_channel", "choice", "dtype"};

const char* kind_name(ArgumentKind kind) { return kArgumentKindNames[static_cast<int>(kind)]; }

py::tuple choices_of(const ArgumentInfo& argument) {
  py::list words;
  for (std::string_view rest = argument.choices; !rest.empty();) {
    const std::size_t bar = rest.find('|');
    words.append(py::str(std::string(rest.substr(0, bar))));
    rest.remove_prefix(bar == std::string_view::npos ? rest.size() : bar + 1);
  }
  return py::tuple(words);
}

py::tuple arguments_of(const OperationInfo& info) {
  py::list arguments;
  for (int i = 0; i < info.num_arguments(); ++i) {
    arguments.append(py::cast(&info.arguments[i], py::return_value_policy::reference));
  }
  return py::tuple(arguments);
}

py::tuple operations() {
  py::list table;
  for (int i = 0; i < kNumOperations; ++i) {
    table.append(py::cast(&operation_info(static_cast<Opcode>(i)), py::return_value_policy::reference));
  }
  return py::tuple(table);
}

// As in _core.pyi: ("v", i), ("b", i), or a plain Python value.
py::object argument_object(const Argument& argument, const ArgumentInfo& place) {
  switch (argument.kind) {
    case Argument::Kind::kNone:
      return py::none();
    case Argument::Kind::kValue:
      return py::make_tuple("v", argument.index);
    case Argument::Kind::kOperand:
      return py::make_tuple("b", argument.index);
    case Argument::Kind::kBool:
      return py::bool_(argument.number != 0.0);
    case Argument::Kind::kInt:
      return py::int_(static_cast<long long>(argument.number));
    case Argument::Kind::kFloat:
      return py::float_(argument.number);
    case Argument::Kind::kChoice:
      return choices_of(place)[argument.index];
    case Argument::Kind::kDType:
      return py::str(std::string(dtype_name(static_cast<DType>(argument.index))));
  }
  return py::none();
}

py::tuple statement_arguments(const Statement& statement) {
  const OperationInfo& info = operation_info(statement.op);
  py::list arguments;
  for (int i = 0; i < info.num_arguments(); ++i) {
    arguments.append(argument_object(statement.arguments[i], info.arguments[i]));
  }
  return py::tuple(arguments);
}

py::tuple channel_operands(const Program& program) {
  py::list indices;
  for (int i = 0; i < program.num_operands(); ++i) {
    if (program.operand_is_channel(i)) indices.append(i);
  }
  return py::tuple(indices);
}

void evaluate_operation(const std::string& name, const std::string& dtype, std::int64_t count,
                        const std::array<std::uintptr_t, 3>& inputs, const std::array<double, 2>& parameters,
                        const std::array<std::uintptr_t, 4>& results, int device, std::uintptr_t stream) {
  OperationProbe probe{
      find_operation(name), parse_dtype(dtype), count, {}, {parameters[0], parameters[1]}, {}};
  for (int i = 0; i < 3; ++i) probe.inputs[i] = reinterpret_cast<const void*>(inputs[i]);
  for (int i = 0; i < 4; ++i) probe.results[i] = reinterpret_cast<void*>(results[i]);
  const py::gil_scoped_release release;
  if (device < 0) {
    evaluate_operation_cpu(probe);
  } else {
    evaluate_operation_cuda(probe, reinterpret_cast<void*>(stream));
  }
}

}  // namespace

void bind_errors(py::module_& module) {
  static PyObject* cuda_error = PyErr_NewExceptionWithDoc(
      "epiconv.CudaError", "A CUDA call failed; the message names the kernel and the problem.",
      PyExc_RuntimeError, nullptr);
  module.attr("CudaError") = py::reinterpret_borrow<py::object>(cuda_error);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const NotSupported& error) {
      PyErr_SetString(PyExc_NotImplementedError, error.what());
    } catch (const CudaError& error) {
      PyErr_SetString(cuda_error, error.what());
    }  // InvalidArgument is a std::invalid_argument, which pybind11 makes a ValueError
  });
}

void bind_operations(py::module_& module) {
  py::class_<ArgumentInfo>(module, "ArgumentInfo")
      .def_property_readonly("name", [](const ArgumentInfo& info) { return std::string(info.name); })
      .def_property_readonly("kind", [](const ArgumentInfo& info) { return kind_name(info.kind); })
      .def_readonly("has_default", &ArgumentInfo::has_default)
      .def_readonly("default", &ArgumentInfo::default_value)
      .def_property_readonly("choices", &choices_of);
  py::class_<OperationInfo>(module, "OperationInfo")
      .def_property_readonly("name", [](const OperationInfo& info) { return std::string(info.name); })
      .def_property_readonly("torch_path",
                             [](const OperationInfo& info) { return std::string(info.torch_path); })
      .def_property_readonly("arguments", &arguments_of)
      .def_readonly("max_ulp", &OperationInfo::max_ulp)
      .def_readonly("is_predicate", &OperationInfo::is_predicate)
      .def_property_readonly(
          "is_terminal",
          [](const OperationInfo& info) { return &info == &operation_info(Opcode::kGroupNorm); })
      .def_property_readonly("summary", [](const OperationInfo& info) { return std::string(info.summary); });
  module.def("operations", &operations);
  module.def("evaluate_operation", &evaluate_operation, py::arg("name"), py::arg("dtype"), py::arg("count"),
             py::arg("inputs"), py::arg("parameters"), py::arg("results"), py::arg("device"),
             py::arg("stream"));
}

void bind_program(py::module_& module) {
  py::class_<Statement>(module, "Step")
      .def_property_readonly(
          "name", [](const Statement& statement) { return std::string(operation_info(statement.op).name); })
      .def_readonly("in_place", &Statement::in_place)
      .def_property_readonly("arguments", &statement_arguments);
  py::class_<Program>(module, "Program")
      .def(py::init(&Program::parse), py::arg("text"))
      .def_property_readonly("text", &Program::text)
      .def_property_readonly("num_operands", &Program::num_operands)
      .def_property_readonly("steps",
                             [](const Program& program) { return py::tuple(py::cast(program.statements())); })
      .def_property_readonly("channel_operands", &channel_operands)
      .def(
          "__eq__", [](const Program& a, const Program& b) { return a == b; }, py::is_operator())
      .def("__hash__", [](const Program& program) { return py::hash(py::str(program.text())); });
}

}  // namespace epiconv::python
