"""The path "implicit_gemm" on a card: which path ran, exact results on integers, accuracy on random values,
weights that change, streams and CUDA graphs.

`algorithm="implicit_gemm"` raises where the kernel cannot run, so that no result is another path's.
"""

import random
import threading

import fuzz_conv
import pytest
import torch
import torch.nn.functional as F
from fake_conv_core import at_offset
from torch import nn

import epiconv
from epiconv import ops
from epiconv.convolution import round_to
from epiconv.implicit_gemm import why_not_on

pytestmark = pytest.mark.gpu

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# dtype of the tensors, precision: all maths, from every dtype that has them.
MATHS = {
    "tf32": (torch.float32, "tf32"),
    "fp32 as bf16": (torch.float32, "bf16"),
    "fp32 as fp16": (torch.float32, "fp16"),
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
}
MODES = ("zeros", "reflect", "replicate", "circular")


@pytest.fixture
def card(cuda):
    if reason := why_not_on(cuda):
        pytest.skip(reason)
    return cuda


def integers(*shape, device, dtype=torch.float32, most=2):
    """Small enough that every sum of products is exact in float32."""
    return torch.randint(-most, most + 1, shape, device=device).to(dtype)


def fused(*args, **kwargs):
    kwargs["algorithm"] = "implicit_gemm"
    assert epiconv.explain(*args, **kwargs).path == "implicit_gemm"
    return epiconv.fused_conv_epilogue(*args, **kwargs)


def convolution(x, weight, bias=None, padding=0, dilation=1, mode="zeros"):
    """In float64, on the tensors' device."""
    x, weight = x.double(), weight.double()
    if padding:
        x = F.pad(x, [padding] * 4, mode="constant" if mode == "zeros" else mode)
    return F.conv2d(x, weight, None if bias is None else bias.double(), dilation=dilation)


def exactly(got, expected):
    """Equal to a float64 result that is rounded once."""
    assert got.shape == expected.shape
    assert torch.equal(got, expected.to(got.dtype))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_how_inputs_are_loaded(dtype, card):
    wide = torch.randn(2, 8, 9, 40, device=card).to(dtype)
    weight = torch.randn(24, 8, 3, 3, device=card).to(dtype)
    words = {"precision": "tf32" if dtype == torch.float32 else None, "algorithm": "implicit_gemm"}

    def load(x, weight=weight, **more):
        return epiconv.explain(x, weight, **words | more).kernel.split("_")[3]

    assert load(wide.to(memory_format=torch.channels_last)) == "tma"
    assert load(wide) == load(wide[..., 8:32]) == load(wide[..., :31]) == "rows"
    # Copies begin at multiples of 16 bytes; what is before the box can be left out of 32-bit rows.
    assert load(wide, padding=1) == ("rows" if dtype == torch.float32 else "gather")
    assert load(wide, padding=(1, 0)) == "rows"
    assert load(wide, padding=1, padding_mode="reflect") == "gather"
    assert load(wide[..., 1:]) == load(wide[..., :31].contiguous()) == "gather"
    assert load(wide[:1].expand(2, -1, -1, -1)) == "gather"
    if dtype == torch.float32:  # which the copy engine cannot convert
        assert load(wide, precision="bf16") == "rows"
        assert load(wide.to(memory_format=torch.channels_last), precision="bf16") == "gather"


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize(("c", "k"), [(3, 96), (64, 128), (66, 130)])
@pytest.mark.parametrize("width", [31, 32])
def test_random_values_are_as_good_as_cudnn_s(width, c, k, math, layout, card):
    torch.manual_seed(0)
    dtype, precision = MATHS[math]
    x = torch.randn(4, c, 30, width, device=card).to(dtype).to(memory_format=LAYOUTS[layout])
    weight = (torch.randn(k, c, 3, 3, device=card) / (3 * c**0.5)).to(dtype)
    bias, residual = (torch.randn(*s, device=card).to(dtype) for s in ((k,), (4, k, 30, width)))
    epilogue = [ops.hardswish(), ops.sub(residual)]
    expected = F.hardswish(convolution(x, weight, bias, padding=1)) - residual.double()
    words = {"padding": 1, "precision": precision, "epilogue": epilogue}
    ours = fused(x, weight, bias, **words)
    theirs = epiconv.fused_conv_epilogue(x, weight, bias, algorithm="cudnn", **words)
    assert ours.dtype == theirs.dtype == dtype
    given = (round_to(x, precision), round_to(weight, precision)) if precision else (x, weight)
    exact = F.hardswish(convolution(*given, bias, padding=1)) - residual.double()
    # Of few channels cuDNN multiplies in float32, whatever it was asked for. What rounding to the math asked
    # for does to the result is the measure then.
    errors = [(result.double() - expected).abs().max() for result in (ours, theirs, exact)]
    rounding = torch.finfo(dtype).eps / 2 * expected.abs().max()
    assert errors[0] <= 2 * max(errors[1:]) + rounding
    for _ in range(5):
        assert torch.equal(fused(x, weight, bias, **words), ours)  # the same bits on every run


