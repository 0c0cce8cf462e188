"""The core's `BackwardPlan`: derivatives of every operation, sums of every shape, needs."""

import dataclasses
import math

import pytest
import torch
from backward_runner import expected_gradients, needs_of, run_backward, run_forward, wanted_names
from program_strategies import LAYOUTS, Case, TensorSpec, make, tensors_of, values_of
from test_operations import OPERATIONS, PARAMETERS, VALUE_KINDS

from epiconv.fallback import apply_epilogue
from epiconv.program import Program

SHAPE = (2, 6, 5, 7)
Y = TensorSpec(SHAPE, "float64", seed=3)
FULL = TensorSpec(SHAPE, "float64", "channels_last", seed=4)
CHANNEL = TensorSpec((6, 1, 1), "float64", seed=5)
VECTOR = TensorSpec((6,), "float64", seed=6)
GRADIENT = TensorSpec(SHAPE, "float64", seed=7)


ENGINES = [
    pytest.param(("cpu", False), id="cpu"),
    pytest.param(("cuda", False), id="interpreted", marks=pytest.mark.gpu),
    pytest.param(("cuda", True), id="compiled", marks=pytest.mark.gpu),
]


@pytest.fixture(params=ENGINES)
def engine(request):
    """What runs: arguments of `run_backward`."""
    device, is_compiled = request.param
    if device == "cpu":
        return {}
    request.getfixturevalue("card")
    if not is_compiled:
        return {"device": device}
    request.getfixturevalue("nvrtc")
    major, minor = torch.cuda.get_device_capability()
    return {"device": device, "compiled_for": 10 * major + minor}


def statements():
    """Every operation with every combination of its written parameters, its tensors y and operands."""
    for info in OPERATIONS.values():
        if info.is_predicate:
            continue
        written = [argument for argument in info.arguments if argument.kind not in VALUE_KINDS]
        for parameters in PARAMETERS[info.name] if written else [{}]:
            words, specs = [], []
            for argument in info.arguments:
                if argument.kind not in VALUE_KINDS:
                    value = parameters[argument.name]
                    words.append(f"{argument.name}={str(value).removeprefix('torch.')}")
                elif info.name == "where" and argument.name == "condition":
                    words.append(f"b{len(specs)}")
                    specs.append(dataclasses.replace(FULL, dtype="bool"))
                elif "v0" not in words:
                    words.append("v0")
                else:
                    words.append(f"b{len(specs)}")
                    spec = VECTOR if argument.kind == "channel" else FULL
                    specs.append(dataclasses.replace(spec, seed=10 + len(specs)))
            yield pytest.param(
                f"v1 = {info.name}({', '.join(words)})", tuple(specs), id=f"{info.name}{parameters}"
            )


