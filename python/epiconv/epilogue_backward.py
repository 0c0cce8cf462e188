"""The backward pass of bias and epilogue: what it needs, and one walk for every gradient."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch

from epiconv import _core, compiler
from epiconv.checks import is_number
from epiconv.convolution import output_maker
from epiconv.core_tensors import address, dtype_name, operand_layout
from epiconv.fallback import launch_place
from epiconv.program import Program

SAVED: Final = ("nothing", "output", "conv")
"""What a backward pass can be computed from besides operands, the least first."""


class Wanted(NamedTuple):
    """Of what a gradient is wanted: the convolution's output, its bias, each operand."""

    conv: bool
    bias: bool
    operands: tuple[bool, ...]


class Needs(NamedTuple):
    """What a backward pass reads and gives.

    `saved` is the least of `SAVED` that suffices. `given` are those of the wanted gradients that there are:
    none passes a comparison.
    """

    saved: str
    reads_bias: bool
    reads_operands: tuple[bool, ...]
    given: Wanted


@lru_cache(maxsize=4096)
def backward_needs(program: Program, wanted: Wanted, saved: str) -> Needs:
    """What the backward pass of a program needs.

    Args:
        program: the epilogue.
        wanted: the gradients.
        saved: from what it is to be computed, if that suffices.

    Example:
        >>> backward_needs(Program("v1 = relu(v0)"), Wanted(True, False, ()), "nothing").saved
        'output'
    """
    needs = _core.backward_needs(program.core, wanted.conv, wanted.bias, wanted.operands, saved)
    given = Wanted(needs.gives_input, needs.gives_bias, tuple(needs.gives_operand))
    return Needs(needs.saved, needs.reads_bias, tuple(needs.reads_operand), given)


class EpilogueGradients(NamedTuple):
    """Gradients of a convolution's output, of its bias and of operands; None where one is not wanted."""

    conv: torch.Tensor | None
    bias: torch.Tensor | None
    operands: tuple[torch.Tensor | None, ...]


class TensorForm(NamedTuple):
    """Of a tensor that is not kept."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def stand_in(self) -> torch.Tensor:
        """A tensor of that form, of one element in memory, for where no value is read."""
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shape)


def form_of(tensor: torch.Tensor) -> TensorForm:
    """The form of a tensor.

    Example:
        >>> form_of(torch.zeros(2)).shape
        torch.Size([2])
    """
    return TensorForm(tensor.shape, tensor.dtype, tensor.device)


MakeGradient = Callable[[], torch.Tensor]


class GradientMakers:
    """What allocates the gradients of a backward pass.

    Args:
        shape: (N, K, spatial…) of the output.
        input_dtype: of the convolution's output.
        memory_format: of gradients of the output's shape; others are contiguous.
        device: of the output.
        bias: form of the bias; None without one.
        operands: forms of b0, b1, …
        wanted: the gradients.

    Attributes:
        conv, bias, operands: one function for each that is wanted, None for the others.
    """

    def __init__(
        self,
        shape: Sequence[int],
        input_dtype: torch.dtype,
        memory_format: torch.memory_format,
        device: torch.device,
        bias: TensorForm | None,
        operands: Sequence[TensorForm],
        wanted: Wanted,
    ) -> None:
        def like(form: TensorForm) -> MakeGradient:
            is_whole = tuple(form.shape) == tuple(shape)
            layout = memory_format if is_whole else torch.contiguous_format
            return output_maker(form.shape, form.dtype, form.device, layout)

        self.conv = output_maker(shape, input_dtype, device, memory_format) if wanted.conv else None
        self.bias = like(bias) if bias is not None and wanted.bias else None
        self.operands = tuple(
            [like(form) if given else None for form, given in zip(operands, wanted.operands, strict=True)]
        )

    def make(self) -> EpilogueGradients:
        """New uninitialised gradients."""
        return EpilogueGradients(
            None if self.conv is None else self.conv(),
            None if self.bias is None else self.bias(),
            tuple([None if make is None else make() for make in self.operands]),
        )


RunBackward = Callable[..., EpilogueGradients]


def plan_backward(
    program: Program,
    makers: GradientMakers,
    input_dtype: torch.dtype,
    output_dtype: torch.dtype,
    saved_is: str,
    saved: torch.Tensor | None,
    gradient: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    needs: Needs,
) -> RunBackward:
    """Plans the backward pass for tensors of one form, and prepares its call.

    Args:
        program: the epilogue.
        makers: of the gradients, all of them among `needs.given`.
        input_dtype: of the convolution's output.
        output_dtype: of the result.
        saved_is: what `saved` is, one of `SAVED`.
        saved: (N, K, spatial…); None for "nothing".
        gradient: of the output, (N, K, spatial…).
        bias: (K,), or None; like the operands a stand-in where it is not read.
        operands: one for each of b0, b1, …
        needs: of this backward pass, from `saved_is`.

    Returns:
        What takes gradient, saved, mean, rstd, bias and operands of that form and returns the gradients. mean
        and rstd are None without a GroupNorm, as may be what is not read.

    Raises:
        ValueError: what is saved does not suffice, or a shape is wrong.
    """
    forms = makers.make()
    device = gradient.device
    plan = _core.BackwardPlan(
        program.core,
        device.type,
        _compiled_for(device),
        tuple(gradient.shape),
        dtype_name(input_dtype),
        dtype_name(output_dtype),
        saved_is,
        () if saved is None else saved.stride(),
        dtype_name(gradient.dtype),
        gradient.stride(),
        None if bias is None else operand_layout(bias),
        [operand_layout(operand) for operand in operands],
        _layout(forms.conv),
        _layout(forms.bias),
        [_layout(form) for form in forms.operands],
    )
    launch, workspace_bytes = plan.run, plan.workspace_bytes
    read = [index for index, reads in enumerate(needs.reads_operands) if reads]
    numbers = [is_number(operand) for operand in operands]
    unread = tuple([0.0 if number else 0 for number in numbers])
    reads_bias = bias is not None and needs.reads_bias

    def run(
        gradient: torch.Tensor,
        saved: torch.Tensor | None,
        mean: torch.Tensor | None,
        rstd: torch.Tensor | None,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor | None],
    ) -> EpilogueGradients:
        given = list(unread)
        for index in read:
            operand = operands[index]
            assert operand is not None
            given[index] = float(operand) if numbers[index] else address(operand)
        results = makers.make()
        with launch_place(device, workspace_bytes) as place:
            launch(
                _address(saved),
                address(gradient),
                _address(mean),
                _address(rstd),
                _address(results.conv),
                _address(bias) if reads_bias else 0,
                _address(results.bias),
                *place,
                torch.get_num_threads(),
                tuple(given),
                tuple([_address(result) for result in results.operands]),
            )
        return results

    return run


def _compiled_for(device: torch.device) -> int:
    """The capability of the card for which kernels are compiled now, 0 for none."""
    if device.type != "cuda" or not compiler.is_wanted():
        return 0
    compiler.prepare()
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _layout(gradient: torch.Tensor | None) -> tuple[str, tuple[int, ...]] | None:
    return None if gradient is None else (dtype_name(gradient.dtype), gradient.stride())


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else address(tensor)
