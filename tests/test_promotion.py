"""What programs compute in torch: the dtype of the result, and the values of `Program.apply`."""

import inspect
import math
import operator

import pytest
import torch
from torch.nn import functional as F

from epiconv import ops
from epiconv.program import (
    Program,
    bind_epilogue,
    compute_dtype,
    operand_signature,
    result_dtype,
)
from epiconv.steps import Step, call, evaluate
from epiconv.tracing import trace

FLOATING = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BIAS = torch.tensor([0.5, -1.5, 2.0]).view(3, 1, 1)
Y = torch.linspace(-4, 4, 2 * 3 * 4 * 5).view(2, 3, 4, 5)


# ---- Type promotion and values, against torch.

PROMOTIONS = [
    lambda y, b: y + b,
    lambda y, b: b - y,
    lambda y, b: y * b + 2,
    lambda y, b: y / b,
    lambda y, b: b / 2 + y,
    lambda y, b: y + b + True,
    lambda y, b: y.add(b, alpha=2),
    lambda y, b: torch.minimum(y, b),
    lambda y, b: torch.maximum(b, y).relu(),
    lambda y, b: y.clamp(min=b),
    lambda y, b: y.clamp(min=b, max=b),
    lambda y, b: torch.where(y > b, y, 0.0),
    lambda y, b: torch.where(y > 0, y, b),
    lambda y, b: torch.where(y <= b, b, 1.0) + y,
    lambda y, b: torch.where(y > b, 1.0, 0.0),
    lambda y, b: (y > b) * y,
    lambda y, b: (y != b) / 2.0,
    lambda y, b: y.half() + b,
    lambda y, b: (y + b).bfloat16() * 1.5,
    lambda y, b: y.double().mul(b).float(),
    lambda y, b: y.add_(b),
    lambda y, b: y.mul_(b).add(b),
    lambda y, b: operator.iadd(y, 2.5) * b,
    lambda y, b: torch.exp(y * 0.1) * b,
    lambda y, b: y.clamp(-1, 1).add_(b, alpha=0.5),
    lambda y, b: F.gelu(y) - b,
    lambda y, b: (y * b).square().neg(),
    lambda y, b: y.abs().pow(2) + b,
    lambda y, b: y.relu_().sub_(b),
]  # fmt: skip
OPERANDS = [
    (dtype, shape)
    for dtype in (*FLOATING, torch.int32, torch.uint8)
    for shape in ((), (3, 1, 1))
]  # fmt: skip


