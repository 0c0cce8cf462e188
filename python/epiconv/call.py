"""One call, prepared: which path runs for tensors of one form, and the same in plain torch operations.

A `Call` is prepared once for tensors of one form (shapes, strides, dtypes, device) and then run on any
such tensors; it holds none of them. It takes the implicit GEMM where that can run and torch's convolution
with one pass behind it is not faster; otherwise the latter. `decompose` computes the same with plain torch
operations.
"""

from collections.abc import Sequence

import torch

from epiconv import _core, _torch_private
from epiconv.arguments import ConvArguments, conv_problem, has_symbolic_extents
from epiconv.batch_invariance import are_batch_invariant_algorithms_enabled
from epiconv.checks import check_algorithm, check_epilogue, check_tensors
from epiconv.convolution import convolve, direct_call, empty_output, output_format
from epiconv.fallback import EpiloguePass, RunPass, apply_epilogue, warn_not_fused, why_not_fused
from epiconv.implicit_gemm import ImplicitGemm, RunCall, refuse, why_not_computed, why_not_on
from epiconv.packed_weights import OwnPackedWeights
from epiconv.program import Program, operand_signature, result_dtype


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
        run: takes input, weight, bias and operands of the form it was prepared for and, if a module calls,
            its packed weights; returns the result, without a graph for autograd.

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
        self._of_image: Call | None = None
        self._run_usual = self._prepare_usual()
        self._implicit_gemm: ImplicitGemm | str = self._prepare_implicit_gemm(
            problem, input, weight, bias, operands
        )
        if not isinstance(self._implicit_gemm, str):
            self.run = self._implicit_gemm.run
        elif arguments.algorithm == "implicit_gemm":
            refuse(self._implicit_gemm)
        else:
            self.run = self._without_implicit_gemm()

    def _prepare_implicit_gemm(
        self,
        problem: _core.ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> ImplicitGemm | str:
        """What runs the kernel where it can, or why it never can."""
        reason = why_not_on(input.device) or why_not_computed(input.dtype, self.arguments)
        if reason:
            return reason
        given = [tensor for tensor in (input, weight, bias, *operands) if tensor is not None]
        if any(type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ for tensor in given):
            return "a tensor is of a subclass with rules of its own"  # and may have no memory
        kernel = self._gemm(problem, input, weight, bias, operands)
        return kernel.why_never(input) or kernel

    def _gemm(
        self,
        problem: _core.ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> ImplicitGemm:
        asked_for = self.arguments.algorithm == "implicit_gemm"
        return ImplicitGemm(
            *(problem, input, weight, bias, operands, self.program, self.arguments),
            *(self.shape, self.dtype, self.memory_format),
            otherwise=self._refuse if asked_for else self._without_implicit_gemm(),
        )

    def predict(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> "dict[str, _core.PredictedTime | str]":
        """`ImplicitGemm.predict`, whatever the algorithm; nothing where there are no kernels for the device.

        Args:
            input, weight, bias, operands: tensors of the form it was prepared for.
        """
        if why_not_on(input.device) or input.dtype == torch.float64:
            return {}
        problem = conv_problem(input, weight, bias, self.arguments)
        return self._gemm(problem, input, weight, bias, operands).predict(input)

    def implicit_gemm(self, input: torch.Tensor) -> "_core.ConvPlan | str":
        """The plan with which the kernel takes this input, or why it cannot.

        Args:
            input: of the form it was prepared for.
        """
        if isinstance(self._implicit_gemm, str):
            return self._implicit_gemm
        return self._implicit_gemm.plan(input)

    def why_measured(self, input: torch.Tensor) -> str:
        """What was measured of the plan for this input, or is to be; "" where rules have decided.

        Args:
            input: of the form it was prepared for.
        """
        return "" if isinstance(self._implicit_gemm, str) else self._implicit_gemm.why(input)

    def _refuse(self, input: torch.Tensor, *_: object) -> torch.Tensor:
        plan = self.implicit_gemm(input)
        refuse(plan if isinstance(plan, str) else "a setting of torch changes while it is called")

    def _without_implicit_gemm(self) -> RunCall:
        unusual = bool(self.not_fused) or 0 in self.shape or self.arguments.algorithm == "cudnn"
        return self._run_unusual if unusual else self._run_usual

    def _prepare_usual(self) -> RunCall:
        # A closure, as in `EpiloguePass`.
        function, positional = direct_call(len(self.arguments.stride), self.arguments)
        passes: dict[tuple[int, ...], RunPass] = {}

        def run(
            input: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            owner: OwnPackedWeights | None = None,
        ) -> torch.Tensor:
            if are_batch_invariant_algorithms_enabled():
                if self.batched and input.shape[0] > 1:
                    return self._run_image_by_image(input, weight, bias, operands)
                y = convolve(input, weight, self.arguments)
            else:
                y = function(input, weight, *positional)
            # torch's settings may change which of its kernels runs, and with it the layout of y.
            strides = y.stride()
            try:
                run_pass = passes[strides]
            except KeyError:
                run_pass = passes[strides] = self._run_pass(y, bias, operands)
            return run_pass(y, bias, operands)

        return run

    def _run_image_by_image(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """As if each image were called alone, with the pass: that may depend on where its elements lie."""

        def of_image(i: int) -> list[torch.Tensor]:
            return [b[i : i + 1] if b.dim() == input.dim() and b.shape[0] > 1 else b for b in operands]

        if self._of_image is None:
            arguments = self.arguments._replace(memory_format=self.memory_format, dtype=self.dtype)
            self._of_image = Call(input[:1], weight, bias, of_image(0), self.program, arguments)
        run = self._of_image._run_usual
        images = [run(input[i : i + 1], weight, bias, of_image(i)) for i in range(input.shape[0])]
        result = self.empty_result(input.device)
        return torch.cat(images, out=result)

    def _run_unusual(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        owner: OwnPackedWeights | None = None,
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
        planned, in_place = self.plan_pass(y, bias, operands)
        if in_place:
            return planned.run
        return lambda y, bias, operands: planned.run(y, bias, operands, self.empty_result(y.device))

    def decompose(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        owner: OwnPackedWeights | None = None,
    ) -> torch.Tensor:
        """The same in plain torch operations, differentiable."""
        _refuse_gradients(self.arguments)
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
        return self.plan_pass(y, bias, operands, input.device)[0].plan

    def plan_pass(
        self,
        y: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        device: torch.device | None = None,
    ) -> tuple[EpiloguePass, bool]:
        """The pass behind a convolution, and whether it can run in place.

        Args:
            y: of the form of what the convolution wrote.
            bias, operands: of the form that the call was prepared for.
            device: where it runs; y's by default.
        """
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


def _refuse_gradients(arguments: ConvArguments) -> None:
    if arguments.algorithm == "implicit_gemm":
        refuse("a gradient is wanted, or a transform of torch.func; plain torch operations compute those")


def _result_dtype(
    input: torch.Tensor, operands: Sequence[torch.Tensor], program: Program, arguments: ConvArguments
) -> torch.dtype:
    if arguments.dtype is not None:
        return arguments.dtype
    # It runs on tensors of its own, which are none of a mode's business.
    with _torch_private.without_dispatch_modes():
        return result_dtype(program, input.dtype, operand_signature(operands))


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
    _refuse_gradients(arguments)
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
    if arguments.algorithm == "implicit_gemm" and (reason := why_not_computed(input.dtype, arguments)):
        refuse(reason)
    y = convolve(input, weight, arguments)
    check_epilogue(program, operands, y.shape, weight.dim() - 2)
    return y
