"""The convolution kernels that run on any card, on integers and other values whose results are known to the
bit. Most go straight to the core, between guard bands (`fuzz_conv.check`); what the public function makes of
its arguments goes through that.
"""

import itertools
import math
from dataclasses import replace

import fuzz_conv
import pytest
import torch
from card_convolutions import (
    LAYOUTS,
    exact,
    exactly,
    force,
    format_of,
    in_layout,
    integers,
    portable,
)
from fake_conv_core import at_offset
from fuzz_problems import LAYOUTS as MEMORY
from fuzz_problems import MODES, problem
from portable_problems import FEW, ORDINARY, TRANSPOSED

import epiconv
from epiconv import ops
from epiconv.program import Program

pytestmark = pytest.mark.gpu

# dtype and math, as the core names them: all maths, from every dtype that has them.
MATHS = [
    *(("float32", math) for math in ("tf32", "bf16", "fp16", "ieee")),
    *(("bfloat16", "bf16"), ("float16", "fp16")),
]
CHANNEL = ("v1 = sub(v0, b0); v2 = relu(v1); v3 = clamp(v2, -1.0, 90.0)", (("channel", "float32", "sliced"),))


@pytest.fixture(autouse=True)
def of_sm_80(monkeypatch):
    force(monkeypatch, "sm80")


def right(conv, card):
    assert fuzz_conv.check(conv, card) == (True, ""), conv


@pytest.mark.parametrize(("dtype", "math"), MATHS)
@pytest.mark.parametrize("name", ORDINARY)
def test_convolutions(name, dtype, math, card):
    """Without anything behind them, and with a bias and a chain; float32 from numbers that have low parts."""
    conv = replace(ORDINARY[name], dtype=dtype, math=math, output_dtype=dtype)
    compare_in_layouts(conv, card)


@pytest.mark.parametrize(("dtype", "math"), MATHS)
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name, dtype, math, card):
    conv = replace(TRANSPOSED[name], dtype=dtype, math=math, output_dtype=dtype)
    compare_in_layouts(conv, card)


def compare_in_layouts(conv, card):
    layouts = dict.fromkeys(("input_layout", "weight_layout", "output_layout"), "channels_last")
    program, operands = CHANNEL
    large = ("input", "weight") if conv.math == "ieee" else ("", "")
    right(replace(conv, bias=True, program=program, operands=operands, large=large[0]), card)
    right(replace(conv, large=large[1], **layouts), card)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FEW)
def test_memory(name, dtype, card):
    """Inputs in any memory at any address, to outputs in either layout, of weights in any memory."""
    conv = replace(FEW[name], dtype=dtype, math="tf32" if dtype == "float32" else "bf16", output_dtype=dtype)
    for given, wanted, offset in itertools.product(MEMORY, ("contiguous", "channels_last"), (0, 1, 4)):
        right(replace(conv, input_layout=given, output_layout=wanted, offset=offset), card)
    for layout in MEMORY:
        right(replace(conv, weight_layout=layout), card)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in FEW if "transposed" not in name])
def test_padding_modes(name, mode, card):
    """As far as torch pads, on each side by itself, in strides that begin anywhere."""
    conv = replace(FEW[name], mode=mode, bias=True)
    extents = conv.input[2:]
    most = tuple(n - 1 if mode == "reflect" else n for n in extents)
    some, none = tuple(min(3, n) for n in most), (0,) * len(extents)
    for begin, end in ((most, some), (some, most), (none, some), (some, none)):
        for layout in ("contiguous", "channels_last"):
            for stride, dilation in ((1, 1), (3, 2)):
                each = {"stride": (stride,) * len(extents), "dilation": (dilation,) * len(extents)}
                given = replace(conv, begin=begin, end=end, input_layout=layout, output_layout=layout, **each)
                if min(given.output) > 0:
                    right(given, card)


KINDS = ("number", "0-d", "width", "rows", "plane", "channel", "image", "each", "full")
OPERAND_DTYPES = ("float32", "float16", "bfloat16", "int32", "bool", "float64")


