"""The path "implicit_gemm" on a card: which path and kernel run, accuracy on random values, weights that
change, streams and CUDA graphs.
"""

import threading

import pytest
import torch
import torch.nn.functional as F
from card_convolutions import LAYOUTS, MATHS, convolution, exactly, force, fused, integers
from torch import nn

import epiconv
from epiconv import ops
from epiconv.convolution import round_to
from epiconv.implicit_gemm import why_not_on

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def only_kernels_made_for_the_card(monkeypatch):
    force(monkeypatch, "sm90")


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
    assert kernel.endswith("f32_static" if math == "tf32" else "f32_interpreted_chain")
    got = fused(x, weight, bias, **words)
    y = convolution(x, weight, bias).float().relu()
    expected = y * ((y + 3) * (1 / 6)).clamp(0, 1)
    torch.testing.assert_close(got, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_auto_takes_it(card, monkeypatch):
    force(monkeypatch, "any")
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


def test_under_compile_and_autocast(card, monkeypatch):
    force(monkeypatch, "any")
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
