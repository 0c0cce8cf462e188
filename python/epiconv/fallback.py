"""The road without an implicit-GEMM kernel: torch's convolution, then the whole epilogue in one pass.

A `Call` is prepared once for tensors of one form (shapes, strides, dtypes, device) and then run on any
such tensors; it holds none of them. `decompose` computes the same with plain torch operations.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Final

import torch

from epiconv import _core, _torch_private
from epiconv.arguments import ConvArguments, conv_problem, has_symbolic_extents
from epiconv.checks import check_algorithm, check_epilogue, check_tensors, is_number
from epiconv.convolution import convolve, direct_call, empty_output, output_format
from epiconv.program import Program, compute_dtype, operand_signature, result_dtype

_DEVICE_TYPES: Final = ("cpu", "cuda")
_address: Final = torch.Tensor.data_ptr


@lru_cache(maxsize=64)
def why_not_fused(device: torch.device) -> str:
    """Why epiconv's pass cannot run on a device, "" if it can. Then plain torch operations run.

    Args:
        device: with its index, if it has one.

    Example:
        >>> why_not_fused(torch.device("cpu"))
        ''
    """
    if device.type not in _DEVICE_TYPES:
        return f"epiconv has no kernels for {device.type}"
    if device.type == "cpu":
        return ""
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and epiconv's kernels for CUDA"
    driver = _core.why_not_on_driver(_core.driver_version())
    return driver or _core.why_not_on_card(*torch.cuda.get_device_capability(device))


@lru_cache(maxsize=64)
def warn_not_fused(reason: str) -> None:
    """Warns, once per reason, that plain torch operations run.

    Args:
        reason: of `why_not_fused`.
    """
    warnings.warn(f"epiconv runs plain torch operations: {reason}", RuntimeWarning, stacklevel=4)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layout(operand: torch.Tensor) -> _core.OperandLayout:
    return _core.OperandLayout(
        _dtype_name(operand.dtype), tuple(operand.shape), operand.stride(), is_number(operand)
    )


RunPass = Callable[..., torch.Tensor]
_RunCall = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Sequence[torch.Tensor]], torch.Tensor]


class EpiloguePass:
    """A program over a convolution's output, planned for tensors of one form.

    Args:
        program: to be run.
        shape: (N, K, spatial…) of the output, or (K, spatial…).
        device: of the tensors.
        source: dtype and strides of what the convolution wrote.
        target: dtype and strides of what the pass writes.
        bias: (K,), or None.
        operands: one for each of b0, b1, …

    Attributes:
        plan: the core's plan.
        run: takes y, bias, operands and, where the result is another tensor than y, that tensor, all of the
            form planned for; returns the result. On CUDA asynchronous, on the current stream.
    """

    def __init__(
        self,
        program: Program,
        shape: Sequence[int],
        device: torch.device,
        source: tuple[torch.dtype, tuple[int, ...]],
        target: tuple[torch.dtype, tuple[int, ...]],
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        *,
        batched: bool = True,
    ) -> None:
        one = () if batched else (1,)  # the stride of a single sample counts for nothing
        self.plan = _core.EpiloguePlan(
            program.core,
            device.type,
            (*one, *shape),
            _dtype_name(source[0]),
            (*one, *source[1]),
            _dtype_name(target[0]),
            (*one, *target[1]),
            None if bias is None else _layout(bias),
            [_layout(operand) for operand in operands],
        )
        self.run = self._on_cpu(operands) if device.type == "cpu" else self._on_cuda(operands, device)

    # What runs is a closure: each attribute of self would cost the call some of its few microseconds.

    def _on_cpu(self, planned_operands: Sequence[torch.Tensor]) -> RunPass:
        launch = self.plan.run
        addresses = _reader(planned_operands)

        def run(
            y: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            output: torch.Tensor | None = None,
        ) -> torch.Tensor:
            result = y if output is None else output
            bias_address = 0 if bias is None else _address(bias)
            threads = torch.get_num_threads()
            launch(_address(y), _address(result), bias_address, 0, 0, 0, threads, *addresses(operands))
            return result

        return run

    def _on_cuda(self, planned_operands: Sequence[torch.Tensor], device: torch.device) -> RunPass:
        launch = self.plan.run
        addresses = _reader(planned_operands)
        workspace_bytes = self.plan.workspace_bytes
        index = device.index
        raw_stream, current_device = _torch_private.raw_stream, _torch_private.current_cuda_device

        def run(
            y: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            output: torch.Tensor | None = None,
        ) -> torch.Tensor:
            if current_device() != index:
                with torch.cuda.device(index):
                    return run(y, bias, operands, output)
            source = target = _address(y)
            if output is not None:
                target = _address(output)
            bias_address = 0 if bias is None else _address(bias)
            workspace_address = 0
            if workspace_bytes:
                # The caching allocator hands the memory out again to later work on this stream only, so
                # that it may be freed before the kernels have run.
                workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
                workspace_address = _address(workspace)
            launch(
                *(source, target, bias_address, workspace_address, index, raw_stream(index), 1),
                *addresses(operands),
            )
            return y if output is None else output

        return run


def _reader(planned: Sequence[torch.Tensor]) -> Callable[[Sequence[torch.Tensor]], Iterable[int | float]]:
    """Operands as the core takes them: addresses, and the values of numbers, which are read now."""
    numbers = [is_number(operand) for operand in planned]
    if not any(numbers):
        return partial(map, _address)

    def read(operands: Sequence[torch.Tensor]) -> Iterable[int | float]:
        return [
            float(operand) if number else _address(operand)
            for operand, number in zip(operands, numbers, strict=True)
        ]

    return read


class Call:
    """A convolution with its epilogue, checked and prepared for tensors of one form.

    Args:
        input, weight, bias, operands: tensors of that form.
        program: the epilogue.
        arguments: `normalise`d.

    Attributes:
        arguments: as given.
        program: as given.
        flops: of the convolution.
        shape: of the result, (N, K, spatial…) or (K, spatial…).
        dtype: of the result.
        memory_format: of the result.
        batched: whether there is a batch dimension.
        not_fused: why plain torch operations run, or "".
        run: takes input, weight, bias and operands of the form it was prepared for; returns the result,
            without a graph for autograd.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_conv_epilogue`.
    """

    def __init__(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        program: Program,
        arguments: ConvArguments,
    ) -> None:
        check_tensors(input, weight, bias, operands, arguments)
        problem = conv_problem(input, weight, bias, arguments)
        self.arguments = arguments
        self.program = program
        self.flops = problem.flops
        self.batched = input.dim() == weight.dim()
        self.shape = problem.output if self.batched else problem.output[1:]
        check_epilogue(program, operands, self.shape, weight.dim() - 2)
        self.dtype = _result_dtype(input, operands, program, arguments)
        self.memory_format = output_format(input, weight, arguments.memory_format)
        self.not_fused = why_not_fused(input.device)
        unusual = bool(self.not_fused) or 0 in self.shape or arguments.algorithm != "auto"
        self._run_usual = self._prepare_run()
        self.run = self._run_unusual if unusual else self._run_usual

    def _prepare_run(self) -> _RunCall:
        # A closure, as in `EpiloguePass`.
        function, positional = direct_call(len(self.arguments.stride), self.arguments)
        passes: dict[tuple[int, ...], RunPass] = {}

        def run(
            input: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
        ) -> torch.Tensor:
            y = function(input, weight, *positional)
            # torch's settings may change which of its kernels runs, and with it the layout of y.
            strides = y.stride()
            try:
                run_pass = passes[strides]
            except KeyError:
                run_pass = passes[strides] = self._run_pass(y, bias, operands)
            return run_pass(y, bias, operands)

        return run

    def _run_unusual(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        check_algorithm(self.arguments.algorithm, input.device)  # a setting may have changed
        if self.not_fused:
            warn_not_fused(self.not_fused)
            return self.decompose(input, weight, bias, operands)
        if 0 in self.shape:
            return self.empty_result(input.device)
        return self._run_usual(input, weight, bias, operands)

    def _run_pass(
        self, y: torch.Tensor, bias: torch.Tensor | None, operands: Sequence[torch.Tensor]
    ) -> RunPass:
        """What runs the pass behind a convolution that wrote like this one."""
        planned, in_place = self._plan(y, bias, operands)
        if in_place:
            return planned.run
        return lambda y, bias, operands: planned.run(y, bias, operands, self.empty_result(y.device))

    def decompose(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """The same in plain torch operations, differentiable."""
        y = convolve(input, weight, self.arguments)
        return _finish(y, bias, operands, self.program, self.dtype, self.batched, self.memory_format)

    def explain_pass(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> _core.EpiloguePlan:
        """The core's plan, for a convolution's output laid out by torch's rule."""
        layout = output_format(input, weight, None)
        y = empty_output(self.shape, input.dtype, torch.device("meta"), layout)
        return self._plan(y, bias, operands, input.device)[0].plan

    def _plan(
        self,
        y: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        device: torch.device | None = None,
    ) -> tuple[EpiloguePass, bool]:
        """The pass, and whether it runs in place."""
        batched = y if self.batched else y.unsqueeze(0)
        in_place = y.dtype == self.dtype and batched.is_contiguous(memory_format=self.memory_format)
        target = y.stride() if in_place else self.empty_result(torch.device("meta")).stride()
        epilogue_pass = EpiloguePass(
            self.program,
            self.shape,
            device or y.device,
            (y.dtype, y.stride()),
            (self.dtype, target),
            bias,
            operands,
            batched=self.batched,
        )
        return epilogue_pass, in_place

    def empty_result(self, device: torch.device) -> torch.Tensor:
        """An uninitialised result."""
        return empty_output(self.shape, self.dtype, device, self.memory_format)


def _result_dtype(
    input: torch.Tensor, operands: Sequence[torch.Tensor], program: Program, arguments: ConvArguments
) -> torch.dtype:
    if arguments.dtype is not None:
        return arguments.dtype
    # It runs on tensors of its own, which are none of a mode's business.
    with _torch_private.without_dispatch_modes():
        return result_dtype(program, input.dtype, operand_signature(operands))


def apply_epilogue(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Bias and program in plain torch operations.

    Args:
        y: (N, K, spatial…).
        bias: (K,), or None.
        operands: one for each of b0, b1, …
        program: the epilogue.
        dtype: of the result.

    Returns:
        A tensor of y's shape.
    """
    if bias is not None:
        compute = compute_dtype(program, y.dtype, operand_signature(operands))
        y = y.to(compute) + bias.to(compute).view(-1, *[1] * (y.dim() - 2))
    return program.apply(y, operands, dtype)


def _finish(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    dtype: torch.dtype,
    batched: bool,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """`apply_epilogue` to what a convolution returned, in the layout that was promised."""
    if not batched:
        y = y.unsqueeze(0)
    result = apply_epilogue(y, bias, operands, program, dtype).contiguous(memory_format=memory_format)
    return result if batched else result.squeeze(0)


def decompose(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    arguments: ConvArguments,
) -> torch.Tensor:
    """Checks, then computes with plain torch operations: differentiable, and for traced extents too.

    Args:
        input, weight, bias, operands: of `fused_conv_epilogue`; their extents may be symbolic.
        program: the epilogue.
        arguments: `normalise`d.

    Returns:
        The result; strides follow from `output_format`.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_conv_epilogue`.
    """
    y = checked_convolution(input, weight, bias, operands, program, arguments)
    dtype = _result_dtype(input, operands, program, arguments)
    memory_format = output_format(input, weight, arguments.memory_format)
    return _finish(y, bias, operands, program, dtype, input.dim() == weight.dim(), memory_format)


def fake_result(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    arguments: ConvArguments,
) -> torch.Tensor:
    """A tensor of the result's shape, dtype and strides, from tensors without values.

    Args:
        input, weight, bias, operands: fake or meta tensors; their extents may be symbolic.
        program: the epilogue.
        arguments: `normalise`d.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_conv_epilogue`.
    """
    y = checked_convolution(input, weight, bias, operands, program, arguments)
    dtype = _result_dtype(input, operands, program, arguments)
    return empty_output(y.shape, dtype, y.device, output_format(input, weight, arguments.memory_format))


def checked_convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    arguments: ConvArguments,
) -> torch.Tensor:
    """The convolution without bias, after all checks; torch makes those of symbolic extents.

    Args:
        input, weight, bias, operands: of `fused_conv_epilogue`.
        program: the epilogue.
        arguments: `normalise`d.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_conv_epilogue`.
    """
    check_tensors(input, weight, bias, operands, arguments)
    if not has_symbolic_extents((input, weight, bias), arguments):
        conv_problem(input, weight, bias, arguments)
    y = convolve(input, weight, arguments)
    check_epilogue(program, operands, y.shape, weight.dim() - 2)
    return y
