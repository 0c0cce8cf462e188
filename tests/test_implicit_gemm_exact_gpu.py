"""The path "implicit_gemm" on a card, on integers and other values whose results are known to the bit.

`algorithm="implicit_gemm"` raises where the kernel cannot run, so that no result is another path's.
"""

import random

import fuzz_conv
import pytest
import torch
import torch.nn.functional as F
from card_convolutions import LAYOUTS, MATHS, MODES, convolution, exactly, force, fused, in_layout, integers
from fake_conv_core import at_offset

from epiconv import ops

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def only_kernels_made_for_the_card(monkeypatch):
    force(monkeypatch, "sm90")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
# C and K: few channels and no vector width, a full block, a block and a bit; K of one and two tiles.
@pytest.mark.parametrize(("c", "k"), [(3, 8), (3, 96), (8, 1), (8, 130), (64, 96), (64, 128), (66, 130)])
@pytest.mark.parametrize("width", [33, 16])
def test_integers_bit_for_bit(width, c, k, math, layout, card):
    torch.manual_seed(0)
    dtype, precision = MATHS[math]
    x = integers(2, c, 19, width, device=card, dtype=dtype).to(memory_format=LAYOUTS[layout])
    weight, bias = (integers(*s, device=card, dtype=dtype) for s in ((k, c, 3, 3), (k,)))
    shift = integers(k, 1, 1, device=card, dtype=dtype)
    y = convolution(x, weight, bias, padding=1)
    words = {"padding": 1, "precision": precision}
    got = fused(x, weight, bias, **words)
    exactly(got, y)
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    got = fused(x, weight, bias, epilogue=[ops.add(shift), ops.relu(), ops.clamp(max=50.0)], **words)
    exactly(got, torch.clamp(torch.relu(y + shift.double()), max=50.0))
    exactly(fused(x, weight, padding=1, precision=precision), convolution(x, weight, padding=1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [11, 16])
def test_padding(width, padding, mode, layout, card):
    torch.manual_seed(0)
    for batch in (1, 17):
        for taps, dilation in (((3, 3), 1), ((3, 3), 3), ((5, 2), 1), ((1, 1), 1)):
            x = integers(batch, 8, 9, width, device=card).to(memory_format=LAYOUTS[layout])
            weight = integers(24, 8, *taps, device=card)
            words = {"padding": padding, "dilation": dilation}
            got = fused(x, weight, padding_mode=mode, precision="tf32", **words)
            exactly(got, convolution(x, weight, mode=mode, **words))


def test_padding_same_with_an_even_filter(card):
    x, weight = integers(2, 8, 9, 11, device=card), integers(24, 8, 3, 4, device=card)
    expected = F.conv2d(F.pad(x.double(), (1, 2, 1, 1)), weight.double())
    exactly(fused(x, weight, padding="same", precision="tf32"), expected)


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
        "an aligned window": wide[:, 8:, 3:17, 8:25],
        "expanded images": wide[:1, :8].expand(4, -1, -1, -1),
        "expanded channels": wide[:, :1].expand(-1, 8, -1, -1),
        "turned": wide[:, :8].transpose(2, 3),
        "some channels of channels_last": wide.to(memory_format=torch.channels_last)[:, 4:12],
    }
    for step in (1, 2, 4):
        given[f"unaligned by {step}"] = at_offset(wide[:, :8].contiguous(), step * dtype.itemsize)
        given[f"pixels unaligned by {step}"] = at_offset(packed_pixels, step * dtype.itemsize)
    for name, x in given.items():
        got = fused(x, weight, precision=precision, epilogue=[ops.relu()])
        assert torch.equal(got, torch.relu(convolution(x, weight)).to(dtype)), name


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_operands_of_every_kind(wanted, card):
    torch.manual_seed(0)
    x, weight, bias = (integers(*s, device=card) for s in ((3, 8, 9, 13), (24, 8, 3, 3), (24,)))
    n, k, p, q = 3, 24, 7, 11
    shapes = [(), (1,), (q,), (p, 1), (p, q), (k, 1, 1), (1, p, q), (k, p, q), (n, 1, 1, 1), (n, k, 1, 1)]
    operands = [integers(*shape, device=card) for shape in (*shapes, (n, 1, p, q), (1, k, 1, q))]
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
        torch.tensor(3.0),
        torch.tensor(3.0, dtype=torch.float64),
    ]
    y = convolution(x, weight, bias)
    for operand in operands:
        got = fused(
            *(x, weight, bias),
            precision="tf32",
            memory_format=LAYOUTS[wanted],
            dtype=torch.float32,
            epilogue=[ops.relu(), ops.add(operand)],
        )
        exactly(got, torch.relu(y) + operand.to(card).double())
        assert got.is_contiguous(memory_format=LAYOUTS[wanted])


