"""torch's convolution as this library uses it: without bias, at a stated precision, in a stated layout."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import RLock
from typing import Any, Final

import torch
from torch.nn import functional as F

from epiconv import _torch_private
from epiconv.arguments import ConvArguments, channels_last
from epiconv.batch_invariance import are_batch_invariant_algorithms_enabled

CONVOLUTIONS: Final[tuple[Any, ...]] = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED_CONVOLUTIONS: Final[tuple[Any, ...]] = (
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)
_TF32_DROPPED_BITS: Final = 13  # of float32's 23 mantissa bits TF32 keeps 10


def convolve(input: torch.Tensor, weight: torch.Tensor, arguments: ConvArguments) -> torch.Tensor:
    """The convolution without its bias, differentiable.

    Without a precision it is torch's own, with the math of `torch.backends.cudnn.conv.fp32_precision`.
    With one, the forward convolution multiplies as asked; its gradients are torch's, of the rounded values,
    with the math of torch's settings. Where batch-invariant algorithms are asked for, it is called for each
    image alone, of a copy, whose address allows torch's kernels the same as any other's, and of those only
    deterministic ones run.

    Args:
        input: (N, C, spatial…) or (C, spatial…).
        weight: (K, C / groups, spatial…), transposed (C, K / groups, spatial…).
        arguments: `normalise`d and checked.

    Returns:
        (N, K, spatial…), or (K, spatial…), in whatever layout torch gives it.
    """
    if not are_batch_invariant_algorithms_enabled():
        return _convolve_at_once(input, weight, arguments)
    with _deterministic_cudnn() if input.is_cuda and not torch.compiler.is_compiling() else nullcontext():
        if input.dim() != weight.dim() or input.shape[0] == 0:
            return _convolve_at_once(input.clone(), weight, arguments)
        images = [input[i : i + 1].clone() for i in range(input.shape[0])]
        return torch.cat([_convolve_at_once(image, weight, arguments) for image in images])


_cudnn_is_set: Final = RLock()
"""Held while `torch.backends.cudnn.deterministic`, which is the process's, is not the user's."""


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    with _cudnn_is_set:
        before = torch.backends.cudnn.deterministic
        torch.backends.cudnn.deterministic = True
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = before


def pad_input(input: torch.Tensor, arguments: ConvArguments) -> tuple[torch.Tensor, Sequence[int]]:
    """The input as torch's convolution takes it, and the padding that is left to torch.

    Args:
        input: (N, C, spatial…) or (C, spatial…).
        arguments: `normalise`d.
    """
    padding: Sequence[int] = arguments.padding_begin
    if arguments.padding_mode == "zeros" and padding == arguments.padding_end:
        return input, padding
    return _pad(input, arguments), (0,) * len(padding)


def _convolve_at_once(input: torch.Tensor, weight: torch.Tensor, arguments: ConvArguments) -> torch.Tensor:
    input, padding = pad_input(input, arguments)
    if arguments.precision is not None:
        return _convolve_at(arguments.precision, input, weight, padding, arguments)
    return _torch_convolution(input, weight, padding, arguments)


def direct_call(rank: int, arguments: ConvArguments) -> tuple[Any, tuple[Any, ...]]:
    """What `convolve` comes to: a function, and its arguments after input and weight.

    Args:
        rank: how many spatial dimensions there are.
        arguments: `normalise`d; none of them symbolic.

    Returns:
        torch's function with its arguments up to the last that is not at its default, since reading
        arguments takes torch a noticeable time; or `convolve` where it pads or rounds.

    Example:
        >>> function, positional = direct_call(2, arguments)
        >>> y = function(input, weight, *positional)
    """
    padding = arguments.padding_begin
    if (
        arguments.padding_mode != "zeros"
        or padding != arguments.padding_end
        or arguments.precision is not None
    ):
        return convolve, (arguments,)
    function, given = _function_and_arguments(rank, padding, arguments)
    ones, zeros = (1,) * rank, (0,) * rank
    defaults = (None, ones, zeros, zeros, 1, ones) if arguments.transposed else (None, ones, zeros, ones, 1)
    count = len(given)
    while count and given[count - 1] == defaults[count - 1]:
        count -= 1
    return function, given[:count]


def _function_and_arguments(
    rank: int, padding: Sequence[int], arguments: ConvArguments
) -> tuple[Any, tuple[Any, ...]]:
    stride, _, _, dilation, groups, transposed, output_padding = arguments[:7]
    if transposed:
        return TRANSPOSED_CONVOLUTIONS[rank - 1], (None, stride, padding, output_padding, groups, dilation)
    return CONVOLUTIONS[rank - 1], (None, stride, padding, dilation, groups)


def _torch_convolution(
    input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], arguments: ConvArguments
) -> torch.Tensor:
    function, given = _function_and_arguments(weight.dim() - 2, padding, arguments)
    result: torch.Tensor = function(input, weight, *given)
    return result


def _pad(input: torch.Tensor, arguments: ConvArguments) -> torch.Tensor:
    pads: list[int] = []
    for begin, end in zip(reversed(arguments.padding_begin), reversed(arguments.padding_end), strict=True):
        pads += [begin, end]
    if not any(pads):
        return input
    return F.pad(
        input, pads, mode="constant" if arguments.padding_mode == "zeros" else arguments.padding_mode
    )


class _RoundTo(torch.autograd.Function):
    """Rounding whose derivative is 1, so that gradients are not rounded on their way back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: torch.Tensor, precision: str) -> torch.Tensor:
        if precision == "tf32":
            return _round_to_tf32(tensor)
        return tensor.to(torch.bfloat16 if precision == "bf16" else torch.float16).to(torch.float32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].clone()


