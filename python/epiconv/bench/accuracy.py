"""Errors against float64, and when they are small enough.

A result is right when its largest error is at most twice that of plain PyTorch in the same dtype, or TF32's
own where float32 convolutions are set to it, plus one rounding of the output. Errors are relative to the
output's scale, its largest magnitude.
"""

import math
from collections.abc import Callable
from typing import Final

import torch

from epiconv import _torch_private

MAX_RATIO: Final = 2.0
"""How much larger than plain PyTorch's an error may be."""

_CHUNK: Final = 1 << 26  # values compared at a time


def sample_images(batch: int) -> tuple[int, ...]:
    """The images that are compared with float64: the first, the middle and the last.

    Convolutions and GroupNorm work on each image alone, and a whole batch in float64 would take minutes
    and most of a card's memory.

    Args:
        batch: N, at least 1.

    Example:
        >>> sample_images(128)
        (0, 64, 127)
    """
    return tuple(sorted({0, batch // 2, batch - 1}))


def max_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of any element, relative to the largest magnitude expected.

    Args:
        result: any floating dtype.
        expected: float64, the same shape, on the same device.

    Returns:
        The error; inf when one of the two is not finite where the other differs. 0.0 for empty tensors.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> max_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0], dtype=torch.float64))
        0.5
    """
    if result.shape != expected.shape:
        raise ValueError(f"the result is {tuple(result.shape)}, but {tuple(expected.shape)} is expected")
    if result.numel() == 0:
        return 0.0
    given = result.double()
    same = (given == expected) | (given.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (given - expected).abs())
    largest = float(difference.max())
    if not math.isfinite(largest):
        return math.inf
    scale = float(torch.where(expected.isfinite(), expected.abs(), 0.0).max())
    return largest / scale if scale > 0 else largest


def max_difference(result: torch.Tensor, other: torch.Tensor) -> float:
    """As `max_error` of two whole batches of one dtype, some images at a time to save memory.

    Args:
        result, other: (N, K, *spatial).

    Example:
        >>> max_difference(y, y)
        0.0
    """
    images = max(1, _CHUNK * result.shape[0] // max(1, result.numel()))
    worst = 0.0
    for first in range(0, result.shape[0], images):
        part = slice(first, first + images)
        worst = max(worst, max_error(result[part], other[part].double()))
    return worst


def output_rounding(dtype: torch.dtype) -> float:
    """What rounding a result once to the dtype may cost, relative to its magnitude.

    Example:
        >>> output_rounding(torch.bfloat16)
        0.00390625
    """
    return torch.finfo(dtype).eps / 2


def multiplies_tf32(x: torch.Tensor) -> bool:
    """Whether torch lets a convolution of this tensor round what it multiplies to TF32.

    Args:
        x: the input.

    Example:
        >>> multiplies_tf32(torch.zeros(1, 8, 4, 4))
        False
    """
    is_float32_on_card = x.device.type == "cuda" and x.dtype == torch.float32
    return is_float32_on_card and _torch_private.conv_precision() == "tf32"


def plain_error(
    eager_error: float, x: torch.Tensor, rounded: Callable[[], torch.Tensor], expected: torch.Tensor
) -> float:
    """What an error is to be compared with: plain PyTorch's or, if that is larger, TF32's own.

    With few channels cuDNN multiplies in float32, whatever it is set to.

    Args:
        eager_error: plain PyTorch's, from `max_error`.
        x: the input; where its convolution is not set to TF32 the answer is `eager_error`.
        rounded: computes in float64 what follows from input and weight rounded to TF32.
        expected: what follows from them as they are, in float64.

    Example:
        >>> plain_error(4.6e-7, x, lambda: case.float64_result((0,), "tf32"), case.float64_result((0,)))
        0.00036
    """
    return max(eager_error, max_error(rounded(), expected)) if multiplies_tf32(x) else eager_error


def is_accurate(error: float, eager_error: float, dtype: torch.dtype) -> bool:
    """Whether an error is at most twice plain PyTorch's, plus one rounding of the output.

    Args:
        error: from `max_error`.
        eager_error: from `plain_error`, against the same float64 result.
        dtype: of the output.

    Example:
        >>> is_accurate(2e-4, 1e-4, torch.float32)
        True
    """
    return error <= MAX_RATIO * eager_error + output_rounding(dtype)


def agrees_with_eager(difference: float, error: float, eager_error: float, dtype: torch.dtype) -> bool:
    """Whether a whole batch is as near to plain PyTorch's as the sampled images' errors explain.

    A wrong tile in an image that was not sampled differs by far more. The errors of other images may be
    somewhat larger than the sampled ones, hence the factor of 2.

    Args:
        difference: `max_difference` of the two batches.
        error, eager_error: as for `is_accurate`, of the sampled images.
        dtype: of the output.

    Example:
        >>> agrees_with_eager(0.5, 1e-4, 1e-4, torch.float32)
        False
    """
    return difference <= 2 * (error + eager_error + 2 * output_rounding(dtype))
