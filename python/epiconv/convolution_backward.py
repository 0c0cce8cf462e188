"""The gradients of `convolve`: those of torch's convolution, and of what surrounds it."""

from collections.abc import Sequence
from typing import Any, Final

import torch

from epiconv.arguments import ConvArguments
from epiconv.convolution import onednn_reduces, pad_input, round_factors

_PAD_BACKWARD: Final[dict[str, tuple[Any, ...]]] = {
    "reflect": (
        torch.ops.aten.reflection_pad1d_backward,
        torch.ops.aten.reflection_pad2d_backward,
        torch.ops.aten.reflection_pad3d_backward,
    ),
    "replicate": (
        torch.ops.aten.replication_pad1d_backward,
        torch.ops.aten.replication_pad2d_backward,
        torch.ops.aten.replication_pad3d_backward,
    ),
}


def convolution_gradients(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    arguments: ConvArguments,
    *,
    wants_input: bool,
    wants_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of input and weight of a convolution without bias; no graph for autograd.

    They are torch's `convolution_backward`, which computes only what is wanted; of rounded values where a
    precision is asked for.

    Args:
        gradient: of the convolution's output, (N, K, spatial…), of input's dtype.
        input: (N, C, spatial…) or (C, spatial…).
        weight: of `convolve`.
        arguments: `normalise`d.
        wants_input, wants_weight: which are wanted.

    Returns:
        The gradients of input and weight, None where one is not wanted.

    Example:
        >>> dx, dw = convolution_gradients(dy, x, weight, arguments, wants_input=True, wants_weight=True)
    """
    if not (wants_input or wants_weight):
        return None, None
    batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
    padded, padding = pad_input(batched, arguments)
    given = padded, weight
    dtype = input.dtype
    if arguments.precision is not None:
        given = round_factors(arguments.precision, *given)
        if input.device.type == "cpu" and onednn_reduces():
            gradient, given = gradient.double(), (given[0].double(), given[1].double())
    for_input, for_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        *given,
        None,
        arguments.stride,
        padding,
        arguments.dilation,
        arguments.transposed,
        arguments.output_padding,
        arguments.groups,
        [wants_input, wants_weight, False],
    )
    if wants_input:
        for_input = for_input.to(dtype)
        if padded is not batched:
            for_input = _unpad(for_input, batched, arguments)
        for_input = for_input if batched is input else for_input.squeeze(0)
    return for_input if wants_input else None, for_weight.to(dtype) if wants_weight else None


def _unpad(gradient: torch.Tensor, input: torch.Tensor, arguments: ConvArguments) -> torch.Tensor:
    """The gradient of the input of `pad_input`, from that of its result."""
    begin, end = arguments.padding_begin, arguments.padding_end
    if arguments.padding_mode in _PAD_BACKWARD:
        pads: list[int] = []
        for before, after in zip(reversed(begin), reversed(end), strict=True):
            pads += [before, after]
        result: torch.Tensor = _PAD_BACKWARD[arguments.padding_mode][len(begin) - 1](gradient, input, pads)
        return result
    if arguments.padding_mode == "circular":
        return _unwrap(gradient, input.shape, begin, end)
    for dim, before in enumerate(begin, start=2):
        gradient = gradient.narrow(dim, before, input.shape[dim])
    return gradient


def _unwrap(
    gradient: torch.Tensor, shape: Sequence[int], begin: Sequence[int], end: Sequence[int]
) -> torch.Tensor:
    """Of circular padding: what was read beyond one edge belongs to the other."""
    for dim, (before, after) in enumerate(zip(begin, end, strict=True), start=2):
        extent = shape[dim]
        inner = gradient.narrow(dim, before, extent).clone()
        if before:
            inner.narrow(dim, extent - before, before).add_(gradient.narrow(dim, 0, before))
        if after:
            inner.narrow(dim, 0, after).add_(gradient.narrow(dim, before + extent, after))
        gradient = inner
    return gradient
