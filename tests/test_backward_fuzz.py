"""Gradients of random programs through the core's `BackwardPlan`, against torch's autograd, in float64.

EPICONV_FUZZ_EXAMPLES sets how many programs are drawn. A failure prints one line, `check(Case(…), …)`; pasted
behind the imports of this file it fails again.
"""

import dataclasses
import os
import re

import torch
from backward_runner import (
    expected_gradients,
    needs_of,
    run_backward,
    wanted_names,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from program_strategies import LAYOUTS, TensorSpec, cases, make, output_dtype, tensors_of
from test_program_fuzz import fuzz

# The same programs in every run, unless more are asked for: bounds of rounding errors are estimates.
fuzz = settings(fuzz, derandomize="EPICONV_FUZZ_EXAMPLES" not in os.environ)
MOVES = (0.0, 1e-13, -1e-13, 3e-13)


def _distance(a, b):
    # torch's kernels differ in which of two equal zeros they choose, and its sign is that of 1 / 0. What each
    # operation makes of infinities and NaN is tested one by one.
    same = (a == b) | ~(a.isfinite() | b.isfinite())
    return torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))


def tolerance(gradients):
    """How far a gradient may be off: a rounding error's worth, more where errors of the inputs grow to more.

    A comparison that rounding can flip makes that infinite, or as large as what it chooses between.
    """
    first, *moved = gradients
    spread = torch.stack([_distance(first, other) for other in moved]).amax(0)
    size = first.abs().nan_to_num(nan=0.0, posinf=0.0)
    # Terms of order 1 may cancel, as behind the norm of a constant.
    return 30 * spread + 1e-11 * (size + size.max() if size.numel() else size) + 1e-12


def check(case, gradient_spec, wanted, threads):
    """Fails, with a line that reproduces it, unless each gradient is autograd's."""
    line = f"\ncheck({case!r}, {gradient_spec!r}, {wanted!r}, {threads})"
    gradient = make(gradient_spec)
    try:
        got = run_backward(case, gradient, wanted, threads=threads)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}{line}") from error
    expected = [expected_gradients(case, gradient, wanted, move) for move in MOVES]
    assert set(got) == {name for name, value in expected[0].items() if value is not None}, line
    for name, result in got.items():
        targets = [each[name].sum_to_size(result.shape) for each in expected]
        wrong = _distance(targets[0], result.double()) > tolerance(targets)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{int(wrong.sum())} of {wrong.numel()} gradients of {name} are off; at {place} "
                f"{result[place].item()!r} is not {targets[0][place].item()!r}{line}"
            )


def in_double(case):
    """The case with every floating tensor in float64, so that little but the order of sums is rounded.

    Without gelu and tanh: in their tails derivatives are what cancellation leaves of terms of order 1, of
    which no move of the inputs tells how much it is off.
    """
    text = case.text.replace("gelu", "silu").replace(", approximate=tanh", "")
    text = re.sub(r"\btanh", "sigmoid", text)

    def spec(given):
        return dataclasses.replace(given, dtype="float64") if "float" in given.dtype else given

    bias = None if case.bias is None else spec(case.bias)
    return dataclasses.replace(
        case, text=text, y=spec(case.y), operands=tuple([spec(b) for b in case.operands]), bias=bias
    )


@st.composite
def backward_cases(draw):
    case = in_double(draw(cases()))
    layout = draw(st.sampled_from((*LAYOUTS, "expanded")))
    dtype = str(output_dtype(case, tensors_of(case)[1])).removeprefix("torch.")
    # No seed of y: a norm's derivative along its own input is 0, and what is computed is rounding.
    gradient = TensorSpec(case.y.shape, dtype, layout, draw(st.integers(1000, 1999)))
    names = wanted_names(case)
    wanted = draw(st.sampled_from((names, names, tuple(n for n in names if draw(st.booleans())))))
    return case, gradient, wanted, draw(st.sampled_from((1, 3)))


@fuzz
@given(backward_cases())
def test_gradients_of_random_programs(drawn):
    check(*drawn)


@fuzz
@given(cases(), st.data())
def test_less_that_is_saved_gives_the_same(case, data):
    """The output, or nothing, where that is said to suffice: the bits of what the convolution's gives, where
    all lie alike, so that sums have one order."""
    contiguous = dataclasses.replace(case.y, layout="contiguous")
    case = dataclasses.replace(case, y=contiguous, output_layout="contiguous")
    names = wanted_names(case)
    wanted = tuple(name for name in names if data.draw(st.booleans()))
    least = needs_of(case, wanted).saved
    dtype = str(output_dtype(case, tensors_of(case)[1])).removeprefix("torch.")
    gradient = make(TensorSpec(case.y.shape, dtype, "contiguous", 7))
    usual = run_backward(case, gradient, wanted)
    less = run_backward(case, gradient, wanted, saved=least)
    assert set(usual) == set(less)
    if least == "output" and dtype in ("float16", "bfloat16"):
        return  # what rounds to a bound counts as lying there, as it does for torch
    for name, value in usual.items():
        torch.testing.assert_close(less[name], value, rtol=0, atol=0, equal_nan=True)