def test_unbatched(card):
    x, weight, bias = (integers(*s, device=card) for s in ((8, 9, 13), (24, 8, 3, 3), (24,)))
    got = fused(x, weight, bias, precision="tf32", epilogue=[ops.add(bias.view(-1, 1, 1))])
    exactly(got, convolution(x[None], weight, bias)[0] + bias.double().view(-1, 1, 1))


# C, K, taps, extent: no vector width, two tiles of filters, an even filter, few and many pixels.
@pytest.mark.parametrize(
    "problem", [(3, 8, 3, 33), (8, 130, 1, 100), (64, 96, 7, 1000), (1, 1, 16, 2049), (66, 64, 2, 8)], ids=str
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
def test_one_dimension(math, layout, problem, card):
    torch.manual_seed(0)
    (dtype, precision), (c, k, taps, extent) = MATHS[math], problem
    x = in_layout(integers(3, c, extent, device=card, dtype=dtype), layout)
    weight, bias = (integers(*s, device=card, dtype=dtype) for s in ((k, c, taps), (k,)))
    for words in ({}, {"padding": 2}, {"padding": 3, "dilation": 3}):
        y = convolution(x, weight, bias, **words)
        residual, shift = integers(*y.shape, device=card, dtype=dtype), integers(k, 1, device=card)
        exactly(fused(x, weight, bias, precision=precision, **words), y)
        words |= {"precision": precision, "dtype": dtype}
        static = [ops.minimum(9.0), ops.add(shift), ops.mul(2.0)]
        exactly(fused(x, weight, bias, epilogue=static, **words), (y.clamp(max=9.0) + shift.double()) * 2)
        got = fused(x, weight, bias, epilogue=[ops.add(residual), ops.relu()], **words)
        exactly(got, torch.relu(y + residual.double()))
    for mode in MODES:
        got = fused(x, weight, padding=2, padding_mode=mode, precision=precision)
        exactly(got, convolution(x, weight, padding=2, mode=mode))
    exactly(fused(x[0], weight, precision=precision), convolution(x[:1], weight)[0])


def test_tf32_is_rounded_to_nearest_even(card):
    weight = torch.zeros(64, 64, 1, 1, device=card)
    weight[:, 0] = 1.0
    for width, layout in ((8, "nchw"), (7, "nchw"), (8, "channels_last")):  # as inputs are loaded
        x = torch.ones(1, 64, 8, width, device=card).to(memory_format=LAYOUTS[layout])
        for value, rounded in (
            (1 + 2.0**-11, 1.0),
            (1 + 3 * 2.0**-11, 1 + 2.0**-9),
            (1 + 2.0**-10, 1 + 2.0**-10),
        ):
            exactly(fused(x * value, weight, precision="tf32"), torch.full_like(x, rounded).double())
            exactly(fused(x, weight * value, precision="tf32"), torch.full_like(x, rounded).double())


# Output rows of an even number of elements that begin anywhere within a sector: rows that end within a piece
# of 32 pixels, planes of an odd number of pairs, a last tile of one pair, and 2 filters besides 16s.
@pytest.mark.parametrize("k", [64, 130])
@pytest.mark.parametrize("size", [(9, 128), (19, 42), (7, 54), (31, 66), (75, 20), (130, 18)])
def test_rows_within_sectors(size, k, card):
    torch.manual_seed(0)
    x = integers(3, 8, *size, device=card)
    weight, bias, shift = (integers(*s, device=card) for s in ((k, 8, 3, 3), (k,), (k, 1, 1)))
    y = convolution(x, weight, bias)
    residual = integers(*y.shape, device=card)
    words = {"precision": "tf32"}
    exactly(fused(x, weight, bias, **words), y)
    static = [ops.minimum(5.0), ops.add(shift), ops.mul(2.0)]
    exactly(fused(x, weight, bias, epilogue=static, **words), (y.clamp(max=5.0) + shift.double()) * 2)
    in_place = [ops.sub(shift), ops.clamp(-9.0, 20.0), ops.mul(shift)]
    expected = (y - shift.double()).clamp(-9.0, 20.0) * shift.double()
    exactly(fused(x, weight, bias, epilogue=in_place, **words), expected)
    chunks = [ops.add(residual), ops.relu()]
    exactly(fused(x, weight, bias, epilogue=chunks, **words), torch.relu(y + residual.double()))


def test_nan_and_infinities_stay_where_they_are(card):
    x, weight = integers(2, 8, 20, 20, device=card), integers(24, 8, 3, 3, device=card)
    x[0, 3, 5, 6], x[1, 2, 0, 0] = float("nan"), float("inf")
    for padding, mode in ((0, "zeros"), (1, "zeros"), (2, "reflect")):
        got = fused(x, weight, padding=padding, padding_mode=mode, precision="tf32")
        expected = convolution(x, weight, padding=padding, mode=mode).float()
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def random_problem(rng):
    """Extents and words of a convolution that the public function takes."""
    shape = (rng.choice((1, 2, 5)), rng.choice((1, 3, 8, 20, 64)), rng.randint(7, 40), rng.randint(7, 70))
    weight = (rng.choice((1, 8, 31, 96, 130)), shape[1], rng.randint(1, 3), rng.randint(1, 3))
    words = {
        "padding": (rng.randint(0, 3), rng.randint(0, 3)),
        "dilation": rng.randint(1, 2),
        "padding_mode": rng.choice(MODES),
        "memory_format": rng.choice((None, *LAYOUTS.values())),
    }
    return shape, weight, rng.choice(list(MATHS)), rng.choice(list(LAYOUTS)), words


def test_two_hundred_random_problems(card):
    rng = random.Random(0)
    torch.manual_seed(0)
    for index in range(200):
        shape, weight_shape, math, layout, words = random_problem(rng)
        dtype, precision = MATHS[math]
        x = integers(*shape, device=card, dtype=dtype).to(memory_format=LAYOUTS[layout])
        weight = integers(*weight_shape, device=card, dtype=dtype)
        bias = integers(weight_shape[0], device=card, dtype=dtype)
        vertical, horizontal = words["padding"]
        mode = "constant" if words["padding_mode"] == "zeros" else words["padding_mode"]
        padded = F.pad(x.double(), (horizontal, horizontal, vertical, vertical), mode=mode)
        expected = convolution(padded, weight, bias, dilation=words["dilation"])
        got = fused(x, weight, bias, precision=precision, epilogue=[ops.mul(2.0), ops.relu()], **words)
        problem = f"{index}: {shape} {weight_shape} {math} {layout} {words}"
        assert torch.equal(got, torch.relu(2.0 * expected).to(dtype)), problem


@pytest.mark.parametrize("index", range(120))
def test_problems_of_the_fuzzer(index, card):
    conv = fuzz_conv.draw(f"tests:{index}")
    assert fuzz_conv.check(conv, card) == (True, ""), fuzz_conv.command(conv)
