"""How far what follows a convolution of integers may be off, for `fuzz_conv.py`: an error is carried along
with every value.

Before a GroupNorm there are integers and products of them with powers of two, which are exact, or a sigmoid.
The norm makes z = (v - m) / s of them, m being the mean of a group and s = sqrt(variance + eps). Where v is
off by e, m is off by no more than mean(e); and s is the length of a vector, that of all v - m and eps, so
that it is off by no more than rms(e). Hence

    |error of z| <= (e + mean(e) + |z| rms(e)) / s'

of an s' that is off itself. What the norm's own float32 adds is below, at `_MEAN` and `_NORM`.
"""

import math
from dataclasses import dataclass

import torch

from epiconv.ops import TABLE
from epiconv.steps import evaluate

UNIT = 2.0**-24  # what float32 rounds off, at most, of a value of 1
# Of float64 programs: what float64 rounds off, and as much in the reference, which is no better.
_UNIT_OF_DOUBLE = 2.0**-52
WAYS = ("_holding", "_recomputing", "_with_statistics")

_TILE = 256  # positions, over which a filter's mean is taken in float32; tiles are merged in float64
# Roundings of that mean in kernels of sm_90a: 15 in each chain of 16 values, two where chains meet, two where
# lanes do, and the quotient's. Where sums are exact that is the only one.
_MEAN = 20
# In the portable kernel, of a thread's chain of 32 values, of the sums of up to eight threads that share a
# filter (sixteen have chains of 16) and the quotient's; and those of distances and of the sum where they are
# from a value of the tile. Where sums are exact the last three.
_MEAN_OF_PORTABLE, _QUOTIENT_OF_PORTABLE = 31 + 7 + 3, 3
# The sum of squares, of which s is the root, has as many as the mean's sum, two of each distance and one of
# its square; behind it come those of v - m, of the scale and of the product. z takes so many UNITs of itself.
_NORM = (19 + 3) / 2 + 3
_NORM_OF_PORTABLE = (31 + 7 + 3) / 2 + 3
_NORM_OF_PASS = 3  # the squares are another matter
_TORCH = 2000  # what torch's float32 takes of a large group, in tests that have no card
# Of the pass: values of a thread, and how often a block's threads are merged.
_CHAIN, _MERGES = 256, 13
# A sigmoid by its row of the operation table, which is about torch's, off by an ulp or two itself; denormal
# numbers may become 0.
_SIGMOID = (TABLE["sigmoid"].max_ulp + 2) * 2
_DENORMAL = 2.0**-126
_CHOOSING = ("relu", "clamp", "maximum", "minimum")  # no steeper than 1, and nothing to round


@dataclass(frozen=True)
class Bounded:
    """A float64 value, and how far the kernel's may be from it; 0.0: it is exact."""

    value: torch.Tensor
    error: torch.Tensor | float


@dataclass(frozen=True)
class Kernel:
    """What evaluates a program: its name, the math of the sums, and what it rounds off of a value of 1."""

    name: str
    math: str
    unit: float

    @property
    def way(self):
        """How it computes a norm: one of `WAYS`, "pass", or "" for others, such as torch's."""
        return next((way for way in WAYS if way in self.name), "pass" if has_pass(self.name) else "")

    @property
    def is_portable(self):
        return "_sm80_" in self.name

    @property
    def of_recipe(self):
        """Whether it has been made for one program."""
        return "_static" in self.name.split(",")[0]


def has_pass(name):
    """Whether a whole pass follows the kernel that stores sums."""
    return ", " in name and "_with_statistics" not in name


def follow(program, y, bias, operands, name, math, in_double=False):
    """What a program makes of exact sums of a convolution, without its bias.

    Args:
        program: whose first three steps are add, mul, sigmoid if there is a sigmoid.
        y, bias, operands: float64; bias None or broadcasting against y.
        name, math: of the kernel.
        in_double: whether it computes in float64.

    Returns:
        The result before it is rounded to the output's dtype.
    """
    kernel = Kernel(name, math, _UNIT_OF_DOUBLE if in_double else UNIT)
    values = [Bounded(y, 0.0) if bias is None else _rounded(y + bias, kernel)]
    for step in program.steps:
        if step.name == "group_norm":
            result = _normed(step, values[step.arguments[0][1]], operands, kernel)
        else:
            value = evaluate(step, [each.value for each in values], operands, torch.float64)
            if step.name != "sigmoid":
                result = _carried(step, values, operands, value, kernel)
            elif not kernel.of_recipe:
                result = Bounded(value, _SIGMOID * kernel.unit * value + _DENORMAL)
            else:
                result = Bounded(value, _error_of_recipe(value, bias, operands, math))
        values.append(result)
    return values[-1]


