"""A case through cuDNN's graph API, whose Python package is `cudnn` (nvidia-cudnn-frontend)."""

import importlib
from collections.abc import Callable
from typing import Any, Final

import torch

from epiconv.bench.peers import Case, Unavailable, to_layout
from epiconv.program import Step

_UNARY: Final = {
    "neg": "neg",
    "abs": "abs",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "exp": "exp",
    "log": "log",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "swish",
    "tanh": "tanh",
}
_BINARY: Final = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "minimum": "min",
    "maximum": "max",
    "pow": "pow",
}


class CudnnGraph:
    """One cuDNN graph of a convolution, its bias and a program; called as `graph(x, b0, …)`.

    Args:
        case: on a CUDA device, with one or more spatial dimensions cuDNN knows.

    Raises:
        Unavailable: the package is missing, or cuDNN has no kernel for this graph; the message says which.

    Example:
        >>> y = CudnnGraph(case)(x, bias)
    """

    def __init__(self, case: Case) -> None:
        if case.device.type != "cuda":
            raise Unavailable("cuDNN needs a CUDA device")
        try:
            cudnn: Any = importlib.import_module("cudnn")
        except ImportError as error:
            raise Unavailable(
                f"the package cudnn cannot be imported ({error}): pip install nvidia-cudnn-frontend"
            ) from None
        self._cudnn = cudnn
        self._case = case
        self._dims = case.problem.spatial_rank + 2
        self._handle = cudnn.create_handle()
        self._constants: dict[Any, torch.Tensor] = {}
        try:
            self._build()
        except Unavailable:
            raise
        except Exception as error:  # cuDNN's own types differ between versions
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise Unavailable(f"cuDNN has no fused kernel for it: {lines[0][:160]}") from None

    def _build(self) -> None:
        cudnn, case, problem = self._cudnn, self._case, self._case.problem
        io_type = {
            torch.float32: cudnn.data_type.FLOAT,
            torch.float16: cudnn.data_type.HALF,
            torch.bfloat16: cudnn.data_type.BFLOAT16,
        }[case.dtype]
        graph = cudnn.pygraph(
            handle=self._handle,
            io_data_type=io_type,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )
        self._graph: Any = graph
        x, *operands = case.argument_sets[0]
        self._x = graph.tensor_like(x)
        self._weight = graph.tensor_like(case.weight)
        spatial = problem.spatial_rank
        geometry = {
            "pre_padding": [problem.padding] * spatial,
            "post_padding": [problem.padding] * spatial,
            "stride": [problem.stride] * spatial,
            "dilation": [problem.dilation] * spatial,
        }
        if problem.transposed:
            y = graph.conv_dgrad(loss=self._x, filter=self._weight, **geometry)
            y.set_dim(list(problem.output))
        else:
            y = graph.conv_fprop(image=self._x, weight=self._weight, **geometry)
        self._bias: Any = None
        if case.bias is not None:
            self._bias = graph.tensor_like(self._per_channel(case.bias))
            y = graph.add(a=y, b=self._bias)
        self._operands = [graph.tensor_like(self._full_rank(index, t)) for index, t in enumerate(operands)]
        values = [y]
        for step in problem.program.steps:
            values.append(self._append(step, values))
        self._y = values[-1]
        self._y.set_output(True).set_data_type(io_type)
        result = to_layout(
            torch.empty(problem.output, dtype=case.dtype, device=case.device), case.layout, spatial
        )
        self._y.set_dim(list(result.shape)).set_stride(list(result.stride()))
        self._result_strides = result.stride()
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        if case.dtype_word == "fp32_ieee":
            graph.deselect_numeric_notes([cudnn.numerical_note.TENSOR_CORE])
        graph.check_support()
        graph.build_plans()
        self._workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=case.device)

    def _per_channel(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1, *[1] * (self._dims - 2))

    def _full_rank(self, index: int, operand: torch.Tensor) -> torch.Tensor:
        if index in self._case.problem.program.channel_operands:
            return self._per_channel(operand)
        return operand.view(*[1] * (self._dims - operand.dim()), *operand.shape)

    def _node(self, value: Any) -> Any:
        """A node of the graph; a number becomes one that is passed to the kernel by value."""
        if not isinstance(value, int | float):
            return value
        host = torch.full([1] * self._dims, value, dtype=torch.float32)
        node = self._graph.tensor_like(host)
        self._constants[node] = host
        return node

    def _append(self, step: Step, values: list[Any]) -> Any:
        """Adds one statement to the graph; returns its result."""
        graph, name = self._graph, step.name
        arguments: list[Any] = []
        for argument in step.arguments:
            if isinstance(argument, tuple):
                arguments.append(values[argument[1]] if argument[0] == "v" else self._operands[argument[1]])
            else:
                arguments.append(argument)
        x = self._node(arguments[0])
        if name in _UNARY:
            return getattr(graph, _UNARY[name])(x)
        if name in _BINARY:
            return getattr(graph, _BINARY[name])(x, self._node(arguments[1]))
        if name in _COMPOSED:
            return _COMPOSED[name](self, x, arguments[1:])
        raise Unavailable(f"{name} is not written for cuDNN's graph API here")

    def _clamp(self, x: Any, bounds: list[Any]) -> Any:
        for bound, pick in zip(bounds, (self._graph.max, self._graph.min), strict=True):
            if bound is not None:
                x = pick(x, self._node(bound))
        return x

    def _mish(self, x: Any, arguments: list[Any]) -> Any:
        return self._graph.mul(x, self._graph.tanh(self._graph.softplus(x)))

    def _hardswish(self, x: Any, arguments: list[Any]) -> Any:
        shifted = self._clamp(self._graph.add(x, self._node(3.0)), [0.0, 6.0])
        return self._graph.mul(x, self._graph.mul(shifted, self._node(1 / 6)))

    def _gelu(self, x: Any, arguments: list[Any]) -> Any:
        return self._graph.gelu(x) if arguments[0] == "none" else self._graph.gelu_approx_tanh(x)

    def _leaky_relu(self, x: Any, arguments: list[Any]) -> Any:
        return self._graph.leaky_relu(x, negative_slope=arguments[0])

    def __call__(self, x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        """Runs the graph on the current stream; returns a new tensor."""
        case = self._case
        stream = torch.cuda.current_stream(case.device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        result = torch.empty_strided(
            case.problem.output, self._result_strides, dtype=case.dtype, device=case.device
        )
        tensors: dict[Any, torch.Tensor] = {
            self._x: x,
            self._weight: case.weight,
            self._y: result,
            **self._constants,
        }
        if case.bias is not None:
            tensors[self._bias] = self._per_channel(case.bias)
        for index, (node, operand) in enumerate(zip(self._operands, operands, strict=True)):
            tensors[node] = self._full_rank(index, operand)
        self._graph.execute(tensors, self._workspace, handle=self._handle)
        return result


_COMPOSED: Final[dict[str, Callable[[CudnnGraph, Any, list[Any]], Any]]] = {
    "clamp": CudnnGraph._clamp,
    "mish": CudnnGraph._mish,
    "hardswish": CudnnGraph._hardswish,
    "gelu": CudnnGraph._gelu,
    "leaky_relu": CudnnGraph._leaky_relu,
}
