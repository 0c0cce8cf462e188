// The Python module epiconv._core; python/epiconv/_core.pyi is its documentation. Tensors cross as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "ceilings.h"
#include "epiconv/backward_plan.h"
#include "epiconv/compiler.h"
#include "epiconv/conv_plan.h"
#include "epiconv/conv_problem.h"
#include "epiconv/device.h"
#include "epiconv/epilogue.h"
#include "epiconv/epilogue_plan.h"
#include "epiconv/error.h"
#include "epiconv/operation_probe.h"

namespace py = pybind11;

namespace epiconv {
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

ConvProblem make_conv_problem(Extents input, Extents weight, std::optional<Extents> bias, Extents stride,
                              Extents padding_begin, Extents padding_end, Extents dilation,
                              std::int64_t groups, bool transposed, Extents output_padding) {
  return ConvProblem({std::move(input), std::move(weight), std::move(bias), std::move(stride),
                      std::move(padding_begin), std::move(padding_end), std::move(dilation), groups,
                      transposed, std::move(output_padding)});
}

void bind_conv_problem(py::module_& module) {
  py::class_<ConvProblem>(module, "ConvProblem")
      .def(py::init(&make_conv_problem), py::arg("input"), py::arg("weight"), py::arg("bias"),
           py::arg("stride"), py::arg("padding_begin"), py::arg("padding_end"), py::arg("dilation"),
           py::arg("groups"), py::arg("transposed"), py::arg("output_padding"))
      .def_property_readonly("output",
                             [](const ConvProblem& problem) { return py::tuple(py::cast(problem.output())); })
      .def_property_readonly("flops", &ConvProblem::flops);
}

OperandLayout make_operand_layout(const std::string& dtype, Extents extents, Extents strides,
                                  bool is_number) {
  return {parse_dtype(dtype), std::move(extents), std::move(strides), is_number};
}

EpiloguePlan make_epilogue_plan(const Program& program, const std::string& device, Extents extents,
                                const std::string& input_dtype, Extents input_strides,
                                const std::string& output_dtype, Extents output_strides,
                                std::optional<OperandLayout> bias, std::vector<OperandLayout> operands) {
  require(device == "cpu" || device == "cuda", "device is 'cpu' or 'cuda', not '", device, "'");
  return EpiloguePlan({program, device == "cuda", std::move(extents), parse_dtype(input_dtype),
                       std::move(input_strides), parse_dtype(output_dtype), std::move(output_strides),
                       std::move(bias), std::move(operands)});
}

// Operands as they cross: addresses, and floats for those that are numbers.
struct CrossedOperands {
  std::array<const void*, kMaxOperands> addresses{};
  std::array<double, kMaxOperands> numbers{};
  std::size_t count = 0;

  explicit CrossedOperands(const py::tuple& operands) {
    require(operands.size() <= kMaxOperands, "a program has at most ", kMaxOperands, " operands, got ",
            operands.size());
    for (const py::handle operand : operands) {
      if (PyFloat_Check(operand.ptr())) {
        numbers[count] = PyFloat_AS_DOUBLE(operand.ptr());
      } else {
        addresses[count] = reinterpret_cast<const void*>(operand.cast<std::uintptr_t>());
      }
      ++count;
    }
  }