def assert_gradients(got, expected, rtol=1e-12, atol=1e-12):
    assert set(got) == {name for name, value in expected.items() if value is not None}
    for name, value in got.items():
        torch.testing.assert_close(
            value.double(),
            expected[name],
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(("text", "specs"), list(statements()))
def test_every_operation(text, specs, engine):
    case = Case(text, Y, specs)
    gradient = make(GRADIENT)
    assert_gradients(run_backward(case, gradient, **engine), expected_gradients(case, gradient))


# torch's derivative of softsign is a sum of two terms, in which infinite gradients meet.
@pytest.mark.parametrize(("text", "specs"), [p for p in statements() if "softsign" not in p.id])
def test_every_operation_with_gradients_that_are_not_finite(text, specs, engine):
    """A gradient that torch selects away is 0, also where it is NaN or infinite; one that it multiplies by 0
    is NaN. Values are "special" too: zeros, infinities and NaN."""
    special = [
        spec if spec.dtype == "bool" else dataclasses.replace(spec, values="special") for spec in specs
    ]
    case = Case(text, dataclasses.replace(Y, values="special"), tuple(special))
    gradient = make(dataclasses.replace(GRADIENT, values="special", layout="sliced"))
    wanted = [name for name in wanted_names(case) if name == "y" or specs[int(name[1:])].shape == SHAPE]
    assert_gradients(
        run_backward(case, gradient, wanted, **engine), expected_gradients(case, gradient, wanted)
    )


TIES = [
    ("v1 = minimum(v0, 2.0)", 2.0, 0.5),
    ("v1 = maximum(v0, 2.0)", 2.0, 0.5),
    ("v1 = clamp(v0, -1.0, 2.0)", 2.0, 1.0),
    ("v1 = clamp(v0, -1.0, 2.0)", -1.0, 1.0),
    ("v1 = relu(v0)", 0.0, 0.0),
    ("v1 = relu6(v0)", 6.0, 0.0),
    ("v1 = hardtanh(v0)", 1.0, 0.0),
    ("v1 = hardtanh(v0)", -1.0, 0.0),
    ("v1 = hardsigmoid(v0)", 3.0, 0.0),
    ("v1 = hardsigmoid(v0)", -3.0, 0.0),
    ("v1 = hardswish(v0)", 3.0, 1.0),
    ("v1 = hardswish(v0)", -3.0, 0.0),
    ("v1 = hardshrink(v0)", 0.5, 0.0),
    ("v1 = threshold(v0, 0.5, 0.0)", 0.5, 0.0),
    ("v1 = abs(v0)", 0.0, 0.0),
    ("v1 = maximum(v0, v0)", 3.0, 1.0),
]


@pytest.mark.parametrize(("text", "value", "expected"), TIES)
def test_ties(text, value, expected, monkeypatch, engine):
    case = Case(text, TensorSpec((1, 1, 3), "float32"), ())
    monkeypatch.setattr("backward_runner.tensors_of", lambda case: (torch.full((1, 1, 3), value), [], None))
    got = run_backward(case, torch.full((1, 1, 3), 8.0), **engine)
    assert got["y"].tolist() == [[[8.0 * expected] * 3]]


def test_a_tie_is_split_between_operands(monkeypatch, engine):
    case = Case("v1 = minimum(v0, b0)", TensorSpec((1, 2, 3), "float32"), (TensorSpec((2, 1), "float32"),))
    tensors = torch.ones(1, 2, 3), [torch.tensor([[1.0], [5.0]])], None
    monkeypatch.setattr("backward_runner.tensors_of", lambda case: tensors)
    got = run_backward(case, torch.full((1, 2, 3), 2.0), **engine)
    assert got["y"].tolist() == [[[1.0] * 3, [2.0] * 3]]
    assert got["b0"].tolist() == [[3.0], [0.0]]


OPERAND_SHAPES = [
    (), (1,), (7,), (5, 7), (1, 5, 7), (6, 1, 1), (1, 6, 1, 1), (2, 6, 1, 1), (2, 1, 1, 1), (2, 1, 5, 7),
    (5, 1), (1, 1, 1, 1), SHAPE,
]  # fmt: skip


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("shape", OPERAND_SHAPES, ids=str)
def test_sums_are_exact_on_small_integers(shape, layout, engine):
    """Bit for bit, for every shape of an operand and layouts of all tensors; a 0-d one is a number."""
    y = TensorSpec(SHAPE, "float32", "contiguous" if layout == "expanded" else layout, 1, "integers")
    operand_layout = layout if len(shape) > 1 else "contiguous"
    operand = TensorSpec(shape, "float32", operand_layout, 2, "integers")
    case = Case("v1 = mul(v0, b0); v2 = add(v1, v0)", y, (operand,), output_layout=y.layout)
    for gradient_layout in ("contiguous", "channels_last", "expanded"):
        gradient = make(TensorSpec(SHAPE, "float32", gradient_layout, 3, "integers"))
        for target in ("contiguous", "channels_last"):
            got = run_backward(case, gradient, layout=target, **engine)
            expected = expected_gradients(case, gradient)
            assert torch.equal(got["y"].double(), expected["y"])
            assert torch.equal(got["b0"].double(), expected["b0"])


def test_dtypes_of_everything(engine):
    """Each gradient has the dtype of its tensor; integers and bools have none."""
    operands = (
        TensorSpec((6, 1, 1), "bfloat16", seed=1, values="integers"),
        TensorSpec((5, 7), "float16", seed=2, values="integers"),
        TensorSpec(SHAPE, "int16", seed=3),
        TensorSpec((6, 1, 1), "bool", seed=4),
    )
    text = "v1 = mul(v0, b0); v2 = sub(v1, b1); v3 = mul(v2, b2); v4 = where(b3, v3, v1)"
    case = Case(text, TensorSpec(SHAPE, "bfloat16", seed=5, values="integers"), operands)
    gradient = make(TensorSpec(SHAPE, "float32", seed=6, values="integers"))
    got = run_backward(case, gradient, **engine)
    assert {name: value.dtype for name, value in got.items()} == {
        "y": torch.bfloat16,
        "b0": torch.bfloat16,
        "b1": torch.float16,
    }
    for name, value in expected_gradients(case, gradient).items():
        assert torch.equal(got[name], value.to(got[name].dtype)), name


ACCURACY = [
    ("v1 = relu(v0); v2 = add(v1, b0)", ((6, 1, 1),)),
    ("v1 = mul(v0, b0); v2 = gelu(v1); v3 = sigmoid(v2)", ((6, 1, 1),)),
    ("v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)", ((6, 1, 1),)),
    ("v1 = hardswish(v0); v2 = mul(v1, v0); v3 = add(v2, b0)", (SHAPE,)),
    ("v1 = mish(v0); v2 = tanh(v1); v3 = div(v2, 3.0)", ()),
    ("v1 = silu(v0); v2 = mul(v1, b0); v3 = softplus(v2)", ((5, 7),)),
    ("v1 = group_norm(v0, 3, b0, b1); v2 = silu(v1)", ((6,), (6,))),
    ("v1 = sigmoid(v0); v2 = mul(v1, b0); v3 = group_norm(v2, 2); v4 = add(v3, v2)", ((2, 1, 5, 7),)),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("text", "shapes"), ACCURACY, ids=[text for text, _ in ACCURACY])
def test_as_accurate_as_eager(text, shapes, dtype, engine):
    """At most twice the error of the operations in torch in that dtype, and one rounding of the result."""
    shape = (4, 6, 33, 29)
    grown = {SHAPE: shape, (5, 7): shape[2:], (2, 1, 5, 7): (4, 1, 33, 29)}
    specs = [TensorSpec(grown.get(s, s), dtype, seed=20 + i) for i, s in enumerate(shapes)]
    case = Case(text, TensorSpec(shape, dtype, seed=8), tuple(specs), TensorSpec((6,), dtype, seed=9))
    gradient = make(TensorSpec(shape, dtype, seed=10))
    got = run_backward(case, gradient, **engine)
    expected = expected_gradients(case, gradient)
    eager = eager_gradients(case, gradient)
    eps = torch.finfo(getattr(torch, dtype)).eps
    for name, value in got.items():
        exact = expected[name]
        theirs = (eager[name].double() - exact).abs().max()
        allowed = 2 * theirs + eps * exact.abs()
        assert ((value.double() - exact).abs() <= allowed).all(), name


def eager_gradients(case, gradient):
    """Of the statements as torch runs them in the tensors' own dtype, rounded after each."""
    y, operands, bias = tensors_of(case)
    leaves = {"y": y, "bias": bias, **{f"b{i}": b for i, b in enumerate(operands)}}
    for leaf in leaves.values():
        leaf.requires_grad_()
    from epiconv.steps import call, resolve  # the statements' own torch functions

    values = [y + bias.view(-1, 1, 1)]
    for step in Program(case.text).steps:
        arguments = resolve(step, values, operands)
        if step.name == "minimum":
            arguments[1] = torch.tensor(arguments[1], dtype=y.dtype)
        values.append(call(step.name, arguments))
    found = torch.autograd.grad(values[-1], list(leaves.values()), gradient.to(values[-1].dtype))
    return dict(zip(leaves, found, strict=True))


BIG = (3, 9, 71, 53)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("v1 = mul(v0, b0); v2 = mul(v1, b1); v3 = gelu(v2)", ((9, 1, 1), (3, 9, 1, 1))),
        ("v1 = mul(v0, b0); v2 = mul(v1, b1)", ((71, 53), (3, 1, 71, 53))),
        ("v1 = mul(v0, b0); v2 = group_norm(v1, 3, b1, b2); v3 = mul(v2, b3)", ((71, 53), (9,), (9,), (53,))),
    ],
)
def test_threads_do_not_change_the_bits(text, shapes, layout):
    """Enough elements for several pieces, with a number of them that nothing divides."""
    specs = tuple(TensorSpec(shape, "float32", seed=i) for i, shape in enumerate(shapes))
    case = Case(text, TensorSpec(BIG, "float32", layout, 8), specs, TensorSpec((9,), "float32", seed=9))
    gradient = make(TensorSpec(BIG, "float32", layout, 10))
    single = run_backward(case, gradient)
    for threads in (2, 3, 7, 64):
        for name, value in run_backward(case, gradient, threads=threads).items():
            assert torch.equal(value, single[name]), (name, threads)
    expected = expected_gradients(case, gradient)
    for name, value in single.items():
        torch.testing.assert_close(
            value.double(), expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )


