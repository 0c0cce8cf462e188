// Convolutions: what one is, and how it runs.
#include "epiconv/conv_plan.h"

#include <pybind11/stl.h>

#include "ceilings.h"
#include "epiconv/compiler.h"
#include "epiconv/conv_problem.h"
#include "epiconv/error.h"
#include "python/bindings.h"
#include "python/crossing.h"

namespace epiconv::python {
namespace {

ConvProblem make_conv_problem(Extents input, Extents weight, std::optional<Extents> bias, Extents stride,
                              Extents padding_begin, Extents padding_end, Extents dilation,
                              std::int64_t groups, bool transposed, Extents output_padding) {
  return ConvProblem({std::move(input), std::move(weight), std::move(bias), std::move(stride),
                      std::move(padding_begin), std::move(padding_end), std::move(dilation), groups,
                      transposed, std::move(output_padding)});
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

}  // namespace

void bind_conv_problem(py::module_& module) {
  py::class_<ConvProblem>(module, "ConvProblem")
      .def(py::init(&make_conv_problem), py::arg("input"), py::arg("weight"), py::arg("bias"),
           py::arg("stride"), py::arg("padding_begin"), py::arg("padding_end"), py::arg("dilation"),
           py::arg("groups"), py::arg("transposed"), py::arg("output_padding"))
      .def_property_readonly("output",
                             [](const ConvProblem& problem) { return py::tuple(py::cast(problem.output())); })
      .def_property_readonly("flops", &ConvProblem::flops);
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

}  // namespace epiconv::python