def _round_to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """To nearest, ties to even, with TF32's mantissa; NaN and infinities stay what they are."""
    bits = tensor.contiguous().view(torch.int32)
    half = (1 << (_TF32_DROPPED_BITS - 1)) - 1
    odd = (bits >> _TF32_DROPPED_BITS) & 1
    rounded = ((bits + half + odd) >> _TF32_DROPPED_BITS) << _TF32_DROPPED_BITS
    return torch.where(tensor.isfinite(), rounded.view(torch.float32).view_as(tensor), tensor)


def round_to(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """A float32 tensor whose values a precision can hold; the gradient passes through unchanged.

    Args:
        tensor: float32.
        precision: "tf32", "bf16" or "fp16".

    Example:
        >>> round_to(torch.tensor([1.0009765625 + 2**-11]), "bf16")
        tensor([1.])
    """
    rounded: torch.Tensor = _RoundTo.apply(tensor, precision)  # type: ignore[no-untyped-call]
    return rounded


def _convolve_at(
    precision: str,
    input: torch.Tensor,
    weight: torch.Tensor,
    padding: Sequence[int],
    arguments: ConvArguments,
) -> torch.Tensor:
    """The convolution of float32 tensors with the math asked for, accumulated in float32.

    bf16 and fp16 values are exact in TF32, so that rounding first and multiplying in TF32 is that math.
    """
    input, weight = round_factors(precision, input, weight)
    if input.device.type == "cpu" and onednn_reduces():
        return _torch_convolution(input.double(), weight.double(), padding, arguments).float()
    if input.device.type != "cuda":
        return _torch_convolution(input, weight, padding, arguments)
    batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
    result = _torch_private.convolution(
        batched,
        weight,
        arguments.stride,
        padding,
        arguments.dilation,
        arguments.transposed,
        arguments.output_padding,
        arguments.groups,
        allow_tf32=precision != "ieee",
    )
    return result if batched is input else result.squeeze(0)


def round_factors(
    precision: str, input: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight rounded to what a precision multiplies, unless the convolution itself does that.

    Args:
        precision: of `PRECISIONS`.
        input, weight: float32.
    """
    # Without cuDNN, torch multiplies on the card with other kernels, which know no TF32.
    on_tensor_cores = input.device.type == "cuda" and torch.backends.cudnn.enabled
    if precision in ("bf16", "fp16") or (precision == "tf32" and not on_tensor_cores):
        return round_to(input, precision), round_to(weight, precision)
    return input, weight


def onednn_reduces() -> bool:
    """Whether torch has been told to let float32 convolutions on the CPU multiply in less."""
    settings = torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    return settings.fp32_precision in ("tf32", "bf16")


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether torch's convolutions take a batched tensor for channels_last: they judge by its strides."""
    rank = tensor.dim() - 2
    least = 0
    for dim in (1, *range(rank + 1, 1, -1), 0):
        extent, stride = tensor.shape[dim], tensor.stride(dim)
        if extent == 0 or stride < least or (dim == 1 and stride == 0):
            return False
        # Where every dimension but the first has one element, contiguous strides look like these.
        if dim == 0 and least == tensor.stride(1):
            return False
        least = stride * extent if extent > 1 else stride
    return True


def output_format(
    input: torch.Tensor, weight: torch.Tensor, memory_format: torch.memory_format | None
) -> torch.memory_format:
    """The memory format of the result: the one asked for, else channels_last if input or weight is.

    torch's own convolutions follow the same rule, except for some of their kernels, which know the
    contiguous layout only.

    Args:
        input: (N, C, spatial…) or (C, spatial…).
        weight: its rank decides between channels_last and channels_last_3d.
        memory_format: as given by the user.

    Example:
        >>> output_format(x.contiguous(memory_format=torch.channels_last), weight, None)
        torch.channels_last
    """
    if memory_format is not None:
        return memory_format
    candidate = channels_last(weight.dim() - 2)
    if candidate is None:
        return torch.contiguous_format
    batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
    if _is_channels_last(batched) or _is_channels_last(weight):
        return candidate
    return torch.contiguous_format


def output_maker(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Callable[[], torch.Tensor]:
    """A function that gives a new uninitialised result.

    Args:
        shape: (N, K, spatial…), or (K, spatial…) of an unbatched convolution.
        dtype: of the result.
        device: where.
        memory_format: contiguous_format, or channels_last, which is meant for the batched shape.

    Example:
        >>> output_maker((3, 4, 4), torch.float32, torch.device("cpu"), torch.channels_last)().stride()
        (1, 12, 3)
    """
    needed = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format, len(shape))
    if needed == len(shape):
        return partial(torch.empty, shape, dtype=dtype, device=device, memory_format=memory_format)
    one = partial(torch.empty, (1, *shape), dtype=dtype, device=device, memory_format=memory_format)
    return lambda: one().squeeze(0)


def empty_output(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> torch.Tensor:
    """An uninitialised result.

    Args:
        shape, dtype, device, memory_format: of `output_maker`.

    Example:
        >>> empty_output((3, 4, 4), torch.float32, torch.device("cpu"), torch.channels_last).stride()
        (1, 12, 3)
    """
    return output_maker(shape, dtype, device, memory_format)()