@pytest.mark.parametrize("y_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("function", PROMOTIONS, ids=[f"chain{i}" for i in range(len(PROMOTIONS))])
def test_result_dtype_and_values_are_torchs(function, y_dtype):
    program = trace(function)
    for dtype, shape in OPERANDS:
        b = (
            torch.tensor(2.0).to(dtype)
            if shape == ()
            else torch.tensor([1.0, 2.0, 3.0]).to(dtype).view(shape)
        )
        y = (Y + 0.03125).to(y_dtype)
        what = f"{program}: y {y_dtype}, b {dtype} {shape}"
        expected = function(y.clone(), b)
        assert result_dtype(program, y_dtype, operand_signature([b])) == expected.dtype, what
        result = program.apply(y, [b])
        assert result.dtype == expected.dtype, what
        # torch rounds every intermediate to its dtype; each costs about an ulp of the largest value.
        coarsest = max(
            torch.finfo(d).eps
            for d in (y_dtype, expected.dtype, dtype if dtype.is_floating_point else y_dtype)
        )
        for step in program.steps:
            if step.name == "cast":
                coarsest = max(coarsest, torch.finfo(getattr(torch, step.arguments[1])).eps)
        scale = expected.double().abs().max().item()
        assert (result.double() - expected.double()).abs().max().item() <= 4 * coarsest * scale, what


@pytest.mark.parametrize("y_dtype", FLOATING, ids=str)
def test_group_norm_and_prelu_keep_the_dtype_of_their_input(y_dtype):
    for dtype in FLOATING:
        weight = torch.ones(3, dtype=dtype)
        assert result_dtype(Program("v1 = prelu(v0, b0)"), y_dtype, operand_signature([weight])) == y_dtype
        program = Program("v1 = group_norm(v0, 3, weight=b0)")
        assert result_dtype(program, y_dtype, operand_signature([weight])) == y_dtype


def test_result_dtype_follows_the_default_dtype():
    program = Program("v1 = gt(v0, 0.0); v2 = where(v1, 1.0, 0.0)")
    assert result_dtype(program, torch.float16, ()) == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert result_dtype(program, torch.float16, ()) == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("text", "operands", "words"),
    [
        ("v1 = gt(v0, 0.0)", [], ["gives torch.bool, which is not floating", "ops.cast(torch.float32)"]),
        ("v1 = add_(v0, b0)", [BIAS.to(torch.complex64)], ["add, statement 1", "cannot be stored into"]),
        ("v1 = gt(v0, 0.0); v2 = lt(v0, 1.0); v3 = add(v1, v2); v4 = mul(v3, v0)", [],
         ["add, statement 3", "cast"]),
        ("v1 = gt(v0, 0.0); v2 = sub(1.0, v1)", [], ["sub, statement 2", "does not subtract bools"]),
        ("v1 = gt(v0, 0.0); v2 = neg(v1); v3 = mul(v2, v0)", [], ["neg, statement 2"]),
        ("v1 = gt(v0, 0.0); v2 = relu(v1); v3 = mul(v2, v0)", [],
         ["relu, statement 2", "floating dtype first"]),
        ("v1 = gt(v0, 0.0); v2 = abs(v1); v3 = mul(v2, v0)", [], ["abs, statement 2"]),
        ("v1 = where(v0, v0, 1.0)", [], ["where, statement 1", "its condition is torch.float32"]),
        ("v1 = where(b0, v0, 1.0)", [BIAS.to(torch.uint8)], ["its condition is torch.uint8", "ne(b0, 0)"]),
        ("v1 = gelu(b0); v2 = mul(v1, v0)", [BIAS.to(torch.int64)], ["gelu, statement 1", "torch.int64"]),
        ("v1 = add(b0, 1.0); v2 = add_(v1, v0)", [torch.tensor(1.0)], ["into a 0-d tensor"]),
        ("v1 = gt(v0, 0.0); v2 = mul_(v1, v0)", [], ["mul, statement 2", "cannot be stored into torch.bool"]),
        ("v1 = add(v0, b0)", [], ["needs 1 operands, got 0"]),
    ],
)  # fmt: skip
def test_promotion_refusals(text, operands, words):
    with pytest.raises(TypeError) as refusal:
        result_dtype(Program(text), torch.float32, operand_signature(operands))
    for word in words:
        assert word in str(refusal.value)


def test_compute_dtype():
    half, double = torch.float16, torch.float64
    add = Program("v1 = add(v0, b0)")
    assert compute_dtype(add, half, ((torch.float32, False),)) == torch.float32
    assert compute_dtype(add, double, ((torch.float32, False),)) == double
    assert compute_dtype(add, half, ((double, False),)) == double
    assert compute_dtype(add, half, ((double, True),)) == torch.float32
    assert compute_dtype(Program("v1 = cast(v0, float64); v2 = cast(v1, float16)"), half, ()) == double


# ---- Program.apply.


@pytest.mark.parametrize("spec", ops.TABLE.values(), ids=lambda spec: spec.name)
def test_every_operation_takes_all_its_arguments(spec):
    """With defaults, and with every argument given something else; alone, and as torch is called by hand."""
    other = {
        "alpha": 0.5, "exponent": 3, "negative_slope": 0.3, "beta": 2.0, "threshold": 0.25, "value": -1.0,
        "min_val": -0.5, "max_val": 0.75, "lambd": 0.2, "approximate": "tanh", "num_groups": 3, "eps": 1e-3,
    }  # fmt: skip
    tensors = [Y, Y.flip(0) * 0.7 + 0.1, Y.flip(1) + 0.2]
    for given_all in (False, True):
        arguments = []
        for index, argument in enumerate(spec.arguments):
            if spec.name == "where" and index == 0:
                arguments.append(Y > 0.5)
            elif argument.kind in ("tensor", "any") or (argument.kind == "optional" and given_all):
                arguments.append(tensors[index])
            elif argument.kind == "channel" or (argument.kind == "optional_channel" and given_all):
                arguments.append(BIAS.flatten() + index)
            elif argument.kind == "dtype":
                arguments.append("bfloat16")
            elif given_all or argument.default is inspect.Parameter.empty:
                arguments.append(other[argument.name])
            else:
                arguments.append(argument.default)
        if spec.name == "clamp" and not given_all:
            arguments[1] = -0.5
        words = tuple(("v", i) if isinstance(a, torch.Tensor) else a for i, a in enumerate(arguments))
        result = evaluate(Step(spec.name, False, words), arguments, [], torch.float32)
        if spec.name == "cast":
            assert torch.equal(result, Y.bfloat16().float())
            continue
        keyword = {a.name: value for a, value in zip(spec.arguments, arguments, strict=True)}
        function = operator.attrgetter(spec.torch_path)(torch)
        positional = [keyword.pop(a.name) for a in spec.arguments if a.default is inspect.Parameter.empty]
        expected = function(*positional, **keyword)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(call(spec.name, arguments), expected, rtol=0, atol=0, equal_nan=True)


