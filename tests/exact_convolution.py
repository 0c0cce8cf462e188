"""Convolutions in float64, tap by tap: exact for integers on any device, since nothing is transformed, and
an infinity meets those elements only that it is multiplied with.
"""

import itertools
import math

import torch
import torch.nn.functional as F

_AXES = "stride", "dilation", "begin", "end", "output_padding"


def _products(x, filters, groups):
    """What one tap adds: x of (N, C, pixels…), filters of (K, C / groups)."""
    n, channels, *pixels = x.shape
    given = x.reshape(n, groups, channels // groups, math.prod(pixels))
    filters = filters.reshape(groups, -1, channels // groups)
    return torch.matmul(filters, given).reshape(n, -1, *pixels)


def _taps(extents):
    return itertools.product(*map(range, extents))


def _at(tap, dilation, stride, counts):
    """The elements that a tap meets: as many as `counts`, `stride` apart."""
    sides = zip(tap, dilation, stride, counts, strict=True)
    return (..., *(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in sides))


def _ordinary(x, weight, stride, dilation, begin, end, groups, mode):
    if any((*begin, *end)):
        sides = zip(reversed(begin), reversed(end), strict=True)
        x = F.pad(x, [side for both in sides for side in both], mode="constant" if mode == "zeros" else mode)
    taps = weight.shape[2:]
    reach = [d * (t - 1) for d, t in zip(dilation, taps, strict=True)]
    counts = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    y = x.new_zeros(x.shape[0], weight.shape[0], *counts)
    for tap in _taps(taps):
        y += _products(x[_at(tap, dilation, stride, counts)], weight[(..., *tap)], groups)
    return y


def _transposed(x, weight, stride, dilation, begin, end, groups, output_padding):
    counts, taps = x.shape[2:], weight.shape[2:]
    whole = zip(counts, stride, dilation, taps, output_padding, strict=True)
    whole = [(n - 1) * s + d * (t - 1) + 1 + more for n, s, d, t, more in whole]
    y = x.new_zeros(x.shape[0], weight.shape[1] * groups, *whole)
    channels, filters, *_ = weight.shape
    of_groups = weight.reshape(groups, channels // groups, filters, *taps).transpose(1, 2)
    of_groups = of_groups.reshape(groups * filters, channels // groups, *taps)
    for tap in _taps(taps):
        y[_at(tap, dilation, stride, counts)] += _products(x, of_groups[(..., *tap)], groups)
    kept = (slice(before, n - behind) for before, behind, n in zip(begin, end, whole, strict=True))
    return y[(..., *kept)]


def exact_convolution(
    x,
    weight,
    stride=1,
    dilation=1,
    begin=0,
    end=0,
    output_padding=0,
    groups=1,
    mode="zeros",
    transposed=False,
):
    """(N, K, pixels…) in float64, on the tensors' device.

    Args:
        x: (N, C, pixels…).
        weight: (K, C / groups, taps…), transposed (C, K / groups, taps…).
        stride, dilation, begin, end, output_padding: of each dimension, or one number for all. `begin` and
            `end` crop the output of a transposed convolution and pad the input of others.
        mode: of padding.
    """
    x, weight, rank = x.double(), weight.double(), weight.dim() - 2
    given = dict(zip(_AXES, (stride, dilation, begin, end, output_padding), strict=True))
    given = {name: (value,) * rank if isinstance(value, int) else value for name, value in given.items()}
    more = given.pop("output_padding")
    if transposed:
        return _transposed(x, weight, **given, groups=groups, output_padding=more)
    return _ordinary(x, weight, **given, groups=groups, mode=mode)
