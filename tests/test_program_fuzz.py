"""Random programs through the core's pass, against the same statements in torch float64.

EPICONV_FUZZ_EXAMPLES sets how many programs each test draws (default 600, about ten seconds each):

    EPICONV_FUZZ_EXAMPLES=20000 python -m pytest tests/test_program_fuzz.py

A failure prints one line, `check(Case(…), "cpu")`; pasted behind the imports of this file it fails again.
"""

import dataclasses
import math
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from program_ranges import expected_range, violations
from program_strategies import (
    Case,
    TensorSpec,
    cases,
    output_dtype,
    run,
    tensors_of,
    values_of,
)

from epiconv import _core
from epiconv.program import Program

EXAMPLES = int(os.environ.get("EPICONV_FUZZ_EXAMPLES", "600"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,  # the first example of a dtype warms torch up
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if not _core.has_cuda:
            pytest.skip("epiconv was built without CUDA")
    return request.param


def check(case, device):
    """Fails, with a line that reproduces it, unless every result lies where rounding can have left it."""
    line = f"\ncheck({case!r}, {device!r})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = run(case, device)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}{line}") from error
    low, high, unknown = expected_range(case)
    assert result.shape == low.shape and result.dtype == low.dtype, line
    wrong = violations(result, low, high, unknown)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} results are off; at {place} {result[place].item()!r} "
            f"is not within {low[place].item()!r} … {high[place].item()!r}{line}"
        )


def fuzz_on(device):
    @fuzz
    @given(cases())
    def test(case):
        check(case, device)

    return test


def test_random_programs(device):
    fuzz_on(device)()


NUMBERS = TensorSpec((2, 6, 5, 7), "float32", seed=3)
CHANNEL = TensorSpec((6, 1, 1), "float32", seed=4)


@pytest.mark.parametrize(
    "text",
    [
        "v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)",
        "v1 = add(v0, b0); v2 = gelu(v1); v3 = sigmoid(v2)",
        "v1 = mul(v0, b0); v2 = group_norm(v1, 3); v3 = hardswish(v2)",
        "v1 = add(v0, b0); v2 = mul(v1, v0); v3 = div(v2, 3.0)",
    ],
)
def test_ranges_are_narrow(text):
    """What is accepted is a few float32 ulps wide, so that a wrong result cannot hide in it."""
    case = Case(text, NUMBERS, (CHANNEL,))
    low, high, unknown = expected_range(case)
    scale = high.abs().max()
    assert not unknown.any()
    assert ((high - low) <= 4e-5 * scale).all()
    y, operands, _ = tensors_of(case)
    wrong = Program("v1 = relu(v0)").apply(y)
    assert violations(wrong, low, high, unknown).float().mean() > 0.5
    right = Program(text).apply(y, operands)
    assert not violations(right, low, high, unknown).any()
    assert violations(right + 1e-4 * scale, low, high, unknown).all()
    right.flatten()[5] = math.nan
    assert violations(right, low, high, unknown).sum() == 1


def test_range_allows_both_sides_of_a_step_only():
    """A comparison that rounding can flip may come out either way; one that it cannot may not."""
    y = TensorSpec((1, 1, 400), "float32", seed=1)
    case = Case("v1 = exp(v0); v2 = log(v1); v3 = ge(v2, b0); v4 = where(v3, 1.0, 0.0)", y, (y,))
    low, high, unknown = expected_range(case)
    assert not unknown.any()
    assert (low <= 0).all() and (high >= 1).all()
    moved = dataclasses.replace(case, text=case.text.replace("ge(v2", "ge(v1"))
    low, high, _ = expected_range(moved)
    assert (low == 1).all() and (high == 1).all()  # exp(x) > x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "reversed"])
def test_exact_on_small_integers(layout, device):
    """Integers leave nothing to rounding: bit for bit, whatever the layouts."""
    y_spec = TensorSpec((3, 5, 11, 7), "float32", layout, 5, "integers")
    specs = TensorSpec((5, 1, 1), "int8", seed=1), TensorSpec((3, 1, 11, 7), "int64", layout, 2)
    text = "v1 = minimum(v0, b0); v2 = add(v1, b1, alpha=2); v3 = mul(v2, v0); v4 = clamp(v3, -40, 50.0)"
    y, a, b = (values_of(spec).float() for spec in (y_spec, *specs))
    expected = torch.minimum(y, a).add(b, alpha=2).mul(y).clamp(-40, 50)
    assert torch.equal(run(Case(text, y_spec, specs, output_layout="sliced"), device), expected)
    assert torch.equal(run(Case(text, y_spec, specs, in_place=True), device), expected)


@pytest.mark.parametrize(
    "text", ["v1 = mish(v0); v2 = add(v1, b0)", "v1 = mul(v0, b0); v2 = group_norm(v1, 3)"]
)
def test_threads_do_not_change_the_result(text):
    """Enough elements for several threads, with a number of them that nothing divides."""
    case = Case(
        text, TensorSpec((3, 9, 71, 53), "float32", seed=8), (TensorSpec((9, 1, 1), "float32", seed=9),)
    )
    single = run(case)
    check(case, "cpu")
    for threads in (2, 3, 7):
        assert torch.equal(run(dataclasses.replace(case, threads=threads)), single)


def test_empty_batch(device):
    case = Case("v1 = relu(v0); v2 = group_norm(v1, 2)", TensorSpec((0, 4, 3, 3), "float16"), ())
    result = run(case, device)
    assert result.shape == (0, 4, 3, 3) and result.dtype == torch.float16


def test_output_dtype_is_the_programs():
    case = Case("v1 = add(v0, b0)", TensorSpec((1, 2, 3), "float16"), (TensorSpec((2, 1), "float32"),))
    assert output_dtype(case, tensors_of(case)[1]) == torch.float32
    assert run(case).dtype == torch.float32
