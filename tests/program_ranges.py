"""Between which two values each result of a program must lie.

Every step is taken in float64, at the values before it and at the ends of the intervals in which rounding may
have left them; what the results span, and the step's own error from the operation table, make the next
interval. So a comparison whose outcome rounding can flip allows both outcomes, and nothing else does.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from program_strategies import output_dtype, tensors_of

from epiconv.ops import TABLE
from epiconv.program import Program, compute_dtype, operand_signature
from epiconv.steps import evaluate


@dataclass
class Interval:
    """A float64 value, or a bool, and how far from it rounding may have left the real one."""

    value: torch.Tensor
    error: torch.Tensor  # infinite where nothing can be said

    def ends(self):
        if self.value.dtype == torch.bool:
            return [self.value, self.value ^ (self.error > 0)]
        return [self.value - self.error, self.value + self.error]


def _exact(tensor):
    value = tensor if tensor.dtype == torch.bool else tensor.double()
    return Interval(value, torch.zeros(value.shape, dtype=torch.float64))


def _saturate(value, compute):
    """float64 as it overflows in the compute dtype."""
    if compute == torch.float64 or value.dtype == torch.bool:
        return value
    return torch.where(value.abs() < 2.0**128 * (1 - 2.0**-25), value, value + value.sign() * math.inf)


def _distance(a, b):
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a.double() - b.double()).abs().nan_to_num(nan=math.inf, posinf=math.inf))


_CHOOSING = frozenset({
    "abs", "cast", "clamp", "hardshrink", "hardtanh", "maximum", "minimum", "neg", "relu", "relu6",
    "threshold", "where",
})  # fmt: skip
"""Operations whose result is one of their arguments, its negative, or rounded as it says: without error."""


def _own_error(step, arguments, value, compute):
    """What the operation itself may be off, given exact arguments."""
    if step.name in _CHOOSING or TABLE[step.name].is_predicate:
        return torch.zeros(value.shape, dtype=torch.float64)
    finfo = torch.finfo(compute)
    # torch's kernels are off by an ulp or two themselves, and dividing by a number is a product on CUDA.
    units = TABLE[step.name].max_ulp + 2
    size = value.abs()
    if step.name == "gelu":  # a factor is 1 + f with f near -1
        size = torch.maximum(size, arguments[0].abs())
    elif step.name in ("add", "sub") and step.arguments[2] != 1:  # alpha times other is rounded, or is not
        other = step.arguments[1] if not isinstance(step.arguments[1], tuple) else arguments[-1].double()
        size = size + abs(other * step.arguments[2])
    return (units * finfo.eps * size + 256 * finfo.smallest_normal).nan_to_num(nan=0.0, posinf=0.0)


def _through_step(step, values, operands, compute):
    """The interval after an elementwise step."""
    given, words, computed = [], [], []
    for argument, spec in zip(step.arguments, TABLE[step.name].arguments, strict=True):
        if isinstance(argument, tuple):
            kind, index = argument
            words.append(("v", len(given)))
            given.append(values[index] if kind == "v" else operands[index])
            computed.append(kind == "v" and index > 0)
        elif type(argument) is float and spec.kind in ("any", "optional"):
            words.append(torch.tensor(argument, dtype=compute).item())
        else:
            words.append(argument)
    plain = step._replace(arguments=tuple(words), in_place=False)

    def at(tensors):
        return _saturate(evaluate(plain, tensors, [], torch.float64), compute)

    centre = at([interval.value for interval in given])
    error = torch.zeros(centre.shape, dtype=torch.float64)
    for corner in itertools.product(*[interval.ends() for interval in given]):
        error = torch.maximum(error, _distance(at(list(corner)), centre))
    error = error + _own_error(plain, [interval.value for interval in given], centre, compute)
    if step.name in ("eq", "ne"):  # may hold at one point between the ends
        a, b = (given[word[1]] if isinstance(word, tuple) else _exact(torch.tensor(word)) for word in words)
        apart, reach = (a.value.double() - b.value.double()).abs(), a.error + b.error
        error = torch.where((apart <= reach) & (reach > 0), 1.0, error)
    unknown = torch.zeros(centre.shape, dtype=torch.bool)
    for interval in given:
        if interval.error.any():  # PReLU's weight, which does not broadcast, has none
            unknown = unknown | interval.error.isinf()
    pole = {"div": 1, "pow": 0, "rsqrt": 0}.get(step.name)
    if pole is not None and isinstance(words[pole], tuple):
        # Between the ends may be a pole, and torch's backends disagree about the sign of a computed zero.
        place = words[pole][1]
        near = given[place].value.double().abs() <= given[place].error
        unknown = unknown | (near & ((given[place].error > 0) | computed[place]))
    if compute == torch.float32 and centre.dtype != torch.bool:
        unknown = unknown | (centre.isfinite() & (centre.abs() + error >= torch.finfo(compute).max))
    return Interval(centre, torch.where(unknown, math.inf, error))


def _through_group_norm(step, values, operands, compute):
    """The interval after a GroupNorm: first-order in the errors of its inputs, with a factor of 2.

    The value is spelt out, since torch's float64 kernel subtracts mean * scale last, which cancels.
    """
    _, groups, weight, bias, eps = step.arguments
    x = values[step.arguments[0][1]]
    shape = x.value.shape
    unit = torch.finfo(compute).eps

    def grouped(tensor):
        return tensor.reshape(shape[0], groups, -1)

    def channels(argument, default):
        one_each = operands[argument[1]].value if argument is not None else torch.full((shape[1],), default)
        return one_each.double().reshape(1, -1, *[1] * (len(shape) - 2))

    g, e = grouped(x.value), grouped(x.error.expand(shape))
    mean = g.mean(-1, keepdim=True)
    distance = g - mean
    # A mean is off by what its partial sums were rounded by, which has the size of the values, not its own.
    summed = g.abs().mean(-1, keepdim=True)
    distance_error = e + e.mean(-1, keepdim=True) + 4 * unit * (summed + g.abs())
    variance = (distance**2).mean(-1, keepdim=True)
    variance_error = (2 * distance.abs() * distance_error + distance_error**2).mean(-1, keepdim=True)
    relative = variance_error / (variance + eps)
    scale = (variance + eps).rsqrt()
    value = (distance * scale).reshape(shape) * channels(weight, 1.0) + channels(bias, 0.0)
    error = 2 * scale * (distance_error + distance.abs() * relative) + 8 * unit * scale * distance.abs()
    error = error.reshape(shape) * channels(weight, 1.0).abs() + 8 * unit * channels(bias, 0.0).abs()
    error = error + 256 * torch.finfo(compute).smallest_normal
    unknown = (relative > 0.05).expand(g.shape).reshape(shape) | error.isinf()
    # Squares may overflow where values do not: kernels leave zeros then, float64 here does not.
    squares = (distance**2).sum(-1, keepdim=True)
    unknown |= (squares > torch.finfo(compute).max / 4).expand(g.shape).reshape(shape)
    # A NaN or infinity in a group makes all of it NaN, unless an unknown is what made it.
    unknown |= e.isinf().any(-1, keepdim=True).expand(g.shape).reshape(shape)
    error = torch.where(value.isnan() & ~unknown, 0.0, error)
    return Interval(value, torch.where(unknown, math.inf, error))


def expected_range(case):
    """The least and the largest value that each result may have, and where nothing can be said.

    Both are NaN where the result must be.
    """
    program = Program(case.text)
    y, operands, bias = tensors_of(case)
    dtype = output_dtype(case, operands)
    compute = compute_dtype(program, y.dtype, operand_signature(operands))
    given = [_exact(b if b.dtype == torch.bool else b.to(compute)) for b in operands]
    values = [_exact(y)]
    if bias is not None:
        add = Program("v1 = add(v0, b0)").steps[0]
        column = bias.double().reshape(-1, *[1] * (y.dim() - 2))
        values = [_through_step(add, values, [_exact(column)], compute)]
    for step in program.steps:
        through = _through_group_norm if step.name == "group_norm" else _through_step
        values.append(through(step, values, given, compute))
    last = values[-1]
    unknown = last.error.isinf().expand(y.shape)
    low, high = [
        (last.value + sign * torch.where(last.error.isinf(), 0.0, last.error)).expand(y.shape).to(dtype)
        for sign in (-1, 1)
    ]
    return low, high, unknown


def violations(result, low, high, unknown):
    """Where a result is not what it may be."""
    inside = ((low <= result) & (result <= high)) | (low.isnan() & result.isnan())
    return ~inside & ~unknown
