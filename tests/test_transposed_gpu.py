"""Transposed convolutions by the path "implicit_gemm" on a card: integers bit for bit, whatever the extents,
epilogues, gradients of convolutions, NaN and infinities, accuracy, and what is left to another path.

`fused` asserts that a kernel of transposed convolutions runs.
"""

import pytest
import torch
import torch.nn.functional as F
from card_convolutions import (
    GRADIENTS,
    LAYOUTS,
    MATHS,
    convolution,
    exactly,
    force,
    fused,
    in_layout,
    input_gradient,
    integers,
    transposed_convolution,
)
from torch import nn

import epiconv
from epiconv import ops
from epiconv.convolution import round_to
from epiconv.recipes import ConvTransposeAddClampMulClampDiv

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def only_kernels_made_for_the_card(monkeypatch):
    force(monkeypatch, "sm90")


RECIPE = {"stride": 2, "padding": 1, "output_padding": 1}

# Input, (K, taps), torch's words; each says why it is there.
PROBLEMS = {
    "recipe": ((2, 64, 16, 16), (64, 3, 3), RECIPE),
    "more tiles than multiprocessors": ((8, 64, 64, 64), (64, 3, 3), RECIPE),
    "stride 1": ((2, 8, 9, 11), (24, 3, 3), {"padding": 1}),
    "stride (1, 2)": ((2, 8, 9, 11), (24, 3, 3), {"stride": (1, 2), "padding": 1}),
    "stride (2, 1)": ((2, 8, 9, 11), (24, 3, 3), {"stride": (2, 1), "padding": (0, 1)}),
    "stride (2, 3)": ((2, 8, 9, 11), (24, 3, 4), {"stride": (2, 3), "padding": (1, 0)}),
    "stride (3, 3)": ((2, 8, 9, 11), (130, 3, 3), {"stride": 3}),
    "stride (4, 4)": ((2, 8, 9, 11), (24, 5, 6), {"stride": 4, "padding": 1}),
    "stride (4, 1)": ((2, 8, 9, 32), (24, 4, 3), {"stride": (4, 1)}),
    "7x5, stride 3": ((2, 16, 9, 11), (24, 7, 5), {"stride": 3, "padding": (3, 2)}),
    # Phases without taps are the bias alone.
    "1x1": ((2, 32, 9, 16), (64, 1, 1), {"stride": 2}),
    "filter smaller than the stride": (
        (2, 8, 9, 11),
        (24, 2, 1),
        {"stride": (3, 4), "output_padding": (2, 3)},
    ),
    "taps for one phase only": ((2, 8, 9, 11), (24, 1, 2), {"stride": (2, 4), "padding": (0, 1)}),
    "output_padding of most": ((2, 8, 9, 11), (24, 4, 3), {"stride": (3, 4), "output_padding": (2, 3)}),
    # What is cropped is more than a tap reaches.
    "padding beyond the filter": ((2, 8, 9, 11), (24, 3, 2), {"stride": 2, "padding": (4, 3)}),
    "padding of less than a phase": ((2, 8, 9, 11), (24, 4, 4), {"stride": 4, "padding": 3}),
    "GAN": ((2, 128, 8, 8), (64, 4, 4), {"stride": 2, "padding": 1}),
    "GAN, from one pixel": ((17, 100, 1, 1), (64, 4, 4), {}),
    "GAN, to RGB": ((2, 64, 32, 32), (3, 4, 4), {"stride": 2, "padding": 1}),
    "U-Net": ((2, 128, 14, 14), (64, 2, 2), {"stride": 2}),
    # Weights that do not stay in shared memory.
    "many channels": ((2, 256, 12, 12), (192, 3, 3), RECIPE),
    "one channel": ((2, 1, 19, 23), (1, 3, 3), RECIPE),
    "no vector width": ((3, 13, 7, 9), (31, 3, 3), {"stride": 2, "padding": 1}),
    # Rows that begin anywhere within a sector.
    "an odd width": ((2, 8, 9, 21), (64, 3, 3), {"stride": 2, "padding": 1}),
    "twice an odd width": ((2, 8, 9, 21), (64, 3, 3), RECIPE),
    "a wide image": ((1, 8, 3, 301), (72, 3, 3), RECIPE),
    "images of 4 x 4": ((17, 64, 4, 4), (64, 4, 4), {"stride": 2, "padding": 1}),
    "images of 7 x 7": ((9, 96, 7, 7), (48, 3, 3), RECIPE),
    "1d": ((2, 32, 100), (64, 8), {"stride": 4, "padding": 2}),
    "1d audio": ((2, 64, 500), (32, 16), {"stride": 4, "padding": 6}),
    "1d odd": ((3, 3, 37), (5, 3), {"stride": 2, "output_padding": 1}),
    "1d, stride 3": ((3, 24, 40), (1, 2), {"stride": 3, "padding": 1}),
    "1d, stride 1": ((3, 24, 64), (16, 5), {"padding": 2}),
}


