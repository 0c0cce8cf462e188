"""Gradients of `fused_conv_epilogue` on the CPU: values, what is kept for them, what is computed."""

import pytest
import torch
import torch.nn.functional as F
from training_cases import EPILOGUES, SAVES, Kept, Masks, one_thread, tensors  # noqa: F401 - a fixture

import epiconv
from epiconv import ops


def conv_words(rank):
    return [
        ("plain", (2, 4), (6, 4), {}),
        ("stride and padding", (2, 4), (6, 4), {"stride": 2, "padding": 1}),
        ("dilation", (1, 4), (6, 4), {"dilation": 2, "padding": 2}),
        ("groups", (2, 4), (6, 2), {"groups": 2, "padding": 1}),
        ("same", (1, 4), (6, 4), {"padding": "same"}),
        *[
            (mode, (1, 2), (6, 2), {"padding": 1, "padding_mode": mode})
            for mode in ("reflect", "replicate", "circular")
        ],
        ("transposed", (2, 4), (4, 6), {"transposed": True, "stride": 2, "output_padding": 1, "padding": 1}),
        ("unbatched", (4,), (6, 4), {"padding": 1}),
    ]  # fmt: skip


CONVOLUTIONS = [
    pytest.param(rank, *rest, id=f"{rank}d {name}") for rank in (1, 2, 3) for name, *rest in conv_words(rank)
]


@pytest.mark.parametrize(("rank", "input_shape", "weight_shape", "words"), CONVOLUTIONS)
def test_gradcheck_of_convolutions(rank, input_shape, weight_shape, words):
    extents = (3, 3, 2) if rank == 3 else (5, 4)[:rank]
    taps = (2, 2, 1) if rank == 3 else (3, 2)[:rank]
    extents = tuple([e + (1 if words.get("dilation") else 0) for e in extents])
    x, weight, bias, scale = tensors((*input_shape, *extents), (*weight_shape, *taps), (6,), (6, *[1] * rank))

    def function(x, weight, bias, scale):
        return epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.mul(scale), ops.tanh()], **words)

    # Along random directions: torch checks the convolution's own derivative, element by element.
    assert torch.autograd.gradcheck(function, [x, weight, bias, scale], fast_mode=True)


OPERANDS = [(), (1,), (4,), (5, 4), (6, 1, 1), (2, 6, 1, 1), (2, 1, 5, 4), (2, 6, 5, 4)]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("shape", OPERANDS, ids=str)
def test_gradcheck_of_operands(shape, save):
    x, weight, bias, operand, other = tensors((2, 3, 6, 5), (6, 3, 2, 2), (6,), shape, shape)

    def function(x, weight, bias, operand, other):
        epilogue = [ops.mul(operand), ops.silu(), ops.add(other)]
        return epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue, save=save)

    assert torch.autograd.gradcheck(function, [x, weight, bias, operand, other])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("save", SAVES)
def test_gradcheck_of_a_norm(save, layout):
    x, weight, gamma, beta, residual = tensors((2, 3, 5, 4), (6, 3, 2, 2), (6,), (6,), (2, 6, 4, 3))
    program = epiconv.Program(
        "v1 = silu(v0); v2 = group_norm(v1, 2, b0, b1); v3 = mul(v2, v1); v4 = add(v3, b2)"
    )

    def function(x, weight, gamma, beta, residual):
        x = x.contiguous(memory_format=layout)
        return epiconv.fused_conv_epilogue(x, weight, epilogue=program(gamma, beta, residual), save=save)

    assert torch.autograd.gradcheck(function, [x, weight, gamma, beta, residual])