  template <typename Pointers>
  void give(Pointers& pointers) const {
    pointers.operands = {addresses.data(), count};
    pointers.numbers = {numbers.data(), count};
  }
};

// What every call goes through: plain integers and floats only.
void run_epilogue_plan(const EpiloguePlan& plan, std::uintptr_t input, std::uintptr_t output,
                       std::uintptr_t bias, std::uintptr_t workspace, int device, std::uintptr_t stream,
                       int threads, const py::args& operands) {
  EpiloguePointers pointers;
  pointers.input = reinterpret_cast<const void*>(input);
  pointers.output = reinterpret_cast<void*>(output);
  pointers.bias = reinterpret_cast<const void*>(bias);
  pointers.workspace = reinterpret_cast<void*>(workspace);
  pointers.device = device;
  pointers.stream = reinterpret_cast<void*>(stream);
  pointers.threads = threads;
  const CrossedOperands crossed(operands);
  crossed.give(pointers);
  const py::gil_scoped_release release;
  plan.run(pointers);
}

// The same on the CPU, with a GroupNorm's statistics written out.
void run_with_statistics(const EpiloguePlan& plan, std::uintptr_t input, std::uintptr_t output,
                         std::uintptr_t bias, std::uintptr_t mean, std::uintptr_t rstd, int threads,
                         const py::args& operands) {
  EpiloguePointers pointers;
  pointers.input = reinterpret_cast<const void*>(input);
  pointers.output = reinterpret_cast<void*>(output);
  pointers.bias = reinterpret_cast<const void*>(bias);
  pointers.mean = reinterpret_cast<void*>(mean);
  pointers.rstd = reinterpret_cast<void*>(rstd);
  pointers.threads = threads;
  const CrossedOperands crossed(operands);
  crossed.give(pointers);
  const py::gil_scoped_release release;
  plan.run(pointers);
}

// The index of a word in a list of words, for an enum whose values stand in that order.
template <typename Enum, std::size_t kCount>
Enum parse_word(const char* what, const std::string& word, const char* const (&words)[kCount]) {
  for (std::size_t i = 0; i < kCount; ++i) {
    if (word == words[i]) return static_cast<Enum>(i);
  }
  throw InvalidArgument(concat("there is no ", what, " '", word, "'"));
}

ConvPlanProblem make_conv_plan_problem(const ConvProblem& conv, const std::string& math,
                                       const std::string& input_dtype, Extents input_strides,
                                       int input_alignment, const std::string& padding_mode,
                                       const Program& program, std::optional<OperandLayout> bias,
                                       std::vector<OperandLayout> operands, const std::string& output_dtype,
                                       Extents output_strides, const std::array<int, 2>& capability,
                                       const std::string& family, const std::string& compile,
                                       bool is_batch_invariant) {
  return {
      conv,
      parse_word<ConvMath>("math", math, {"tf32", "bf16", "fp16", "ieee"}),
      parse_dtype(input_dtype),
      std::move(input_strides),
      input_alignment,
      parse_word<PaddingMode>("padding mode", padding_mode, {"zeros", "reflect", "replicate", "circular"}),
      program,
      std::move(bias),
      std::move(operands),
      parse_dtype(output_dtype),
      std::move(output_strides),
      ComputeCapability{capability[0], capability[1]},
      parse_word<ConvFamily>("family of kernels", family,
                             {"any", "sm80", "sm90", "sm90_compiled", "sm90_im2col"}),
      parse_word<Compile>("word for what is compiled", compile, {"never", "if faster", "always"}),
      is_batch_invariant};
}

py::object make_conv_plan(const ConvPlanProblem& problem) {
  std::string why_not;
  std::optional<ConvPlan> plan;
  {
    const py::gil_scoped_release release;
    plan = ConvPlan::make(problem, why_not);
  }
  return plan ? py::cast(std::move(*plan)) : py::object(py::str(why_not));
}

py::dict predict_conv_ways(const ConvPlanProblem& problem) {
  std::vector<PredictedWay> ways;
  {
    const py::gil_scoped_release release;
    ways = predict_ways(problem);
  }
  py::dict result;
  for (const PredictedWay& way : ways) {
    result[py::str(way.name)] = way.why_not.empty() ? py::cast(way.time) : py::object(py::str(way.why_not));
  }
  return result;
}

py::dict terms_of(const PredictedTime& time) {
  py::dict terms;
  for (std::size_t i = 0; i < kNumCeilings; ++i) {
    const auto ceiling = static_cast<Ceiling>(i);
    terms[py::str(std::string(name_of(ceiling)))] = time[ceiling];
  }
  return terms;
}

// A function of what `make_conv_plan_problem` takes.
template <typename Result, typename... Arguments>
auto of_arguments(Result (*function)(const ConvPlanProblem&), ConvPlanProblem (*make)(Arguments...)) {
  return [=](Arguments... arguments) { return function(make(std::forward<Arguments>(arguments)...)); };
}

void pack_weights(const ConvPlan& plan, std::uintptr_t weight, const std::string& dtype, Extents strides,
                  std::uintptr_t packed, int device, std::uintptr_t stream) {
  plan.pack({reinterpret_cast<const void*>(weight), parse_dtype(dtype), std::move(strides)},
            reinterpret_cast<void*>(packed), device, reinterpret_cast<void*>(stream));
}

void run_conv_plan(const ConvPlan& plan, std::uintptr_t input, std::uintptr_t packed, std::uintptr_t output,
                   std::uintptr_t bias, std::uintptr_t workspace, int device, std::uintptr_t stream,
                   const py::args& operands) {
  ConvPointers pointers;
  pointers.input = reinterpret_cast<const void*>(input);
  pointers.weights = reinterpret_cast<const void*>(packed);
  pointers.output = reinterpret_cast<void*>(output);
  pointers.bias = reinterpret_cast<const void*>(bias);
  pointers.workspace = reinterpret_cast<void*>(workspace);
  pointers.device = device;
  pointers.stream = reinterpret_cast<void*>(stream);
  const CrossedOperands crossed(operands);
  crossed.give(pointers);
  const py::gil_scoped_release release;
  plan.run(pointers);
}

void bind_conv_plan(py::module_& module) {
  module.attr("predicted_bytes_per_second") = kH200.bytes_per_us * 1e6;
  py::class_<PredictedTime>(module, "PredictedTime")
      .def_readonly("us", &PredictedTime::us)
      .def_property_readonly("terms", &terms_of)
      .def_property_readonly("limit",
                             [](const PredictedTime& time) { return std::string(name_of(time.limit())); })
      .def("__str__", &PredictedTime::text);
  py::class_<ConvPlan>(module, "ConvPlan")
      .def_property_readonly("kernel", &ConvPlan::kernel)
      .def_property_readonly("why_kernel", &ConvPlan::why_kernel)
      .def_property_readonly("why_slower", &ConvPlan::why_slower)
      .def_property_readonly("predicted", &ConvPlan::predicted)
      .def_property_readonly("weight_format", &ConvPlan::weight_format)
      .def_property_readonly("packed_bytes", &ConvPlan::packed_bytes)
      .def_property_readonly("workspace_bytes", &ConvPlan::workspace_bytes)
      .def("pack", &pack_weights)
      .def("run", &run_conv_plan);
  const auto define = [&](const char* name, auto* function) {
    module.def(name, of_arguments(function, &make_conv_plan_problem), py::arg("problem"), py::arg("math"),
               py::arg("input_dtype"), py::arg("input_strides"), py::arg("input_alignment"),
               py::arg("padding_mode"), py::arg("program"), py::arg("bias"), py::arg("operands"),
               py::arg("output_dtype"), py::arg("output_strides"), py::arg("capability"),
               py::arg("family") = "any", py::arg("compile") = "never",
               py::arg("is_batch_invariant") = false);
  };
  define("make_conv_plan", &make_conv_plan);
  define("predict_conv_ways", &predict_conv_ways);
  module.def(
      "set_compiler",
      [](std::string library, std::string cache_directory) {
        set_compiler({std::move(library), std::move(cache_directory)});
      },
      py::arg("library"), py::arg("cache_directory"));
  module.def("why_no_compiler", &why_no_compiler, py::call_guard<py::gil_scoped_release>());
  module.def(
      "why_no_conv_kernels",
      [](int major, int minor) { return why_no_conv_kernels(ComputeCapability{major, minor}); },
      py::arg("major"), py::arg("minor"));
}

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

BackwardPlan make_backward_plan(const Program& program, Extents extents, const std::string& input_dtype,
                                const std::string& output_dtype, const std::string& saved,
                                Extents saved_strides, const std::string& gradient_dtype,
                                Extents gradient_strides, std::optional<OperandLayout> bias,
                                std::vector<OperandLayout> operands, const Gradient& input_gradient,
                                const Gradient& bias_gradient,
                                const std::vector<Gradient>& operand_gradients) {
  BackwardProblem problem{program,
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
                       std::uintptr_t bias, std::uintptr_t bias_gradient, int threads,
                       const py::tuple& operands, const py::tuple& operand_gradients) {
  BackwardPointers pointers;
  pointers.saved = reinterpret_cast<const void*>(saved);
  pointers.output_gradient = reinterpret_cast<const void*>(output_gradient);
  pointers.mean = reinterpret_cast<const void*>(mean);
  pointers.rstd = reinterpret_cast<const void*>(rstd);
  pointers.input_gradient = reinterpret_cast<void*>(input_gradient);
  pointers.bias = reinterpret_cast<const void*>(bias);
  pointers.bias_gradient = reinterpret_cast<void*>(bias_gradient);
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
      .def(py::init(&make_backward_plan), py::arg("program"), py::arg("extents"), py::arg("input_dtype"),
           py::arg("output_dtype"), py::arg("saved"), py::arg("saved_strides"), py::arg("gradient_dtype"),
           py::arg("gradient_strides"), py::arg("bias"), py::arg("operands"), py::arg("input_gradient"),
           py::arg("bias_gradient"), py::arg("operand_gradients"))
      .def_property_readonly("kernel", &BackwardPlan::kernel)
      .def("run", &run_backward_plan);
}

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

}  // namespace
}  // namespace epiconv