def test_sums_do_not_lose_what_is_small(engine):
    """A float32 sum of as many elements would be off by far more than a rounding of the result."""
    count = 2**20
    case = Case("v1 = add(v0, b0)", TensorSpec((1, 1, count), "float32"), (TensorSpec((1, 1), "float32"),))
    gradient = torch.full((1, 1, count), 0.1)
    gradient[0, 0, 0] = 1e7
    (result,) = run_backward(case, gradient, ["b0"], **engine)["b0"].flatten().tolist()
    exact = gradient.double().sum()
    assert result == float(exact.float())


@pytest.mark.parametrize("name", ["y", "bias", "b0", "b1", "b2"])
def test_one_wanted_gradient_is_what_it_is_among_all(name, engine):
    text = "v1 = mul(v0, b0); v2 = group_norm(v1, 3, b1, b2); v3 = silu(v2)"
    case = Case(text, Y, (CHANNEL, VECTOR, VECTOR), bias=VECTOR)
    gradient = make(GRADIENT)
    whole = run_backward(case, gradient, **engine)
    alone = run_backward(case, gradient, [name], **engine)
    assert list(alone) == [name] and torch.equal(alone[name], whole[name])


def test_a_norms_weight_that_prelu_reads_too(engine):
    """Both contributions are added, for the shift as well."""
    text = "v1 = prelu(v0, b0); v2 = group_norm(v1, 2, b0, b0); v3 = mul(v2, v1)"
    case = Case(text, Y, (VECTOR,))
    gradient = make(GRADIENT)
    assert_gradients(run_backward(case, gradient, **engine), expected_gradients(case, gradient))