@pytest.mark.parametrize("wanted", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", FEW)
def test_operands(name, wanted, card):
    """Every kind in every dtype, and in every layout."""
    conv = replace(FEW[name], output_layout=wanted, bias=True, program="v1 = relu(v0); v2 = add(v1, b0)")
    dtypes = itertools.cycle(OPERAND_DTYPES)
    for kind, layout in itertools.product(KINDS, ("contiguous", "channels_last", "sliced")):
        right(replace(conv, operands=((kind, next(dtypes), layout),)), card)
    for kind, dtype in itertools.product(("full", "channel"), OPERAND_DTYPES):
        right(replace(conv, operands=((kind, dtype, "contiguous"),)), card)


# Values that are read again, predicates, roundings in between, a slope for each channel, as many operands as
# there may be, and float64, which is computed in a pass behind.
PROGRAMS = {
    "residual": ("v1 = add(v0, b0); v2 = relu(v1)", ("full",)),
    "a gate": ("v1 = clamp(v0, 0.0, 6.0); v2 = mul(v0, v1); v3 = mul(v2, b0)", ("channel",)),
    "a gate of any operation": ("v1 = relu(v0); v2 = mul(v1, v0); v3 = add(v2, b0)", ("channel",)),
    "a gate behind a residual": ("v1 = add(v0, b0); v2 = abs(v1); v3 = mul(v1, v2)", ("full",)),
    "sums and products": (
        "v1 = add(v0, b0); v2 = mul(v1, b1); v3 = add(v2, v0); v4 = mul(v3, v0)",
        ("channel", "image"),
    ),
    "four values": (
        "v1 = mul(v0, 2.0); v2 = sub(v0, b0); v3 = maximum(v1, v2); v4 = minimum(v3, v0); v5 = add(v4, v1); "
        "v6 = sub(v5, v2); v7 = add(v6, v0)",
        ("full",),
    ),
    "a choice": ("v1 = gt(v0, b0); v2 = where(v1, v0, b1); v3 = neg(v2)", ("full", "each")),
    "rounded in between": ("v1 = cast(v0, bfloat16); v2 = mul(v1, 2.0); v3 = add(v2, v0)", ()),
    "a slope for each channel": ("v1 = prelu(v0, b0); v2 = abs(v1)", ("affine",)),
    "many operands": (
        "; ".join(f"v{i + 1} = add(v{i}, b{i})" for i in range(12)),
        ("full", "channel", "width", "number", "image", "each", "plane", "0-d", "rows") * 2,
    ),
    "float64": ("v1 = cast(v0, float64); v2 = mul(v1, b0); v3 = sub(v2, v1)", ("full",)),
}


@pytest.mark.parametrize("output_dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("case", PROGRAMS)
def test_programs(case, output_dtype, card):
    text, kinds = PROGRAMS[case]
    count = Program(text).num_operands
    for name, layout in itertools.product(FEW, ("contiguous", "channels_last")):
        operands = tuple((kind, "float32", layout) for kind in kinds[:count])
        conv = replace(FEW[name], program=text, operands=operands, bias=True, output_dtype=output_dtype)
        right(replace(conv, input_layout=layout, output_layout=layout), card)


@pytest.mark.parametrize(("dtype", "math"), [pair for pair in MATHS if pair[1] != "ieee"])
@pytest.mark.parametrize("transposed", [False, True])
def test_kernels_of_sm_90a_compute_the_same(transposed, dtype, math, card):
    if torch.cuda.get_device_capability(card) != (9, 0):
        pytest.skip("the card has no kernels of sm_90a")
    for (extents, taps), layout in itertools.product(
        (((19, 33), (3, 3)), ((64,), (5,)), ((9, 11), (1, 1))), ("contiguous", "channels_last")
    ):
        words = {"transposed": transposed, "stride": 2 if transposed else 1, "family": "any", "bias": True}
        words |= {"dtype": dtype, "output_dtype": dtype, "math": math, "input_layout": layout}
        channels = (24, 72) if transposed else (72, 24)
        tally = fuzz_conv.Tally()
        conv = problem((3, 24, *extents), (*channels, *taps), output_layout=layout, **words)
        assert fuzz_conv.check(conv, card, tally) == (True, "")
        assert {name[:4] for name in tally.kernels} == {"sm80", "sm90"}


@pytest.mark.parametrize("index", range(100))
def test_problems_of_the_fuzzer(index, card):
    conv = replace(fuzz_conv.draw(f"portable:{index}"), family="sm80")
    assert fuzz_conv.check(conv, card) == (True, ""), fuzz_conv.command(conv)


# ---- Through the public function.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_layouts_of_results(rank, layout, card):
    """Those of torch's rule, of one image and of several, and those asked for."""
    torch.manual_seed(0)
    extents = (5, 9, 12)[-rank:]
    x = in_layout(integers(2, 8, *extents, device=card), layout)
    weight, bias = integers(24, 8, *(3,) * rank, device=card), integers(24, device=card)
    words = {"stride": 2, "padding": 1}
    shift = integers(24, *(1,) * rank, device=card)
    y = exact(x, weight, bias, **words)
    epilogue, given = [ops.add(shift), ops.relu()], words | {"precision": "ieee"}
    expected = torch.relu(y + shift.double())
    got = portable(x, weight, bias, epilogue=epilogue, **given)
    exactly(got, expected)
    natural = format_of(layout if rank > 1 else "nchw", rank)
    assert got.is_contiguous(memory_format=natural)
    exactly(portable(x[1], weight, bias, epilogue=epilogue, **given), expected[1])
    for wanted in LAYOUTS if rank > 1 else ():
        memory_format = format_of(wanted, rank)
        got = portable(x, weight, bias, epilogue=epilogue, memory_format=memory_format, **given)
        exactly(got, expected)
        assert got.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("mode", MODES)
def test_padding_same_with_an_even_filter(mode, card):
    for extents, taps, dilation in (((20,), (4,), 3), ((9, 11), (3, 4), 1), ((6, 7, 9), (2, 3, 4), 2)):
        x, weight = integers(2, 8, *extents, device=card), integers(24, 8, *taps, device=card)
        words = {"padding": "same", "padding_mode": mode, "dilation": dilation}
        exactly(portable(x, weight, precision="tf32", **words), exact(x, weight, **words))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inputs_in_any_memory(dtype, card):
    torch.manual_seed(0)
    wide = integers(4, 16, 20, 40, device=card, dtype=dtype)
    weight = integers(24, 8, 3, 3, device=card, dtype=dtype)
    precision = "tf32" if dtype == torch.float32 else None
    packed_pixels = wide[:, :8].contiguous(memory_format=torch.channels_last)
    given = {
        "every second": wide[:, ::2, ::2, 1::2],
        "a window": wide[:, 8:, 3:17, 5:24],
        "expanded images": wide[:1, :8].expand(4, -1, -1, -1),
        "expanded channels": wide[:, :1].expand(-1, 8, -1, -1),
        "expanded rows": wide[:, :8, :1].expand(-1, -1, 20, -1),
        "turned": wide[:, :8].transpose(2, 3),
        "images inside": wide.transpose(0, 1)[:4].transpose(1, 2)[:, :8],
        "some channels of channels_last": wide.to(memory_format=torch.channels_last)[:, 4:12],
    }
    for step in (1, 2, 4):
        given[f"unaligned by {step}"] = at_offset(wide[:, :8].contiguous(), step * dtype.itemsize)
        given[f"pixels unaligned by {step}"] = at_offset(packed_pixels, step * dtype.itemsize)
    for name, x in given.items():
        got = portable(x, weight, stride=2, padding=1, precision=precision, epilogue=[ops.relu()])
        expected = torch.relu(exact(x, weight, stride=2, padding=1))
        assert torch.equal(got, expected.to(dtype)), name


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_operands_of_every_shape(wanted, card):
    torch.manual_seed(0)
    x, weight, bias = (integers(*s, device=card) for s in ((3, 8, 9, 13), (24, 4, 3, 3), (24,)))
    n, k, p, q = 3, 24, 4, 6
    shapes = [(), (1,), (q,), (p, 1), (p, q), (k, 1, 1), (1, p, q), (k, p, q), (n, 1, 1, 1), (n, k, 1, 1)]
    shapes += [(1, 1, p, q), (n, 1, p, q), (1, k, 1, q), (n, 1, p, 1), (1, k, p, 1)]
    operands = [integers(*shape, device=card) for shape in shapes]
    full = integers(n, k, p, q, device=card)
    operands += [
        full,
        full.to(memory_format=torch.channels_last),
        full.bfloat16(),
        full.transpose(2, 3).contiguous().transpose(2, 3),
        integers(n, k, 2 * p, 2 * q, device=card)[:, :, ::2, 1::2],
        integers(n, k, p, 1, device=card).expand(n, k, p, q),
        full.int(),
        full > 0,
        full.double(),
        torch.tensor(3.0),
        torch.tensor(3.0, dtype=torch.float64),
        torch.tensor(3),
    ]
    words = {"stride": 2, "groups": 2}
    y = exact(x, weight, bias, **words)
    for operand in operands:
        got = portable(
            *(x, weight, bias),
            precision="tf32",
            memory_format=LAYOUTS[wanted],
            dtype=torch.float32,
            epilogue=[ops.relu(), ops.add(operand)],
            **words,
        )
        exactly(got, torch.relu(y) + operand.to(card).double())
        assert got.is_contiguous(memory_format=LAYOUTS[wanted])


def test_no_images(card):
    """Whatever computes it, it is a tensor of the right form."""
    x, weight = torch.zeros(0, 8, 9, 9, device=card), torch.zeros(24, 8, 3, 3, device=card)
    got = epiconv.fused_conv_epilogue(x, weight, stride=2, epilogue=[ops.relu()])
    assert got.shape == (0, 24, 4, 4) and got.device == card


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_2_to_the_31_outputs(layout, card):
    """At their begin, where a 32-bit offset would overflow, and at their end."""
    if torch.cuda.mem_get_info(card)[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free memory")
    torch.manual_seed(0)
    n, k, side = 2, 64, 4100
    assert n * k * side**2 > 2**31
    x = in_layout(integers(n, 3, side, side, device=card, dtype=torch.bfloat16), layout)
    weight = integers(k, 3, 3, 3, device=card, dtype=torch.bfloat16)
    got = portable(x, weight, padding=1, epilogue=[ops.relu()])
    strides = got.stride()
    for first in (0, 2**31, got.numel() - 1):
        at, rest = [0] * 4, first
        for dimension in sorted(range(4), key=lambda d: -strides[d]):
            at[dimension], rest = divmod(rest, strides[dimension])
        image, rows = at[0], slice(max(at[2] - 2, 0), at[2] + 3)
        above, below = max(rows.start - 1, 0), min(rows.stop + 1, side)
        y = exact(x[image : image + 1, :, above:below], weight, padding=1)
        y = torch.relu(y[0, :, rows.start - above :][:, : min(rows.stop, side) - rows.start])
        assert torch.equal(got[image, :, rows], y.to(torch.bfloat16)), first


def test_more_than_2_to_the_31_inputs(card):
    if torch.cuda.mem_get_info(card)[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free memory")
    side = 46400
    x = torch.empty(1, 1, side, side, device=card, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x.random_(-2, 3)
    weight = integers(8, 1, 2, 2, device=card, dtype=torch.bfloat16)
    got = portable(x, weight, stride=8)
    for rows in (slice(0, 4), slice(-4, None)):
        y = exact(x[:, :, rows.start * 8 if rows.start else 0 :][:, :, :32], weight, stride=8)
        exactly(got[:, :, rows], y)


# ---- What is no number, or nearly none.

# In which an input pixel reaches some outputs only, and some pixels are there twice.
SPREAD = {
    "3x3": ((3, 8, 20, 24), (24, 8, 3, 3), {"padding": 1}),
    "strided, dilated": ((3, 8, 20, 24), (24, 8, 3, 3), {"stride": 2, "dilation": (2, 3)}),
    "reflected": ((3, 8, 20, 24), (24, 8, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "circular": ((3, 8, 20, 24), (24, 8, 3, 3), {"padding": 2, "padding_mode": "circular", "stride": 3}),
    "groups": ((3, 8, 20, 24), (24, 4, 3, 3), {"groups": 2, "stride": 2}),
    "depthwise": ((3, 8, 20, 24), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "3-d": ((3, 8, 3, 20, 24), (24, 8, 2, 3, 3), {"stride": (1, 2, 2)}),
    "split": ((3, 512, 7, 7), (32, 512, 3, 3), {"padding": 1}),
    "transposed": ((3, 8, 20, 24), (8, 24, 3, 3), {"transposed": True, "stride": 2}),
    "transposed, dilated": (
        (3, 8, 20, 24),
        (8, 4, 3, 2),
        {"transposed": True, "stride": (2, 3), "dilation": 2, "groups": 2},
    ),
}


def alike(got, expected):
    """Where a float64 result has NaN and infinities, and nowhere else."""
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isposinf(), expected.isposinf())
    assert torch.equal(got.isneginf(), expected.isneginf())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "precision"), MATHS)
@pytest.mark.parametrize("case", SPREAD)
def test_nan_and_infinities_reach_their_own_outputs_only(case, dtype, precision, layout, card):
    torch.manual_seed(0)
    extents, filters, words = SPREAD[case]
    dtype = getattr(torch, dtype)
    x, weight = (integers(*shape, device=card, dtype=dtype) for shape in (extents, filters))
    middle, last = tuple(n // 3 for n in extents[2:]), tuple(n - 1 for n in extents[2:])
    x[(0, 3, *middle)], x[1, 2].view(-1)[0], x[(2, 7, *last)] = math.nan, math.inf, -math.inf
    expected = exact(x, weight, **words)
    assert 0 < (~expected.isfinite()).sum() < expected.numel()
    precision = precision if dtype == torch.float32 else None
    got = portable(in_layout(x, layout), weight, precision=precision, **words)
    torch.testing.assert_close(got, expected.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_an_infinity_has_no_low_part_in_float32(card):
    """And the sign of its product is that of both numbers, whatever the sign of the other's low part."""
    torch.manual_seed(0)
    for value, low in itertools.product((math.inf, -math.inf, math.nan), (0.0, 2.0**-13, -(2.0**-13))):
        x = (integers(2, 8, 9, 9, device=card) + 0.5).sign() * (1 + low)
        weight = (integers(24, 8, 3, 3, device=card) + 0.5).sign() * (1 + low)
        of_input, of_weight = x.clone(), weight.clone()
        of_input[0, 3, 4, 5] = of_weight[5, 2, 1, 1] = value
        for given in ((of_input, weight), (x, of_weight)):
            alike(portable(*given, precision="ieee"), exact(*given))
    x, weight = torch.randn(2, 8, 9, 9, device=card), torch.randn(24, 8, 3, 3, device=card)
    x[0, 3, 4, 5], x[1, 0, 0, 0] = math.inf, -math.inf
    alike(portable(x, weight, padding=1, precision="ieee"), exact(x, weight, padding=1))


def test_a_zero_times_an_infinity_is_no_number(card):
    x, weight = torch.ones(1, 8, 5, 5, device=card), torch.zeros(24, 8, 3, 3, device=card)
    x[0, 3, 2, 2] = math.inf
    for precision in ("tf32", "bf16", "fp16", "ieee"):
        assert portable(x, weight, precision=precision).isnan().all()


# A low part has up to 13 bits, of which TF32 keeps 11: of a number it is no more than 2^-11.
LOST = 2.0**-21


def test_values_near_the_largest_of_float32(card):
    """Rounding to TF32 must not make an infinity of what has a low part to take it back."""
    largest, of_few_bits = torch.finfo(torch.float32).max, 1.75 * 2.0**127
    x, weight = torch.zeros(1, 8, 5, 5, device=card), torch.zeros(16, 8, 1, 1, device=card)
    for value, other in itertools.product((of_few_bits, 3e38, -3e38, largest, -largest, 1e-30), (1.0, 0.5)):
        x[0, 3], weight[:, 3] = value, other
        swapped = weight[:1].expand(1, 8, 5, 5).contiguous(), x[:, :, :1, :1].contiguous()
        for given in ((x, weight), swapped):
            expected = exact(*given)
            error = (portable(*given, precision="ieee").double() - expected).abs()
            assert (error <= (0.0 if value == of_few_bits else LOST) * expected.abs()).all(), (value, other)
    x[0, 3], weight[:, 3] = 3e38, 0.5 + 2.0**-15
    got, expected = portable(x, weight, precision="ieee").double(), exact(x, weight)
    assert ((got - expected).abs() <= LOST * expected).all()
    weight[:, 3] = 1.0
    for precision, unit in (("tf32", 2.0**-11), ("bf16", 2.0**-9)):
        got = portable(x, weight, precision=precision).double()
        assert ((got - 3e38).abs() <= unit * 3e38).all()


def test_sums_that_are_split_have_the_same_bits_in_every_run(card):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 512, 4, 4, device=card), torch.randn(64, 512, 3, 3, device=card)
    for precision, words in itertools.product(("tf32", "ieee"), ({}, {"transposed": True, "stride": 2})):
        given = weight.transpose(0, 1).contiguous() if words else weight
        first = portable(x, given, padding=1, precision=precision, **words)
        for _ in range(20):
            assert torch.equal(portable(x, given, padding=1, precision=precision, **words), first)