def make(problem, math, layout, device, values=integers):
    """Input, weight, bias, and a shift per channel."""
    dtype = MATHS[math][0]
    shape, (k, *taps), _ = problem
    x, weight, bias, shift = (
        values(*s, device=device).to(dtype)
        for s in (shape, (shape[1], k, *taps), (k,), (k, *(1,) * len(taps)))
    )
    return in_layout(x, layout), weight, bias, shift


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("case", PROBLEMS)
def test_integers_bit_for_bit(case, math, layout, card):
    torch.manual_seed(0)
    problem = PROBLEMS[case]
    x, weight, bias, shift = make(problem, math, layout, card)
    y = transposed_convolution(x, weight, bias, **problem[2])
    words = problem[2] | {"transposed": True, "precision": MATHS[math][1]}
    if x.dim() == 4:
        words["memory_format"] = LAYOUTS[layout]
    got = fused(x, weight, bias, **words)
    exactly(got, y)
    assert got.is_contiguous(memory_format=words.get("memory_format", torch.contiguous_format))
    exactly(fused(x, weight, **words), y - bias.cpu().double().view(shift.shape))
    epilogue = [ops.sub(shift), ops.relu(), ops.clamp(max=50.0)]
    expected = torch.clamp(torch.relu(y - shift.cpu().double()), max=50.0)
    exactly(fused(x, weight, bias, epilogue=epilogue, **words), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unbatched(layout, card):
    for case in ("recipe", "1d"):
        x, weight, bias, shift = make(PROBLEMS[case], "tf32", layout, card)
        words = PROBLEMS[case][2]
        got = fused(x[1], weight, bias, transposed=True, precision="tf32", epilogue=[ops.add(shift)], **words)
        exactly(got, transposed_convolution(x[1:], weight, bias, **words)[0] + shift.cpu().double())


@pytest.mark.parametrize("math", MATHS)
def test_weights_in_any_memory(math, card):
    dtype, precision = MATHS[math]
    x = integers(2, 24, 9, 11, device=card, dtype=dtype)
    wide = integers(32, 48, 3, 4, device=card, dtype=dtype)
    given = {
        "channels_last": wide[:24].contiguous(memory_format=torch.channels_last),
        "turned channels": wide[:, :24].transpose(0, 1),
        "turned taps": wide[:24].transpose(2, 3),
        "every second filter": wide[:24, 1::2],
        "the last channels": wide[8:],
        "expanded": wide[:1].expand(24, -1, -1, -1),
    }
    for name, weight in given.items():
        got = fused(x, weight, transposed=True, precision=precision, **RECIPE)
        exactly(got, transposed_convolution(x, weight, **RECIPE))
        assert got.is_contiguous(
            memory_format=LAYOUTS["channels_last" if name == "channels_last" else "nchw"]
        )


def test_each_way_of_convolving_packs_a_weight_for_itself(card):
    x, weight = integers(2, 64, 9, 11, device=card), integers(64, 64, 3, 3, device=card)
    for _ in range(2):
        exactly(fused(x, weight, precision="tf32"), convolution(x, weight))
        for words in (RECIPE, {"stride": 2}, {"stride": 3}, {"stride": (1, 2)}, {}):
            got = fused(x, weight, transposed=True, precision="tf32", **words)
            exactly(got, transposed_convolution(x, weight, **words))


def used_twice(y, residual):
    return torch.relu(y) * residual + y


# For y of (n, k, p, q): the operand's shape, the epilogue, the same in torch, and what runs it at strides of
# the width of 1 and 2.
EPILOGUES = {
    "recipe": (
        lambda n, k, p, q: (k, 1, 1),
        lambda b: [ops.add(b), ops.clamp(-20.0, 60.0), ops.mul(2.0), ops.clamp(-30.0, 90.0), ops.div(2.0)],
        lambda y, b: ((y + b).clamp(-20.0, 60.0) * 2).clamp(-30.0, 90.0) / 2,
        ("f32_interpreted_chain", "f32_static"),
    ),
    "relu alone": (
        lambda n, k, p, q: (k, 1, 1),
        lambda b: [ops.relu()],
        lambda y, b: torch.relu(y),
        ("f32_interpreted_chain", "f32_static"),
    ),
    "a number, bounds and a factor": (
        lambda n, k, p, q: (k, 1, 1),
        lambda b: [ops.add(3.0), ops.hardtanh(-9.0, 40.0), ops.mul(-0.5)],
        lambda y, b: (y + 3.0).clamp(-9.0, 40.0) * -0.5,
        ("f32_interpreted_chain", "f32_static"),
    ),
    "min add mul": (
        lambda n, k, p, q: (k, 1, 1),
        lambda b: [ops.minimum(9.0), ops.add(b), ops.mul(2.0)],
        lambda y, b: (y.clamp(max=9.0) + b) * 2,
        ("f32_static", "f32_interpreted_chain"),
    ),
    "in place": (
        lambda n, k, p, q: (k, 1, 1),
        lambda b: [ops.sub(b), ops.clamp(-9.0, 40.0), ops.mul(b)],
        lambda y, b: (y - b).clamp(-9.0, 40.0) * b,
        ("f32_interpreted_chain", "f32_interpreted_chain"),
    ),
    **{
        f"residual {name}": (
            shape,
            lambda b: [ops.add(b), ops.relu()],
            lambda y, b: torch.relu(y + b),
            ("f32_interpreted_chain", "f32_interpreted_chain"),
        )
        for name, shape in {
            "like the output": lambda n, k, p, q: (n, k, p, q),
            "per image and channel": lambda n, k, p, q: (n, k, 1, 1),
            "per pixel": lambda n, k, p, q: (1, 1, p, q),
        }.items()
    },
    "used twice": (
        lambda n, k, p, q: (n, k, p, q),
        lambda b: epiconv.trace(used_twice)(b),
        used_twice,
        ("f32_interpreted_dag", "f32_interpreted_dag"),
    ),
}
STRIDES = {1: {"padding": 1}, 2: RECIPE, 3: {"stride": 3}, 4: {"stride": (1, 4), "output_padding": (0, 1)}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("case", EPILOGUES)
def test_epilogues(case, stride, math, layout, card):
    torch.manual_seed(0)
    shape, epilogue, in_torch, evaluators = EPILOGUES[case]
    problem = ((3, 32, 9, 13), (72, 3, 3), STRIDES[stride])
    x, weight, bias, _ = make(problem, math, layout, card)
    y = transposed_convolution(x, weight, bias, **problem[2])
    words = problem[2] | {"transposed": True, "precision": MATHS[math][1]}
    evaluator = evaluators[stride - 1] if stride <= 2 else "f32_interpreted_dag"
    for operand_layout in LAYOUTS:
        operand = integers(*shape(*y.shape), device=card).to(x.dtype)
        if operand.dim() == 4:
            operand = in_layout(operand, operand_layout)
        given = words | {"epilogue": epilogue(operand)}
        plan = epiconv.explain(x, weight, bias, algorithm="implicit_gemm", **given)
        assert plan.kernel.endswith(evaluator)
        got = fused(x, weight, bias, **given)
        exactly(got, in_torch(y, operand.cpu().double()))
        assert got.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("problem", GRADIENTS, ids=str)
def test_the_gradient_of_an_input(problem, math, layout, card):
    torch.manual_seed(0)
    dtype, precision = MATHS[math]
    for grad, weight, words, expected in input_gradient(*problem):
        grad, weight = in_layout(grad.to(card, dtype), layout), weight.to(card, dtype)
        exactly(fused(grad, weight, precision=precision, **words), expected)


# Filters of more taps than the stride, of as many, and of fewer; with what is cropped.
@pytest.mark.parametrize(
    "problem",
    [
        ((3, 3), RECIPE),
        ((2, 2), {"stride": 2}),
        ((1, 2), {"stride": (2, 3)}),
        ((3, 3), {"stride": (3, 4)}),
        ((5, 4), {"stride": (1, 2), "padding": (2, 1)}),
        ((4, 3), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
def test_nan_and_infinities_reach_their_own_outputs_only(math, layout, problem, card):
    torch.manual_seed(0)
    (dtype, precision), (taps, words) = MATHS[math], problem
    x = integers(3, 8, 20, 24, device=card, dtype=dtype)
    x[0, 3, 5, 6], x[1, 2, 0, 0], x[2, 7, 19, 23] = float("nan"), float("inf"), float("-inf")
    weight = integers(8, 24, *taps, device=card, dtype=dtype)
    got = fused(in_layout(x, layout), weight, transposed=True, precision=precision, **words)
    expected = transposed_convolution(x, weight, **words)
    assert 0 < (~expected.isfinite()).sum() <= 3 * 24 * taps[0] * taps[1]
    torch.testing.assert_close(got.cpu(), expected.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("case", ["recipe", "7x5, stride 3", "GAN", "many channels", "images of 7 x 7", "1d"])
def test_random_values_are_as_good_as_cudnn_s(case, math, layout, card):
    torch.manual_seed(0)
    problem, precision = PROBLEMS[case], MATHS[math][1]
    x, weight, bias, shift = make(problem, math, layout, card, torch.randn)

    def chain(x, weight):
        y = transposed_convolution(x, weight, bias, **problem[2])
        return F.hardswish(y) - shift.cpu().double()

    expected = chain(x, weight)
    words = problem[2] | {"transposed": True, "precision": precision}
    words["epilogue"] = [ops.hardswish(), ops.sub(shift)]
    ours = fused(x, weight, bias, **words)
    theirs = epiconv.fused_conv_epilogue(x, weight, bias, algorithm="cudnn", **words)
    assert ours.dtype == theirs.dtype == x.dtype
    exact = chain(round_to(x, precision), round_to(weight, precision)) if precision else expected
    # Where cuDNN multiplies in float32, whatever it was asked for, the measure is what rounding to the math
    # asked for does to the result.
    errors = [(result.cpu().double() - expected).abs().max() for result in (ours, theirs, exact)]
    rounding = torch.finfo(x.dtype).eps / 2 * expected.abs().max()
    assert errors[0] <= 2 * max(errors[1:]) + rounding
    for _ in range(5):
        assert torch.equal(fused(x, weight, bias, **words), ours)  # the same bits on every run


FALLBACKS = {
    "stride 5": ({"stride": (2, 5)}, "up to stride 4, not 5"),
    "dilation": ({"dilation": 2}, "no transposed convolutions with dilation"),
    "groups": ({"groups": 2}, "one group only, and there are 2"),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_what_is_left_to_cudnn(case, card):
    words, reason = FALLBACKS[case]
    x = integers(2, 8, 9, 11, device=card, dtype=torch.float16)
    weight = integers(8, 4, 3, 3, device=card, dtype=torch.float16)
    plan = epiconv.explain(x, weight, transposed=True, **words)
    assert plan.path == "cudnn+epilogue"
    refused = dict(plan.refused)["implicit_gemm"]
    assert reason in refused
    exactly(
        epiconv.fused_conv_epilogue(x, weight, transposed=True, **words),
        transposed_convolution(x, weight, **words),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", ["bf16", "fp16"])
def test_the_recipe_and_modules_take_it(math, layout, card):
    torch.manual_seed(0)
    dtype = MATHS[math][0]
    recipe = ConvTransposeAddClampMulClampDiv(64, 64, 3, 2, 1, 1, (64, 1, 1), 2.0).to(card, dtype)
    conv = nn.ConvTranspose2d(64, 64, 3, 2, 1, 1).to(card, dtype)
    module = epiconv.nn.FusedConvTranspose2d.from_module(conv, nn.ReLU())
    x = in_layout(integers(2, 64, 16, 16, device=card, dtype=dtype), layout)
    with torch.no_grad():
        kernel = recipe.explain(x).kernel
        assert kernel.startswith(f"dgrad_sm90_{math}_") and kernel.endswith("f32_static")
        for values in (1, 2):  # the weight is packed again
            for parameter in (*conv.parameters(), *recipe.parameters()):
                parameter.copy_(integers(*parameter.shape, device=card, most=values))
            exactly(module(x), torch.relu(transposed_convolution(x, conv.weight, conv.bias, **RECIPE)))
            own = recipe.conv_transpose
            y = transposed_convolution(x, own.weight, own.bias, **RECIPE) + recipe.bias.cpu().double()
            exactly(recipe(x), (y.clamp(0, 1) * 2).clamp(0, 1) / 2)
        expected = torch.relu(transposed_convolution(x, conv.weight, conv.bias, stride=2, padding=1))
        exactly(module(x, output_size=(31, 31)), expected)