def both_gradients(name, dtype, layout, save, gradient_layout=torch.contiguous_format):
    """Ours and eager's, in the order of the tensors; and eager's in float64."""
    ours, theirs = EPILOGUES[name]
    made = tensors((2, 4, 9, 8), (6, 4, 3, 3), (6,), (6, 1, 1), (2, 6, 7, 6), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    gradient = (
        torch.randn(2, 6, 7, 6, generator=generator).to(dtype).contiguous(memory_format=gradient_layout)
    )

    def differentiate(function, given, gradient):
        x, weight, bias, scale, residual = given
        return torch.autograd.grad(
            function(x, weight, bias, scale, residual), given, gradient, allow_unused=True
        )

    def fused(x, weight, bias, scale, residual):
        x = x.contiguous(memory_format=layout)
        return epiconv.fused_conv_epilogue(x, weight, bias, epilogue=ours(scale, residual), save=save)

    def eager(x, weight, bias, scale, residual):
        return theirs(F.conv2d(x, weight, bias), scale, residual)

    exact = [tensor.detach().double().requires_grad_() for tensor in made]
    return (
        differentiate(fused, made, gradient),
        differentiate(eager, made, gradient),
        differentiate(eager, exact, gradient.double()),
    )


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", EPILOGUES)
def test_as_accurate_as_eager(name, dtype, layout, save):
    """At most twice eager's error against float64, and two roundings: of the result, and of the gradient of
    the convolution's output. In float64 eager's own result is the measure."""
    gradient_layout = torch.channels_last if layout == torch.contiguous_format else torch.contiguous_format
    got, eager, exact = both_gradients(name, dtype, layout, save, gradient_layout)
    for ours, theirs, right in zip(got, eager, exact, strict=True):
        assert (ours is None) == (theirs is None) == (right is None)
        if ours is None:
            continue
        assert ours.dtype == dtype and ours.shape == right.shape
        error = (theirs.double() - right).abs().max()
        roundings = 64 if dtype == torch.float64 else 2  # sums of as many terms, in another order
        allowed = 2 * error + roundings * torch.finfo(dtype).eps * right.abs().max()
        assert ((ours.double() - right).abs() <= allowed).all()


@pytest.mark.parametrize("name", EPILOGUES)
def test_what_is_saved_does_not_change_the_bits(name):
    auto, conv, again = (
        both_gradients(name, torch.float32, torch.contiguous_format, save)[0] for save in SAVES
    )
    for a, b, c in zip(auto, conv, again, strict=True):
        assert a is None or (torch.equal(a, b) and torch.equal(b, c))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16", "fp16"])
def test_gradients_at_a_precision(precision):
    """Those of the rounded values, as where plain torch operations run."""
    x, weight = tensors((2, 4, 6, 5), (6, 4, 3, 3), dtype=torch.float32)
    epilogue = [ops.gelu()]
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=epilogue, precision=precision)
    got = torch.autograd.grad(y.sum(), [x, weight])
    with torch.autograd.forward_ad.dual_level():  # in which plain operations run
        y = epiconv.fused_conv_epilogue(x, weight, epilogue=epilogue, precision=precision)
        expected = torch.autograd.grad(y.sum(), [x, weight])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("epilogue", "save", "expected"),
    [
        ([], "auto", []),
        ([ops.mul(2.0), ops.add(1.0)], "conv", []),
        ([ops.relu()], "auto", ["output"]),
        ([ops.relu()], "conv", [(2, 6, 5, 4)]),
        ([ops.relu()], "recompute", []),
        ([ops.gelu()], "auto", [(2, 6, 5, 4)]),
        ([ops.gelu()], "recompute", []),
        ([ops.group_norm(3)], "recompute", [(2, 3), (2, 3)]),
        ([ops.group_norm(3)], "auto", [(2, 6, 5, 4), (2, 3), (2, 3)]),
    ],
)
def test_what_is_kept(epilogue, save, expected):
    x, weight, bias = tensors((2, 4, 7, 6), (6, 4, 3, 3), (6,))
    with Kept() as kept:
        y = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue, save=save)
    holds_output = any(tensor.data_ptr() == y.data_ptr() for tensor in kept.tensors)
    assert holds_output == ("output" in expected)
    assert kept.beside(x, weight, bias, y) == [shape for shape in expected if shape != "output"]


