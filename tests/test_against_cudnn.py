"""Every path against torch's own convolution: cuDNN's on the card, torch's on the CPU.

Small integers are compared bit for bit, random values against float64 with at most twice the error of
torch's chain plus one rounding. Which path ran is asserted.
"""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F

import epiconv
from epiconv import ops

FUSED = {"cpu": "cpu", "cuda": "cudnn+epilogue"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LAYOUTS = ["contiguous", "channels_last"]

# rank, input, (K, C / groups or C, K / groups, taps), words; each says why it is there.
CONVOLUTIONS = {
    "1d": (1, (2, 3, 17), (5, 3, 4), {}),  # odd extents, an even filter
    "1d strided": (1, (3, 4, 16), (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "2d": (2, (2, 8, 9, 10), (16, 8, 3, 3), {"padding": 1}),  # the common case
    "2d odd": (2, (2, 3, 11, 7), (5, 3, 2, 3), {}),  # nothing divides a vector width
    "1x1": (2, (2, 8, 6, 6), (8, 8, 1, 1), {}),  # strides of the weight fit both layouts
    "2d strided": (2, (2, 4, 12, 9), (6, 4, 3, 3), {"stride": (2, 3), "padding": (1, 2)}),
    "2d dilated": (2, (1, 4, 12, 12), (4, 4, 3, 3), {"dilation": (2, 3), "padding": 2}),
    "grouped": (2, (2, 8, 7, 7), (12, 2, 3, 3), {"groups": 4}),
    "depthwise": (2, (2, 8, 7, 7), (8, 1, 3, 3), {"groups": 8, "padding": 1}),  # torch has kernels of its own
    "one channel": (2, (2, 1, 8, 8), (1, 1, 3, 3), {}),  # both layouts have the same memory
    "one pixel": (2, (3, 4, 3, 3), (6, 4, 3, 3), {}),  # output of one pixel
    "same": (2, (2, 4, 7, 8), (6, 4, 3, 4), {"padding": "same"}),  # more padding at the end than in front
    "reflect": (2, (2, 4, 7, 8), (6, 4, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "circular": (2, (2, 4, 7, 8), (6, 4, 3, 3), {"padding": (1, 2), "padding_mode": "circular"}),
    "replicate": (1, (2, 4, 9), (6, 4, 3), {"padding": 1, "padding_mode": "replicate"}),
    "3d": (3, (2, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"padding": (1, 0, 1)}),
    "3d strided": (3, (1, 4, 6, 6, 6), (4, 2, 3, 3, 3), {"stride": 2, "groups": 2, "dilation": (1, 2, 1)}),
    "transposed 1d": (1, (2, 4, 9), (4, 6, 3), {"transposed": True, "stride": 2}),
    "transposed 2d": (
        2,
        (2, 4, 6, 5),
        (4, 3, 3, 3),
        {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
    ),
    "transposed dilated": (2, (1, 4, 6, 5), (4, 6, 2, 3), {"transposed": True, "dilation": 2, "padding": 1}),
    "transposed 3d": (
        3,
        (1, 4, 3, 4, 3),
        (4, 3, 3, 3, 3),
        {"transposed": True, "stride": 2, "output_padding": 1},
    ),
}


def torch_convolution(x, weight, bias, rank, words):
    words = dict(words)
    if words.pop("transposed", False):
        return getattr(F, f"conv_transpose{rank}d")(x, weight, bias, **words)
    mode = words.pop("padding_mode", "zeros")
    if mode != "zeros":
        padding = words.pop("padding")
        per_dimension = (padding,) * rank if isinstance(padding, int) else padding
        x = F.pad(x, [side for p in reversed(per_dimension) for side in (p, p)], mode=mode)
    return getattr(F, f"conv{rank}d")(x, weight, bias, **words)


def make(case, dtype, layout, device, values):
    """Input, weight, bias, an operand per channel, a residual, and the convolution's own words."""
    rank, x_shape, weight_shape, words = CONVOLUTIONS[case]
    x = values(x_shape, device).to(dtype)
    weight = values(weight_shape, device).to(dtype)
    if layout == "channels_last":
        if rank == 1:
            pytest.skip("torch has no channels_last of rank 1")
        memory_format = torch.channels_last if rank == 2 else torch.channels_last_3d
        x, weight = x.to(memory_format=memory_format), weight.to(memory_format=memory_format)
    output = torch_convolution(x.double(), weight.double(), None, rank, words).shape
    bias = values(output[1:2], device).to(dtype)
    per_channel = values((output[1], *(1,) * rank), device).to(dtype)
    residual = values(output, device).to(dtype)
    return x, weight, bias, per_channel, residual, rank, words


def integers(shape, device):
    return torch.randint(-1, 2, tuple(shape), device=device).float()


def normal(shape, device):
    return torch.randn(tuple(shape), device=device)


def epiconv_chain(per_channel, residual):
    return [ops.add(per_channel), ops.hardswish(), ops.sub(residual), ops.clamp(-8.0, 8.0)]


def torch_chain(y, per_channel, residual):
    return torch.clamp(F.hardswish(y + per_channel) - residual, -8.0, 8.0)


def fused(*args, **kwargs):
    if args[0].device.type == "cuda":
        kwargs["algorithm"] = "cudnn"  # test_implicit_gemm_gpu.py is about the other one
    assert epiconv.explain(*args, **kwargs).path == FUSED[args[0].device.type]
    return epiconv.fused_conv_epilogue(*args, **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_integers_bit_for_bit(case, dtype, layout, device):
    torch.manual_seed(0)
    x, weight, bias, per_channel, residual, rank, words = make(case, dtype, layout, device, integers)
    epilogue = [ops.add(per_channel), ops.relu(), ops.sub(residual), ops.clamp(-100.0, 100.0)]
    got = fused(x, weight, bias, epilogue=epilogue, **words)
    y = torch_convolution(x.double(), weight.double(), bias.double(), rank, words)
    expected = torch.clamp(torch.relu(y + per_channel.double()) - residual.double(), -100.0, 100.0)
    assert got.dtype == dtype
    assert torch.equal(got.double(), expected)
    if rank > 1:
        memory_format = torch.channels_last if rank == 2 else torch.channels_last_3d
        wanted = memory_format if layout == "channels_last" else torch.contiguous_format
        assert got.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_random_values_against_float64(case, dtype, layout, device):
    torch.manual_seed(0)
    x, weight, bias, per_channel, residual, rank, words = make(case, dtype, layout, device, normal)
    exact = [t.double() for t in (x, weight, bias, per_channel, residual)]
    expected = torch_chain(torch_convolution(*exact[:3], rank, words), *exact[3:])
    theirs = torch_chain(torch_convolution(x, weight, bias, rank, words), per_channel, residual)
    got = fused(x, weight, bias, epilogue=epiconv_chain(per_channel, residual), **words)
    assert got.dtype == theirs.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2 * expected.abs().max()
    their_error = (theirs.double() - expected).abs().max()
    assert (got.double() - expected).abs().max() <= 2 * their_error + rounding


@pytest.mark.parametrize("case", ["2d", "grouped", "transposed 2d", "3d", "1d"])
def test_group_norm_behind_the_convolution(case, device):
    torch.manual_seed(0)
    x, weight, bias, per_channel, _, rank, words = make(case, torch.float32, "contiguous", device, normal)
    channels = per_channel.shape[0]
    groups = next(g for g in (3, 4, 2, 5, 1) if channels % g == 0)
    gamma, beta = normal((channels,), device), normal((channels,), device)
    epilogue = [ops.add(per_channel), ops.sigmoid(), ops.group_norm(groups, gamma, beta)]
    got = fused(x, weight, bias, epilogue=epilogue, **words)

    def reference(*tensors):
        x, weight, bias, per_channel, gamma, beta = tensors
        y = torch.sigmoid(torch_convolution(x, weight, bias, rank, words) + per_channel)
        return F.group_norm(y, groups, gamma, beta)

    given = (x, weight, bias, per_channel, gamma, beta)
    expected = reference(*[t.double() for t in given])
    their_error = (reference(*given).double() - expected).abs().max()
    assert (got.double() - expected).abs().max() <= 2 * their_error + 2.0**-22


@pytest.mark.gpu
@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_float32_as_cudnn_multiplies_it(setting, cuda):
    torch.manual_seed(0)
    x, weight, _, _, _, rank, words = make("2d", torch.float32, "contiguous", cuda, normal)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = setting
    try:
        got = fused(x, weight, **words)
        assert torch.equal(got, torch_convolution(x, weight, None, rank, words))
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.parametrize(("tuned", "deterministic"), list(itertools.product([False, True], repeat=2)))
def test_settings_of_cudnn_are_honoured_and_kept(tuned, deterministic, cuda):
    torch.manual_seed(0)
    x, weight, bias, per_channel, _, _, words = make("2d", torch.float32, "channels_last", cuda, normal)
    epilogue = [ops.add(per_channel), ops.group_norm(4)]
    with torch.backends.cudnn.flags(enabled=True, benchmark=tuned, deterministic=deterministic):
        for precision in (None, "ieee"):
            first = fused(x, weight, bias, epilogue=epilogue, precision=precision, **words)
            again = fused(x, weight, bias, epilogue=epilogue, precision=precision, **words)
            if deterministic:
                assert torch.equal(first, again)
        assert torch.backends.cudnn.benchmark is tuned
        assert torch.backends.cudnn.deterministic is deterministic


@pytest.mark.gpu
def test_deterministic_algorithms(cuda):
    torch.manual_seed(0)
    x, weight, bias, _, residual, _, words = make("2d", torch.float32, "contiguous", cuda, normal)
    torch.use_deterministic_algorithms(True)
    try:
        results = [
            fused(x, weight, bias, epilogue=[ops.add(residual), ops.group_norm(4)], **words) for _ in range(5)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(results[0], result) for result in results)


@pytest.mark.gpu
def test_without_cudnn(cuda):
    x, weight, bias, per_channel, _, rank, words = make("2d", torch.float32, "contiguous", cuda, integers)
    with torch.backends.cudnn.flags(enabled=False):
        got = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.add(per_channel)], **words)
    assert torch.equal(got, torch_convolution(x, weight, bias, rank, words) + per_channel)


@pytest.mark.gpu
def test_another_device_than_the_current_one(two_cards):
    _, other = two_cards
    x, weight, bias, per_channel, residual, rank, words = make(
        "2d", torch.float32, "contiguous", other, integers
    )
    for epilogue, reference in (
        ([ops.add(per_channel), ops.sub(residual)], lambda y: y + per_channel - residual),
        ([ops.group_norm(4)], lambda y: F.group_norm(y, 4)),  # which needs a workspace
    ):
        got = fused(x, weight, bias, epilogue=epilogue, **words)
        assert got.device == other
        assert torch.cuda.current_device() == 0
        torch.testing.assert_close(got, reference(torch_convolution(x, weight, bias, rank, words)))


@pytest.mark.gpu
def test_another_stream_than_the_default_one(cuda):
    x, weight, bias, per_channel, residual, rank, words = make(
        "2d", torch.float32, "contiguous", cuda, integers
    )
    expected = torch_chain(torch_convolution(x, weight, bias, rank, words), per_channel, residual)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        later = x * 1.0  # is there only when the stream has woken up
        got = fused(later, weight, bias, epilogue=epiconv_chain(per_channel, residual), **words)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", [False, True])
def test_cuda_graph(norm, cuda):
    x, weight, bias, per_channel, residual, _, words = make("2d", torch.float32, "contiguous", cuda, integers)
    scale = torch.tensor(2.0, device=cuda)  # read on the device at each replay
    epilogue = [ops.add(per_channel), ops.mul(scale), ops.sub(residual)] + (
        [ops.group_norm(4)] if norm else []
    )

    def call():
        return epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue, **words)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for value in (2.0, -3.0):
        scale.fill_(value)
        x.copy_(integers(x.shape, cuda))
        graph.replay()
        assert torch.equal(captured, call())


@pytest.mark.gpu
def test_nothing_waits_for_the_card(cuda):
    x, weight, bias, per_channel, residual, _, words = make("2d", torch.float32, "contiguous", cuda, integers)
    number = torch.tensor(0.5)
    epilogue = [*epiconv_chain(per_channel, residual), ops.mul(number), ops.group_norm(4)]
    epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue, **words)
    torch.cuda.set_sync_debug_mode("error")
    try:
        start, end = torch.cuda.Event(), torch.cuda.Event()
        start.record()
        torch.cuda._sleep(200_000_000)
        epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue, **words)
        end.record()
        assert not end.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


@pytest.mark.gpu
def test_threads_with_streams_of_their_own(cuda):
    x, weight, bias, per_channel, residual, rank, words = make(
        "2d", torch.float32, "contiguous", cuda, integers
    )
    expected = torch_chain(torch_convolution(x, weight, bias, rank, words), per_channel, residual)
    torch.cuda.synchronize()
    wrong = []

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                got = epiconv.fused_conv_epilogue(
                    x, weight, bias, epilogue=epiconv_chain(per_channel, residual), **words
                )
            torch.cuda.current_stream().synchronize()
        if not torch.allclose(got, expected):
            wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
def test_layout_other_than_cudnn_s(cuda):
    x, weight, bias, _, residual, rank, words = make("2d", torch.float32, "contiguous", cuda, integers)
    expected = torch_convolution(x, weight, bias, rank, words) + residual
    got = fused(x, weight, bias, memory_format=torch.channels_last, epilogue=[ops.add(residual)], **words)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, expected)
    got = fused(
        x.to(memory_format=torch.channels_last),
        weight,
        bias,
        memory_format=torch.contiguous_format,
        epilogue=[ops.add(residual)],
        **words,
    )
    assert got.is_contiguous()
    assert torch.equal(got, expected)
