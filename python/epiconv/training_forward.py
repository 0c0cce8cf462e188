"""The forward pass of a call of which gradients are wanted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from epiconv.batch_invariance import are_batch_invariant_algorithms_enabled
from epiconv.call import Call
from epiconv.convolution import convolve, direct_call, output_maker
from epiconv.fallback import EpiloguePass
from epiconv.packed_weights import OwnPackedWeights
from epiconv.program import Program, compute_dtype, operand_signature


class Kept(NamedTuple):
    """What a forward pass for training gives.

    Attributes:
        output: the result.
        conv: the convolution's output, before the bias, where it is kept.
        mean, rstd: (N, groups), of a GroupNorm; None without one.
    """

    output: torch.Tensor
    conv: torch.Tensor | None
    mean: torch.Tensor | None
    rstd: torch.Tensor | None


RunForward = Callable[..., Kept]


def num_groups(program: Program) -> int:
    """Of the program's GroupNorm, 0 without one.

    Example:
        >>> num_groups(Program("v1 = group_norm(v0, 4)"))
        4
    """
    return next((step.arguments[1] for step in program.steps if step.name == "group_norm"), 0)


def statistics_dtype(
    program: Program, input_dtype: torch.dtype, output_dtype: torch.dtype, operands: Sequence[torch.Tensor]
) -> torch.dtype:
    """The dtype of a GroupNorm's statistics, which is that the pass computes in.

    Args:
        program: the epilogue.
        input_dtype: of the convolution's output.
        output_dtype: of the result.
        operands: of the program.
    """
    if output_dtype == torch.float64:
        return torch.float64
    return compute_dtype(program, input_dtype, operand_signature(operands))


def prepare_forward(
    call: Call,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    keeps_conv: bool,
) -> RunForward:
    """The forward pass of a call, for training.

    Args:
        call: prepared.
        input, weight, bias, operands: of the form it was prepared for.
        keeps_conv: whether the convolution's output is kept.

    Returns:
        What takes input, weight, bias, operands and packed weights of that form.
    """
    groups = num_groups(call.program)
    if input.device.type == "cuda" and not keeps_conv and not groups:

        def run_fused(
            input: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            owner: OwnPackedWeights | None = None,
        ) -> Kept:
            return Kept(call.run(input, weight, bias, operands, owner), None, None, None)

        return run_fused
    convolution = _prepare_convolution(call, input, weight)
    make_output = output_maker(call.shape, call.dtype, input.device, call.memory_format)
    passes: dict[tuple[int, ...], tuple[EpiloguePass, bool]] = {}

    def run(
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        owner: OwnPackedWeights | None = None,
    ) -> Kept:
        y = convolution(input, weight, owner)
        strides = y.stride()
        try:
            planned, in_place = passes[strides]
        except KeyError:
            planned, in_place = passes[strides] = call.plan_pass(y, bias, operands)
        output = y if in_place and not keeps_conv else make_output()
        conv = y if keeps_conv else None
        if not groups:
            planned.run(y, bias, operands, output)
            return Kept(output, conv, None, None)
        samples = y.shape[0] if call.batched else 1
        dtype = statistics_dtype(call.program, y.dtype, call.dtype, operands)
        mean, rstd = (torch.empty(samples, groups, dtype=dtype, device=y.device) for _ in range(2))
        planned.run_with_statistics(y, bias, operands, output, mean, rstd)
        return Kept(output, conv, mean, rstd)

    return run


def _prepare_convolution(
    call: Call, input: torch.Tensor, weight: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor, OwnPackedWeights | None], torch.Tensor]:
    """What runs the convolution of a call alone, without bias: on CUDA by the way that is best for that."""
    if input.device.type == "cuda":
        arguments = call.arguments._replace(dtype=None, memory_format=call.memory_format)
        alone = Call(input, weight, None, (), Program(""), arguments).run
        return lambda input, weight, owner: alone(input, weight, None, (), owner)
    function, positional = direct_call(len(call.arguments.stride), call.arguments)

    def convolution(
        input: torch.Tensor, weight: torch.Tensor, owner: OwnPackedWeights | None
    ) -> torch.Tensor:
        if are_batch_invariant_algorithms_enabled():
            return convolve(input, weight, call.arguments)
        result: torch.Tensor = function(input, weight, *positional)
        return result

    return convolution