IN_PLACE = {
    "sigmoid": [ops.sigmoid()],
    "silu": [ops.silu()],
    "gelu": [ops.gelu()],
    "gelu tanh": [ops.gelu(approximate="tanh")],
    "tanh": [ops.tanh()],
    "two of them": [ops.sigmoid(), ops.mul(2.0), ops.tanh()],
    "hardswish": [ops.relu(), ops.hardswish()],
    "hardsigmoid": [ops.hardsigmoid()],
    "leaky_relu": [ops.leaky_relu(0.125), ops.clamp(-1.0, 2.0)],
    "elu": [ops.elu(0.5)],
    "gate": epiconv.trace(lambda y: y * torch.clamp((y + 3) / 6, 0, 1)),
    "gate of a gate": epiconv.Program(
        "v1 = sub(v0, 0.5); v2 = relu6(v1); v3 = mul(v0, v2); v4 = clamp(v3, -1.0, 1.0); v5 = mul(v4, v3)"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("program", IN_PLACE)
def test_programs_in_place(program, layout, card):
    torch.manual_seed(0)
    x = integers(2, 3, 19, 23, device=card).to(memory_format=LAYOUTS[layout])
    weight, bias = integers(72, 3, 3, 3, device=card) / 8, integers(72, device=card)
    words = {"epilogue": IN_PLACE[program], "precision": "tf32"}
    plan = epiconv.explain(x, weight, bias, **words)
    assert plan.path == "implicit_gemm" and plan.kernel.endswith("f32_interpreted_chain")
    got = epiconv.fused_conv_epilogue(x, weight, bias, **words)
    # Sums of eighths are exact on both paths, and the values behind them those of the same functions.
    expected = epiconv.fused_conv_epilogue(x, weight, bias, algorithm="cudnn", **words)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_before_a_gate_has_a_kernel_of_its_own_in_tf32(layout, math, card):
    torch.manual_seed(0)
    dtype, precision = MATHS[math]
    x = integers(2, 8, 19, 40, device=card, dtype=dtype).to(memory_format=LAYOUTS[layout])
    weight, bias = (integers(*s, device=card, dtype=dtype) / 8 for s in ((72, 8, 3, 3), (72,)))
    program = (
        "v1 = relu(v0); v2 = add(v1, 3.0); v3 = div(v2, 6.0); v4 = clamp(v3, 0.0, 1.0); v5 = mul(v1, v4)"
    )
    words = {"epilogue": epiconv.Program(program), "precision": precision}
    kernel = epiconv.explain(x, weight, bias, algorithm="implicit_gemm", **words).kernel
    assert kernel.endswith("f32_static" if precision == "tf32" else "f32_interpreted_chain")
    got = epiconv.fused_conv_epilogue(x, weight, bias, algorithm="implicit_gemm", **words)
    y = convolution(x, weight, bias).float().relu()
    expected = y * ((y + 3) * (1 / 6)).clamp(0, 1)
    torch.testing.assert_close(got, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


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


def test_auto_takes_it(card):
    x, weight = torch.randn(2, 64, 30, 30, device=card), torch.randn(128, 64, 3, 3, device=card)
    assert epiconv.explain(x.half(), weight.half()).path == "implicit_gemm"
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for setting, path in (
            ("tf32", "implicit_gemm"),
            ("ieee", "cudnn+epilogue"),
            ("tf32", "implicit_gemm"),
        ):
            torch.backends.cudnn.conv.fp32_precision = setting
            assert epiconv.explain(x, weight).path == path
            words = {"algorithm": "implicit_gemm"} if setting == "tf32" else {"precision": "ieee"}
            expected = epiconv.fused_conv_epilogue(x, weight, **words)
            assert torch.equal(epiconv.fused_conv_epilogue(x, weight), expected)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    with torch.backends.cudnn.flags(enabled=False):
        assert epiconv.explain(x.half(), weight.half()).path == "implicit_gemm"


def test_weights_updated_in_place_are_seen(card):
    torch.manual_seed(0)
    x, weight = integers(2, 8, 9, 9, device=card), integers(24, 8, 3, 3, device=card)
    module = epiconv.nn.FusedConv2d(8, 24, 3, bias=False, epilogue=[ops.relu()]).to(card).half()
    with torch.no_grad():
        module.weight.copy_(weight)
    for _ in range(3):
        exactly(fused(x, weight, precision="tf32"), convolution(x, weight))
        with torch.no_grad():
            exactly(module(x.half()), torch.relu(convolution(x, module.weight)))
            weight.add_(1.0)
            module.weight.copy_(weight)
    with torch.no_grad():
        module.weight.data.zero_()
        module.repack()
        assert not module(x.half()).any()
    for _ in range(20):  # the address of a weight that is gone comes back
        fresh = integers(24, 8, 3, 3, device=card)
        exactly(fused(x, fresh, precision="tf32"), convolution(x, fresh))
        del fresh


@pytest.mark.parametrize("in_module", [False, True])
def test_cuda_graph(in_module, card):
    torch.manual_seed(0)
    x = integers(2, 8, 9, 9, device=card, dtype=torch.float16)
    residual = integers(2, 24, 7, 7, device=card, dtype=torch.float16)
    module = epiconv.nn.FusedConv2d(8, 24, 3, bias=False).to(card).half()
    weight = module.weight
    program = epiconv.Program("v1 = add(v0, b0)")

    def call():
        if in_module:
            return module(x)
        return fused(x, weight, epilogue=program(residual))

    def expected():
        y = convolution(x, weight)
        return y if in_module else y + residual.double()

    with torch.no_grad():
        weight.copy_(integers(24, 8, 3, 3, device=card))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for _ in range(3):
            x.copy_(integers(2, 8, 9, 9, device=card))
            graph.replay()
            exactly(captured, expected())
            weight.copy_(integers(24, 8, 3, 3, device=card))
            if in_module:
                exactly(call(), expected())  # which packs into the memory that the graph reads
            graph.replay()
            exactly(captured, expected())


def test_other_streams(card):
    torch.manual_seed(0)
    x, weight = integers(2, 8, 9, 9, device=card), integers(24, 8, 3, 3, device=card)
    module = epiconv.nn.FusedConv2d(8, 24, 3, bias=False).to(card).half()
    with torch.no_grad():
        module.weight.copy_(weight)
    expected, half = convolution(x, weight), x.half()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(first), torch.no_grad():
        torch.cuda._sleep(50_000_000)
        results = [fused(x, weight, precision="tf32"), module(half)]  # packed when the stream wakes up
    with torch.cuda.stream(second), torch.no_grad():
        later = x * 1.0
        results += [fused(later, weight, precision="tf32"), module(half)]
    torch.cuda.synchronize()
    for result in results:
        exactly(result, expected)


def test_nothing_waits_for_the_card(card):
    x, weight = torch.randn(2, 64, 30, 30, device=card), torch.randn(128, 64, 3, 3, device=card)
    fused(x, weight, precision="tf32")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weight.mul_(2.0)
        end = torch.cuda.Event()
        torch.cuda._sleep(200_000_000)
        epiconv.fused_conv_epilogue(x, weight, precision="tf32", algorithm="implicit_gemm")  # packs
        epiconv.fused_conv_epilogue(x, weight, precision="tf32", algorithm="implicit_gemm")
        end.record()
        assert not end.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def test_threads_with_streams_of_their_own(card):
    torch.manual_seed(0)
    x, weight = integers(2, 8, 9, 9, device=card), integers(24, 8, 3, 3, device=card)
    expected = convolution(x, weight).float()
    torch.cuda.synchronize()
    wrong = []

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                got = epiconv.fused_conv_epilogue(x, weight, precision="tf32", algorithm="implicit_gemm")
            torch.cuda.current_stream().synchronize()
        if not torch.equal(got, expected):
            wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_device_than_the_current_one(two_cards):
    _, other = two_cards
    if reason := why_not_on(other):
        pytest.skip(reason)
    x, weight = integers(2, 8, 9, 9, device=other), integers(24, 8, 3, 3, device=other)
    exactly(fused(x, weight, precision="tf32"), convolution(x, weight))
    assert torch.cuda.current_device() == 0


def test_under_compile_and_autocast(card):
    torch.manual_seed(0)
    conv = epiconv.nn.FusedConv2d.from_module(nn.Conv2d(8, 24, 3), nn.ReLU()).to(card)
    with torch.no_grad():
        conv.weight.copy_(integers(24, 8, 3, 3, device=card))
        conv.bias.copy_(integers(24, device=card))
        x = integers(2, 8, 9, 9, device=card)
        expected = torch.relu(convolution(x, conv.weight, conv.bias))
        try:
            exactly(torch.compile(conv, fullgraph=True, backend="aot_eager")(x), expected)
        finally:
            torch.compiler.reset()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert epiconv.explain(x, conv.weight, conv.bias, epilogue=conv.epilogue).path == "implicit_gemm"
            exactly(conv(x), expected)


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


@pytest.mark.parametrize("index", range(60))
def test_problems_of_the_fuzzer(index, card):
    seed = f"tests:{index}"
    ran, finding = fuzz_conv.check(fuzz_conv.draw(seed), card)
    if not ran:
        pytest.skip(finding)
    assert not finding, f"{finding}; {fuzz_conv.command(seed)}"
