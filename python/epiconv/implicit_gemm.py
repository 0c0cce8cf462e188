"""The path "implicit_gemm": convolution, bias and epilogue in one kernel of ours, with packed weights.

What is decided here, each refusal with a reason: the card, and what no kernel computes. Whether a kernel
can run a given problem and program is decided by the core, which answers with a plan or with its reason.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, Final, NoReturn

import torch

from epiconv import _core, _torch_private
from epiconv.arguments import ConvArguments
from epiconv.convolution import output_maker
from epiconv.core_tensors import address, dtype_name, operand_layout, operand_reader
from epiconv.fallback import why_not_fused
from epiconv.packed_weights import OwnPackedWeights, packing_of
from epiconv.program import Program

RunCall = Callable[..., torch.Tensor]
"""Takes input, weight, bias, operands and, if a module calls, its packed weights."""

_ALIGNMENT: Final = 16  # bytes, of addresses that TMA reads
_MOST_STRIDE: Final = 4  # of a transposed convolution
_SLOW_EPILOGUE: Final = (
    "the kernel's interpreter would take longer over this epilogue than a pass behind another convolution; "
    "algorithm='implicit_gemm' runs it all the same"
)
_MATHS: Final = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@lru_cache(maxsize=64)
def why_not_on(device: torch.device) -> str:
    """Why there are no implicit-GEMM kernels for a device, "" if there are.

    Args:
        device: with its index, if it has one.

    Example:
        >>> why_not_on(torch.device("cpu"))
        'the tensors are on cpu'
    """
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    reason = why_not_fused(device)
    return reason or _core.why_no_conv_kernels(*torch.cuda.get_device_capability(device))


def why_not_computed(dtype: torch.dtype, arguments: ConvArguments) -> str:
    """Why no kernel computes such a convolution on any card, "" if one may.

    Args:
        dtype: of input and weight.
        arguments: `normalise`d.

    Example:
        >>> why_not_computed(torch.float64, arguments)
        'the kernels do not multiply float64'
    """
    rank = len(arguments.stride)
    if arguments.algorithm == "cudnn":
        return "algorithm='cudnn' asks for torch's convolution"
    if rank > 2:
        return f"the kernels have 1 or 2 spatial dimensions, not {rank}"
    stride, dilation = arguments.stride, arguments.dilation
    if arguments.transposed:
        if any(step > _MOST_STRIDE for step in stride):
            return f"the kernels have transposed convolutions up to stride {_MOST_STRIDE}, not {stride}"
        if any(step != 1 for step in dilation):
            return f"the kernels have no transposed convolutions with dilation, and dilation is {dilation}"
    elif any(step != 1 for step in stride):
        return f"the kernels have stride 1, not {stride}"
    if arguments.groups != 1:
        return f"the kernels have no groups, and groups is {arguments.groups}"
    if dtype == torch.float64:
        return "the kernels do not multiply float64"
    if arguments.precision == "ieee":
        return "precision='ieee' is not for tensor cores: 'tf32', 'bf16' and 'fp16' are"
    return ""


def why_not_set() -> str:
    """Why float32 convolutions without a precision do not go to tensor cores, "" if they do."""
    setting = _torch_private.conv_precision()
    if setting == "tf32":
        return ""
    return f"torch.backends.cudnn.conv.fp32_precision is {setting!r}: give precision='tf32', 'bf16' or 'fp16'"


def refuse(reason: str) -> NoReturn:
    """Raises what algorithm "implicit_gemm" raises where it cannot run.

    Args:
        reason: a sentence without a full stop.
    """
    raise NotImplementedError(f"algorithm='implicit_gemm' cannot run: {reason}; leave 'auto'")


class ImplicitGemm:
    """One kernel for tensors of one form, on a device that has kernels.

    Args:
        problem: extents of the convolution.
        input, weight, bias, operands: tensors of the form, none of them empty.
        program: the epilogue.
        arguments: `normalise`d; `why_not_computed` has no reason.
        shape, dtype, memory_format: of the result; (K, P, Q) where the input has no batch dimension.
        otherwise: what runs for an input that the kernel cannot take; it is called as `run` is.

    Attributes:
        run: takes input, weight, bias and operands of the form and, if a module calls, its packed weights;
            returns the result, without a graph for autograd. Asynchronous, on the current stream.
    """

    def __init__(
        self,
        problem: _core.ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        program: Program,
        arguments: ConvArguments,
        shape: Sequence[int],
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        otherwise: RunCall,
    ) -> None:
        self._reads_setting = input.dtype == torch.float32 and arguments.precision is None
        math = _MATHS.get(input.dtype) or arguments.precision or "tf32"
        batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
        make_output = output_maker(shape, dtype, input.device, memory_format)
        output = output_maker(shape, dtype, torch.device("meta"), memory_format)()
        device = input.device
        given = (dtype_name(input.dtype), batched.stride())
        bias_layout = None if bias is None else operand_layout(bias)
        operand_layouts = [operand_layout(operand) for operand in operands]
        wanted = (dtype_name(dtype), (output if batched is input else output.unsqueeze(0)).stride())

        def make_plan(alignment: int) -> "_core.ConvPlan | str":
            mode, core = arguments.padding_mode, program.core
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                plan = _core.make_conv_plan(
                    problem, math, *given, alignment, mode, core, bias_layout, operand_layouts, *wanted
                )
            if arguments.algorithm == "auto" and not isinstance(plan, str) and not plan.hides_epilogue:
                return _SLOW_EPILOGUE
            return plan

        self._make_plan = make_plan
        self._plans: dict[int, _core.ConvPlan | str] = {}
        self.run = self._prepare_run(weight, operands, input.device, make_output, otherwise)

    def plan(self, input: torch.Tensor) -> "_core.ConvPlan | str":
        """The core's plan for this input, with the settings of now, or the reason why there is none.

        Args:
            input: of the form.
        """
        if self._reads_setting and (reason := why_not_set()):
            return reason
        return self._plan_at(address(input))

    def why_never(self, input: torch.Tensor) -> str:
        """Why no input of the form can run, whatever its address and the settings; "" if one may.

        Args:
            input: of the form.
        """
        if self._reads_setting and why_not_set():
            return ""  # nothing is planned that may never run
        # An address that the kernels cannot do anything with says nothing about others.
        plan = self._plan_at(address(input))
        return plan if isinstance(plan, str) and address(input) % _ALIGNMENT == 0 else ""

    def _plan_at(self, location: int) -> "_core.ConvPlan | str":
        alignment = min(location & -location, _ALIGNMENT)
        plan = self._plans.get(alignment)
        if plan is None:
            plan = self._plans[alignment] = self._make_plan(alignment)
        return plan

    def _prepare_run(
        self,
        planned_weight: torch.Tensor,
        planned_operands: Sequence[torch.Tensor],
        device: torch.device,
        make_output: Callable[[], torch.Tensor],
        otherwise: RunCall,
    ) -> RunCall:
        # A closure: each attribute of self would cost the call some of its few microseconds.
        raw_stream, current_device = _torch_private.raw_stream, _torch_private.current_cuda_device
        conv_precision = _torch_private.conv_precision
        index = device.index
        addresses = operand_reader(planned_operands)
        reads_setting = self._reads_setting
        last_bits = _ALIGNMENT - 1
        has_versions = not planned_weight.is_inference()
        is_kept = has_versions and not planned_weight.requires_grad
        # By the last bits of the input's address: launch, find, find_owned, make_workspace; launch is None
        # where no kernel takes such an address, make_workspace where it takes none.
        prepared: list[tuple[Any, Any, Any, Any] | None] = [None] * _ALIGNMENT

        def prepare(source: int, weight: torch.Tensor) -> tuple[Any, Any, Any, Any]:
            plan = self._plan_at(source)
            if isinstance(plan, str):
                return None, None, None, None
            size = plan.workspace_bytes
            make_workspace = partial(torch.empty, size, dtype=torch.uint8, device=device) if size else None
            packing = packing_of(plan, weight)
            once = packing.once
            return (
                plan.run,
                packing.find if is_kept else once,
                packing.find_owned if has_versions else lambda weight, stream, owner: once(weight, stream),
                make_workspace,
            )

        def run(
            input: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            owner: OwnPackedWeights | None = None,
        ) -> torch.Tensor:
            if reads_setting and conv_precision() != "tf32":
                return otherwise(input, weight, bias, operands, owner)
            source = address(input)
            found = prepared[source & last_bits]
            if found is None:
                found = prepared[source & last_bits] = prepare(source, weight)
            launch, find, find_owned, make_workspace = found
            if launch is None:
                return otherwise(input, weight, bias, operands, owner)
            if current_device() != index:
                with torch.cuda.device(index):
                    return run(input, weight, bias, operands, owner)
            stream = raw_stream(index)
            # Both are freed at the end of this call at the earliest: the caching allocator hands their memory
            # out again to later work on this stream only.
            packed = find(weight, stream) if owner is None else find_owned(weight, stream, owner)
            workspace = None if make_workspace is None else make_workspace()
            output = make_output()
            bias_address = 0 if bias is None else address(bias)
            launch(
                *(source, packed.address, address(output), bias_address),
                *(0 if workspace is None else address(workspace), index, stream),
                *addresses(operands),
            )
            return output

        return run