def test_statistics_are_torchs():
    case = Case("v1 = sigmoid(v0); v2 = group_norm(v1, 3)", Y, ())
    _, mean, rstd = run_forward(case)
    values = values_of(Y).sigmoid()
    _, expected_mean, expected_rstd = torch.native_group_norm(values, None, None, 2, 6, 35, 3, 1e-5)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(rstd, expected_rstd, rtol=1e-13, atol=0)


@pytest.mark.parametrize("text", ["v1 = mul(v0, b0)", "v1 = mul(v0, b0); v2 = group_norm(v1, 3, b1)"])
def test_an_empty_batch_gives_zeros(text, engine):
    specs = (TensorSpec((6, 1, 1), "float32"), TensorSpec((6,), "float32"))[: text.count("b")]
    case = Case(text, TensorSpec((0, 6, 5, 7), "float32"), specs, TensorSpec((6,), "float32"))
    got = run_backward(case, torch.empty(0, 6, 5, 7), **engine)
    assert got.pop("y").shape == (0, 6, 5, 7)
    assert sorted(got) == sorted([*[f"b{i}" for i in range(len(specs))], "bias"])
    for value in got.values():
        assert not value.any() and value.shape[0] == 6


def test_no_gradient_passes_a_comparison(engine):
    case = Case("v1 = gt(v0, b0); v2 = where(v1, b1, 0.5)", Y, (CHANNEL, CHANNEL))
    assert list(run_backward(case, make(GRADIENT), **engine)) == ["b1"]
    needs = needs_of(case, ["y", "b0", "b1"])
    assert not needs.gives_input and list(needs.gives_operand) == [False, True]


def test_nan_and_infinities_pass(engine):
    """They come out where torch's come out, and nowhere else."""
    case = Case("v1 = mul(v0, b0); v2 = sigmoid(v1)", TensorSpec(SHAPE, "float64", seed=1), (CHANNEL,))
    gradient = values_of(GRADIENT)
    gradient[0, 2, 1, 1] = math.nan
    gradient[1, 4, 0, 0] = math.inf
    got, expected = run_backward(case, gradient, **engine), expected_gradients(case, gradient)
    assert_gradients(got, expected)
    assert got["b0"].isnan().flatten().tolist() == [False, False, True, False, False, False]
    assert int(got["y"].isfinite().logical_not().sum()) == 2


def test_the_reference_is_what_the_library_runs():
    """`apply_epilogue` under autograd, which the other tests' reference stands for."""
    case = Case(
        "v1 = mul(v0, b0); v2 = group_norm(v1, 3, b1); v3 = hardswish(v2)", Y, (CHANNEL, VECTOR), VECTOR
    )
    y, operands, bias = tensors_of(case)
    leaves = [y, *operands, bias]
    for leaf in leaves:
        leaf.requires_grad_()
    result = apply_epilogue(y, bias, operands, Program(case.text), torch.float64)
    gradient = make(GRADIENT)
    found = torch.autograd.grad(result, leaves, gradient)
    expected = expected_gradients(case, gradient)
    for name, value in zip(("y", "b0", "b1", "bias"), found, strict=True):
        torch.testing.assert_close(expected[name], value, rtol=1e-12, atol=1e-12)