def test_alpha():
    """torch takes it by keyword only."""
    program, operands = bind_epilogue([ops.add(BIAS, alpha=0.5), ops.sub(1.0, alpha=3)])
    assert torch.equal(program.apply(Y, operands), Y + 0.5 * BIAS - 3)
    assert result_dtype(program, torch.float16, operand_signature(operands)) == torch.float32
    integers = Program("v1 = add(b0, b1); v2 = add(v1, v0)")
    assert (
        result_dtype(integers, torch.float16, ((torch.int32, False), (torch.int64, False))) == torch.float16
    )


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("v1 = sub(2.0, v0, alpha=4)", lambda y: 2.0 - 4 * y),
        ("v1 = div(1.0, v0)", lambda y: 1 / y),
        ("v1 = minimum(0.5, v0); v2 = maximum(v1, -1)", lambda y: y.clamp(-1, 0.5)),
        ("v1 = gt(0.5, v0); v2 = where(v1, v0, 2)", lambda y: torch.where(y < 0.5, y, 2.0)),
        ("v1 = lt(v0, 0.0); v2 = where(v1, 1.0, 0.0)", lambda y: (y < 0).float()),
        ("v1 = clamp(v0, min=-0.5, max=v0)", lambda y: torch.maximum(y, torch.tensor(-0.5)).clamp(max=y)),
        ("v1 = eq(v0, v0); v2 = where(v1, True, v0)", torch.ones_like),
    ],
)
def test_numbers_in_place_of_tensors(text, function):
    assert torch.equal(Program(text).apply(Y), function(Y))


def test_intermediates_are_not_rounded():
    """In eager torch 1 + 2^-10 would vanish in bfloat16 before it is subtracted again."""
    program = Program("v1 = add(v0, 0.0009765625); v2 = sub(v1, 1.0); v3 = mul(v2, 1024.0)")
    assert program.apply(torch.ones(1, 1, 1, dtype=torch.bfloat16)).item() == 1.0
    rounded = Program("v1 = add(v0, 0.0009765625); v2 = cast(v1, bfloat16); v3 = sub(v2, 1.0)")
    assert rounded.apply(torch.ones(1, 1, 1, dtype=torch.bfloat16)).item() == 0.0


def test_apply_with_a_dtype():
    program = Program("v1 = gt(v0, 0.0)")
    assert torch.equal(program.apply(Y, dtype=torch.float16), (Y > 0).half())
    assert Program("").apply(Y, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_apply_leaves_its_arguments_alone():
    y, b = Y.clone(), BIAS.clone()
    Program("v1 = add_(v0, b0); v2 = relu_(v1); v3 = mul(v2, v0)").apply(y, [b])
    assert torch.equal(y, Y) and torch.equal(b, BIAS)


def test_apply_is_differentiable():
    y = Y.double().requires_grad_()
    operands = [
        BIAS.double().requires_grad_(),
        torch.tensor([0.25, 0.5, 2.0], dtype=torch.float64).requires_grad_(),
    ]
    program = Program(
        "v1 = add_(v0, b0); v2 = prelu(v1, b1); v3 = mul(v2, v0); v4 = gelu(v3); v5 = group_norm(v4, 3)"
    )
    assert torch.autograd.gradcheck(lambda y, *operands: program.apply(y, operands), (y, *operands))


def test_nan_and_infinities_pass():
    y = torch.tensor([math.nan, math.inf, -math.inf, -0.0]).view(1, 1, 4)
    result = Program("v1 = minimum(v0, 0.5); v2 = clamp(v1, min=-2.0); v3 = relu(v2)").apply(y)
    assert result.flatten()[0].isnan()
    assert result.flatten()[1:].tolist() == [0.5, 0.0, 0.0]


def test_promotion_is_worked_out_once():
    program = Program("v1 = add(v0, b0); v2 = mish(v1)")
    signature = ((torch.float16, False),)
    first = result_dtype(program, torch.float16, signature)
    calls = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with Count():
        assert result_dtype(Program(program.text), torch.float16, signature) == first
    assert [f for f in calls if "default_dtype" not in f.__name__] == []