def _rounded(value, kernel):
    """The result of exact arguments, which is exact if it can be kept."""
    if value.dtype == torch.bool or kernel.unit != UNIT or torch.equal(value.float().double(), value):
        return Bounded(value, 0.0)
    return Bounded(value, UNIT * value.abs())


def _carried(step, values, operands, value, kernel):
    """The result of an elementwise step: the error of its arguments, and its rounding."""
    number = next((argument for argument in step.arguments[1:2] if isinstance(argument, float)), None)
    given = [argument for argument in step.arguments if isinstance(argument, tuple)]
    given = [values[i] if kind == "v" else Bounded(operands[i], 0.0) for kind, i in given]
    if all(isinstance(each.error, float) for each in given):
        return _rounded(value, kernel)
    a, b = given if len(given) == 2 else (given[0], Bounded(value, 0.0))
    if step.name in _CHOOSING:
        return Bounded(value, torch.maximum(*(torch.as_tensor(each.error).to(value) for each in (a, b))))
    if step.name in ("mul", "div") and number is not None:  # a power of two
        return Bounded(value, a.error * abs(number if step.name == "mul" else 1 / number))
    if step.name == "mul":
        error = a.error * b.value.abs() + b.error * a.value.abs() + a.error * b.error
    else:
        assert step.name in ("add", "sub"), step.name
        error = a.error + b.error
    return Bounded(value, error + kernel.unit * (value.abs() + error))


def _error_of_recipe(value, bias, operands, math):
    """Of a sigmoid in the recipe's own kernel (`normed_sigmoid.h`), which folds (v + bias + b0) b1."""
    if math == "bf16":  # half of tanh.approx, which is within 2^-11 of itself, and a sum
        return 2.0**-12 * (2 * value - 1).abs() + UNIT
    folded = (bias + operands[0]) * operands[1]
    return 2.0**-22 + UNIT * folded.abs() * value * (1 - value)


def _sums_are_exact(value):
    """Whether all values are multiples of a power of two, and few enough for a tile of them."""
    largest = value.abs().max().item()
    if largest == 0:
        return True
    unit = 2.0 ** math.ceil(math.log2(largest)) * UNIT * _TILE
    return bool((value / unit == (value / unit).round()).all())


