"""The operators of training: the forward pass that keeps what the backward pass needs, and the backward pass.

Both are functional, and neither has a derivative of its own: `training.Training` calls them.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch

from epiconv.call import Call, fake_result
from epiconv.convolution import empty_output
from epiconv.epilogue_backward import (
    EpilogueGradients,
    GradientMakers,
    RunBackward,
    Wanted,
    backward_needs,
    form_of,
    plan_backward,
)
from epiconv.form_cache import FormCache
from epiconv.operator_schema import CONV_SCHEMA, conv_arguments, layout_of, program_of
from epiconv.training_forward import RunForward, num_groups, prepare_forward, statistics_dtype

_FORWARD: Final = "fused_conv_epilogue_training"
_BACKWARD: Final = "epilogue_backward"

_forwards: Final[FormCache[RunForward]] = FormCache()
_backwards: Final[FormCache[RunBackward]] = FormCache()

Quadruple = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _none(like: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """In place of a result that there is not."""
    return torch.empty(0, dtype=dtype, device=like.device)


def _forward(
    keeps_conv: bool,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    *rest: Any,
) -> Quadruple:
    arguments = conv_arguments(weight, rest)
    tensors = [tensor for tensor in (input, weight, bias, *operands) if tensor is not None]
    key = (input.shape, bias is None, program, arguments, keeps_conv, torch.get_default_dtype())
    run = _forwards.get(key, tensors)
    if run is None:
        call = Call(input, weight, bias, operands, program_of(program), arguments)
        run = prepare_forward(call, input, weight, bias, operands, keeps_conv)
        _forwards.keep(key, tensors, run)
    kept = run(input, weight, bias, operands)
    conv = _none(input, input.dtype)
    if kept.conv is not None:
        batched = kept.conv if input.dim() == weight.dim() else kept.conv.unsqueeze(0)
        batched = batched.contiguous(memory_format=arguments.memory_format or torch.contiguous_format)
        conv = batched if input.dim() == weight.dim() else batched.squeeze(0)
    return (
        kept.output,
        conv,
        _none(input) if kept.mean is None else kept.mean,
        _none(input) if kept.rstd is None else kept.rstd,
    )


def _fake_forward(
    keeps_conv: bool,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    *rest: Any,
) -> Quadruple:
    arguments = conv_arguments(weight, rest)
    parsed = program_of(program)
    output = fake_result(input, weight, bias, operands, parsed, arguments)
    layout = arguments.memory_format or torch.contiguous_format
    conv = empty_output(output.shape, input.dtype, output.device, layout) if keeps_conv else None
    groups = num_groups(parsed)
    dtype = statistics_dtype(parsed, input.dtype, output.dtype, operands) if groups else torch.float32
    samples = output.shape[0] if input.dim() == weight.dim() else 1
    shape = (samples, groups) if groups else (0,)
    mean, rstd = (output.new_empty(shape, dtype=dtype) for _ in range(2))
    return output, output.new_empty(0, dtype=input.dtype) if conv is None else conv, mean, rstd


def _makers(
    gradient: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    input_dtype: torch.dtype,
    in_channels_last: bool,
    wanted: Wanted,
) -> GradientMakers:
    layout = layout_of(gradient.dim() - 2, in_channels_last)
    return GradientMakers(
        *(gradient.shape, input_dtype, layout, gradient.device, None if bias is None else form_of(bias)),
        *([form_of(operand) for operand in operands], wanted),
    )


def _as_list(gradients: EpilogueGradients, like: torch.Tensor) -> list[torch.Tensor]:
    flat = (gradients.conv, gradients.bias, *gradients.operands)
    return [_none(like) if each is None else each for each in flat]


def _backward(
    gradient: torch.Tensor,
    saved: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    saved_is: str,
    input_dtype: torch.dtype,
    in_channels_last: bool,
    wanted: Sequence[bool],
) -> list[torch.Tensor]:
    tensors = [tensor for tensor in (gradient, saved, bias, *operands) if tensor is not None]
    key = (saved is None, bias is None, program, saved_is, input_dtype, in_channels_last, tuple(wanted))
    run = _backwards.get(key, tensors)
    if run is None:
        parsed = program_of(program)
        chosen = Wanted(wanted[0], wanted[1], tuple(wanted[2:]))
        makers = _makers(gradient, bias, operands, input_dtype, in_channels_last, chosen)
        needs = backward_needs(parsed, chosen, saved_is)
        run = plan_backward(
            *(parsed, makers, input_dtype, gradient.dtype, saved_is, saved, gradient, bias, operands, needs)
        )
        _backwards.keep(key, tensors, run)
    return _as_list(run(gradient, saved, mean, rstd, bias, operands), gradient)


def _fake_backward(
    gradient: torch.Tensor,
    saved: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    saved_is: str,
    input_dtype: torch.dtype,
    in_channels_last: bool,
    wanted: Sequence[bool],
) -> list[torch.Tensor]:
    chosen = Wanted(wanted[0], wanted[1], tuple(wanted[2:]))
    makers = _makers(gradient, bias, operands, input_dtype, in_channels_last, chosen)
    return _as_list(makers.make(), gradient)


_LIBRARY: Final[Any] = torch.library.Library("epiconv", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    f"{_FORWARD}(bool keeps_conv, {CONV_SCHEMA}) -> (Tensor output, Tensor conv, Tensor mean, Tensor rstd)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    f"{_BACKWARD}(Tensor gradient, Tensor? saved, Tensor? mean, Tensor? rstd, Tensor? bias, "
    "Tensor[] operands, str program, str saved_is, ScalarType input_dtype, bool channels_last, "
    "bool[] wanted) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
for _name, _kernel, _fake in ((_FORWARD, _forward, _fake_forward), (_BACKWARD, _backward, _fake_backward)):
    for _device_key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _kernel, _device_key)
    torch.library.register_fake(f"epiconv::{_name}", _fake, lib=_LIBRARY)