def test_operands_that_no_derivative_reads_are_not_kept():
    x, weight, residual, scale = tensors((2, 4, 7, 6), (6, 4, 3, 3), (2, 6, 5, 4), (6, 1, 1))
    residual.requires_grad_(False)
    with Kept() as kept:
        epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.mul(scale), ops.add(residual)])
    pointers = {tensor.data_ptr() for tensor in kept.tensors}
    assert residual.data_ptr() not in pointers and scale.data_ptr() in pointers


def test_no_more_is_kept_than_by_eager():
    """Bytes of what is kept beside the parameters, for chains that eager runs in place where it can."""
    x, weight, bias, residual = tensors((2, 4, 9, 8), (6, 4, 3, 3), (6,), (2, 6, 7, 6), dtype=torch.float32)

    def kept_bytes(function):
        with Kept() as kept:
            function()
        unique = {tensor.data_ptr(): tensor for tensor in kept.tensors}
        for parameter in (weight, bias):
            unique.pop(parameter.data_ptr(), None)
        return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())

    for epilogue, eager in (
        ([], lambda y: y),
        ([ops.relu()], lambda y: y.relu_()),
        ([ops.add(residual), ops.relu()], lambda y: y.add_(residual).relu_()),
        ([ops.gelu()], lambda y: F.gelu(y)),
        ([ops.silu(), ops.mul(residual)], lambda y: F.silu(y) * residual),
        ([ops.group_norm(3), ops.silu()], lambda y: F.silu(F.group_norm(y, 3))),
    ):
        ours = kept_bytes(lambda e=epilogue: epiconv.fused_conv_epilogue(x, weight, bias, epilogue=e))
        theirs = kept_bytes(lambda e=eager: e(F.conv2d(x, weight, bias)))
        assert ours <= theirs, epilogue


@pytest.mark.parametrize(
    ("wanted", "convolution", "epilogue"),
    [
        ("x", [True, False, False], [True, False, False, False]),
        ("weight", [False, True, False], [True, False, False, False]),
        ("x weight", [True, True, False], [True, False, False, False]),
        ("bias", None, [False, True, False, False]),
        ("scale", None, [False, False, True, False]),
        ("residual", None, [False, False, False, True]),
        ("weight bias residual", [False, True, False], [True, True, False, True]),
    ],
)
def test_frozen_tensors_cost_nothing(wanted, convolution, epilogue):
    names = ("x", "weight", "bias", "scale", "residual")
    made = dict(zip(names, tensors((2, 4, 7, 6), (6, 4, 3, 3), (6,), (6, 1, 1), (2, 6, 5, 4)), strict=True))
    for name, tensor in made.items():
        tensor.requires_grad_(name in wanted.split())
    x, weight, bias, scale, residual = made.values()
    y = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.mul(scale), ops.gelu(), ops.add(residual)])
    with Masks() as masks:
        y.sum().backward()
    assert masks.convolutions == ([] if convolution is None else [convolution])
    assert masks.epilogues == [epilogue] and masks.forwards == 0
    for name, tensor in made.items():
        assert (tensor.grad is not None) == (name in wanted.split())
    expected = F.gelu(F.conv2d(x, weight, bias) * scale) + residual
    for name in wanted.split():
        (right,) = torch.autograd.grad(expected.sum(), made[name], retain_graph=True)
        torch.testing.assert_close(made[name].grad, right)


def test_the_convolution_is_run_again_where_asked():
    x, weight = tensors((2, 4, 7, 6), (6, 4, 3, 3))
    for save, expected in (("auto", 0), ("recompute", 1)):
        y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.gelu()], save=save)
        with Masks() as masks:
            y.sum().backward()
        assert masks.forwards == expected