def _merged(distances):
    """What merging filters of a tile in float32 adds, in UNITs, to a group's mean and variance.

    Of some filters of a group, in some rows of the tile, which are `terms` means m_i, the sums of c d_i and
    c d_i^2 are taken, c being the count of values and d_i = m_i - m_0: mean m_0 + sum(d_i) / terms, squares
    sum(S_i + c d_i^2) - c sum(d_i)^2 / terms.

        mean       d_i, c d_i, each sum and the quotient are rounded: (terms + 2) |d_i|
        variance   as many and two products more for c d_i^2, twice as many for what is subtracted, and each
                   sum for S_i: terms S_i / c + (3 terms + 8) d_i^2

    Over all tiles |d_i| is no more than distances from the group's mean are on average, in all filters and in
    that of m_0, and d_i^2 no more than twice the sum of their squares.

    Args:
        distances: from the group's mean, (image, group, filter, position).
    """
    groups, of_group = distances.shape[1:3]
    filters = groups * of_group
    rows = 4 if filters <= 16 else 2 if filters <= 32 else 1
    terms = rows * math.gcd(of_group, 64 // rows)
    if terms == 1:
        return 0.0, 0.0
    size, squares = distances.abs().mean(-1), distances.square().mean(-1)
    size, squares = (of.mean(-1, keepdim=True) + of.amax(-1, keepdim=True) for of in (size, squares))
    variance = distances.square().mean((-2, -1))[..., None]
    return (terms + 2) * size, terms * variance + (3 * terms + 8) * 2 * squares


def _of_tiles(v, e, mean, variance, shape, kernel):
    """By how many UNITs the mean is off, and the variance besides what is in `_NORM`, where tiles of
    positions are merged in float64."""
    size, distances = _rms(v), v - mean
    is_exact = isinstance(e, float) and kernel.way and _sums_are_exact(v)
    if kernel.is_portable:
        of_tile = _QUOTIENT_OF_PORTABLE if is_exact else _MEAN_OF_PORTABLE
        of_mean = of_tile * (size + distances.abs().amax(-1, keepdim=True)) + size
        of_variance = 0.0
    else:
        merged_mean, of_variance = _merged(distances.view(*v.shape[:2], shape[1] // v.shape[1], -1))
        of_mean = (1 if is_exact else _MEAN) * size + size + merged_mean
    # A mean of equal numbers is theirs.
    return of_mean * (variance > 0) if is_exact else of_mean, of_variance


def _of_pass(v, mean, variance):
    """By how many UNITs mean and variance are off in `group_norm_kernels.h`.

    A thread takes its values' distances d from one of them, p: it is off by (_CHAIN + 2) mean|d| in their sum
    and quotient, and by p + quotient's rounding; by (2 _CHAIN + 8) mean(d^2) in what is left of the squares
    when sum * quotient is subtracted. A merge takes three roundings of the distance of two means, five of its
    square and of the squares, and one of the mean. No |d| is more than |v - m| + |p - m|.
    """
    distances = v - mean
    most = distances.abs().amax(-1, keepdim=True)
    of_mean = (_CHAIN + 2) * (_rms(distances) + most) + 3 * _MERGES * 2 * most
    of_mean = of_mean + (1 + _MERGES) * (mean.abs() + most)
    of_variance = (_CHAIN * 3 + 8) * 2 * (variance + most.square()) + 5 * _MERGES * variance
    return of_mean * (most > 0), of_variance


def _rms(tensor):
    return tensor.square().mean(-1, keepdim=True).sqrt()


def _normed(step, given, operands, kernel):
    _, groups, weight, shift, eps = step.arguments
    shape, unit = given.value.shape, kernel.unit

    def grouped(tensor):
        return torch.as_tensor(tensor).to(given.value).expand(shape).reshape(shape[0], groups, -1)

    def affine(argument, default):
        ones = torch.full((1,), default).to(given.value) if argument is None else operands[argument[1]]
        return ones.view(-1, *(1,) * (len(shape) - 2))

    v, e = grouped(given.value), grouped(given.error)
    mean = v.mean(-1, keepdim=True)
    variance = (v - mean).square().mean(-1, keepdim=True)
    s = (variance + eps).sqrt()
    z = (v - mean) / s
    # Means of tiles are off by so much, and with them the group's, and twice its s: distances are from them.
    if kernel.way == "pass":
        of_mean, of_variance = _of_pass(v, mean, variance)
    else:
        of_mean, of_variance = _of_tiles(v, given.error, mean, variance, shape, kernel)
    of_mean = unit * of_mean
    of_s = _rms(e) + 2 * of_mean + unit * of_variance / (2 * s)
    error = (e + e.mean(-1, keepdim=True) + of_mean + z.abs() * of_s) / (s - of_s).clamp(min=eps**0.5)
    tiles = _NORM_OF_PORTABLE if kernel.is_portable else _NORM
    of_z = {"": _TORCH, "pass": _NORM_OF_PASS}.get(kernel.way, tiles)
    error = error + of_z * unit * z.abs()
    if kernel.of_recipe:  # v * scale + (shift - m * scale), of which the sum is rounded
        error = error + unit * (mean / s).abs()
    weight, shift = affine(weight, 1.0), affine(shift, 0.0)
    value = z.reshape(shape) * weight + shift
    error = error.reshape(shape) * weight.abs()
    # Of the shift, once more where m * scale is taken from it, and of the sum.
    return Bounded(value, error + unit * ((1 + kernel.of_recipe) * shift.abs() + value.abs() + error))
