"""The convolution kernels that run on any card: accuracy on random values, GroupNorm against float64, the
same bits in every run, streams and CUDA graphs.
"""

import pytest
import torch
import torch.nn.functional as F
from card_convolutions import LAYOUTS, MATHS, exact, exactly, force, in_layout, integers, kernel_of, portable

import epiconv
from epiconv import ops
from epiconv.convolution import round_to

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def of_sm_80(monkeypatch):
    force(monkeypatch, "sm80")


# ---- Accuracy.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", [torch.randn, torch.rand], ids=["normal", "positive"])
@pytest.mark.parametrize("channels", [3, 64, 512])  # sums of 27, 576 and 4608 products
def test_float32_is_as_good_as_torch_s(channels, values, layout, card, setting):
    """Positive values tell whether sums are rounded to one side: such errors add up."""
    torch.manual_seed(0)
    x = in_layout(values(2, channels, 16, 16, device=card), layout)
    weight = values(64, channels, 3, 3, device=card)
    expected = exact(x, weight, padding=1)
    setting("ieee")
    theirs = F.conv2d(x, weight, padding=1)
    ours = portable(x, weight, padding=1, precision="ieee")
    errors = [(result.double() - expected).abs().max() for result in (ours, theirs)]
    assert 0 < errors[0] <= 2 * errors[1]
    assert torch.equal(portable(x, weight, padding=1), ours)  # as torch's setting asks for


@pytest.mark.parametrize("of", ["input", "weight"])
def test_float32_has_low_parts(of, card):
    torch.manual_seed(0)
    x, weight = integers(2, 64, 9, 9, device=card), integers(24, 64, 3, 3, device=card)
    factor = 1 + 2.0**-13
    given = (x * factor, weight) if of == "input" else (x, weight * factor)
    exactly(portable(*given, precision="ieee"), exact(*given))
    exactly(portable(*given, precision="tf32"), exact(x, weight))


# Rounding, strides, groups, sums of several blocks, and phases.
RANDOM = {
    "3x3": ((4, 64, 30, 31), (128, 64, 3, 3), {"padding": 1}),
    "strided": ((4, 66, 30, 31), (130, 66, 3, 3), {"stride": 2}),
    "groups": ((4, 96, 30, 31), (128, 24, 3, 3), {"groups": 4, "padding": 1}),
    "split": ((1, 512, 4, 4), (64, 512, 3, 3), {"padding": 1}),
    "3-d": ((2, 32, 6, 14, 14), (64, 32, 3, 3, 3), {"padding": 1, "stride": (1, 2, 2)}),
    "transposed": ((2, 64, 14, 14), (64, 48, 4, 4), {"transposed": True, "stride": 2}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("case", RANDOM)
def test_random_values_are_as_good_as_cudnn_s(case, math, layout, card):
    torch.manual_seed(0)
    (extents, filters, words), (dtype, precision) = RANDOM[case], MATHS[math]
    x = in_layout(torch.randn(extents, device=card).to(dtype), layout)
    depth = torch.Size(filters[0 if words.get("transposed") else 1 :]).numel()
    weight = (torch.randn(filters, device=card) / depth**0.5).to(dtype)

    def of(x, weight):
        return F.hardswish(exact(x, weight, **words))

    expected, given = of(x, weight), words | {"precision": precision, "epilogue": [ops.hardswish()]}
    ours = portable(x, weight, **given)
    theirs = epiconv.fused_conv_epilogue(x, weight, algorithm="cudnn", **given)
    assert ours.dtype == theirs.dtype == dtype
    # Where cuDNN multiplies in float32, whatever it was asked for, the measure is what rounding to the math
    # asked for does to the result.
    rounded = of(round_to(x, precision), round_to(weight, precision)) if precision else expected
    errors = [(result.double() - expected).abs().max() for result in (ours, theirs, rounded)]
    rounding = torch.finfo(dtype).eps / 2 * expected.abs().max()
    assert errors[0] <= 2 * max(errors[1:]) + rounding
    for _ in range(5):
        assert torch.equal(portable(x, weight, **given), ours)


def test_tf32_is_rounded_to_nearest_even(card):
    """In inputs that are gathered one by one and in those that lie in pieces, and in packed weights."""
    weight = torch.zeros(64, 64, 1, 1, device=card)
    weight[:, 0] = 1.0
    for layout in LAYOUTS:
        x = in_layout(torch.ones(1, 64, 8, 8, device=card), layout)
        for value, rounded in (
            (1 + 2.0**-11, 1.0),
            (1 + 3 * 2.0**-11, 1 + 2.0**-9),
            (1 + 2.0**-10, 1 + 2.0**-10),
        ):
            expected = torch.full_like(x, rounded).double()
            exactly(portable(x * value, weight, precision="tf32"), expected)
            exactly(portable(x, weight * value, precision="tf32"), expected)


# ---- GroupNorm.

STATISTICS, WHOLE = "statistics of what is stored", "a whole pass behind the sums"
UP = {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1}

# Input, weight, groups of the norm, words.
NORMS = {
    "recipe": ((3, 8, 50, 66), (32, 8, 3, 3), 8, {}),
    "a group for each filter": ((3, 8, 20, 31), (24, 8, 3, 3), 24, {"stride": 2}),
    "one group": ((2, 16, 20, 30), (64, 16, 3, 3), 1, {"padding": 1}),
    # Tiles of filters that groups begin or end in, and of groups of the convolution.
    "groups across tiles": ((2, 8, 20, 30), (300, 8, 3, 3), 3, {}),
    "groups of the convolution": ((2, 24, 20, 30), (72, 8, 3, 3), 4, {"groups": 3}),
    "depthwise": ((2, 48, 20, 31), (48, 1, 3, 3), 8, {"groups": 48, "padding": 1}),
    "one filter": ((2, 3, 20, 30), (1, 3, 3, 3), 1, {}),
    "one pixel": ((5, 8, 3, 3), (32, 8, 3, 3), 4, {}),
    "more images than a tile has pixels": ((300, 8, 5, 5), (32, 8, 3, 3), 4, {}),
    "sums of several blocks": ((3, 512, 5, 5), (64, 512, 3, 3), 8, {"padding": 1}),
    "1-d": ((4, 8, 301), (32, 8, 5), 8, {"stride": 2}),
    "3-d": ((2, 8, 7, 12, 15), (32, 8, 3, 3, 3), 8, {"padding": 1}),
    "transposed": ((2, 8, 17, 20), (8, 32, 3, 3), 8, UP),
    "transposed, phases without taps": ((2, 8, 9, 12), (8, 32, 2, 2), 4, UP | {"stride": 3, "padding": 0}),
    "transposed, 3-d": ((2, 8, 5, 6, 7), (8, 32, 3, 3, 3), 4, UP),
}


def normed(way, *args, **kwargs):
    """The call, after a look at which way it goes."""
    kernel, _, behind = kernel_of(*args, **kwargs).partition(", ")
    assert behind and kernel.endswith("_with_statistics") == (way == STATISTICS), (kernel, behind)
    return portable(*args, **kwargs)


def close(got, expected, tolerance=3e-5):
    """Within a tolerance of values around 1, and a rounding of the result's type."""
    assert got.shape == expected.shape
    eps = torch.finfo(got.dtype).eps
    bound = tolerance + expected.abs() * (eps if got.dtype != torch.float32 else 2e-6)
    error = (got.double() - expected).abs()
    assert (error <= bound).all(), f"{error.max().item()} is too far off"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", ["tf32", "bf16", "ieee"])
@pytest.mark.parametrize("name", NORMS)
def test_group_norm(name, math, layout, card):
    """Statistics of what the kernel stores, of what is rounded to 16 bits behind them, and what follows."""
    torch.manual_seed(0)
    extents, filters, groups, words = NORMS[name]
    dtype = torch.bfloat16 if math == "bf16" else torch.float32
    x = in_layout(integers(*extents, device=card, dtype=dtype), layout)
    weight = integers(*filters, device=card, dtype=dtype)
    y = exact(x, weight, **words)
    k, ones = y.shape[1], (1,) * (y.dim() - 2)
    bias, shift = integers(k, device=card, dtype=dtype), integers(k, *ones, device=card)
    affine = [torch.randn(k, device=card).to(dtype) for _ in range(2)]
    given = words | {"precision": None if math == "bf16" else math, "dtype": dtype}
    epilogue = [ops.add(shift), ops.mul(0.125), ops.group_norm(groups, *affine), ops.relu()]
    value = (y + (bias + shift.flatten()).double().view(-1, *ones)) * 0.125
    expected = F.group_norm(value, groups, *(tensor.double() for tensor in affine)).relu()
    close(normed(STATISTICS, x, weight, bias, epilogue=epilogue, **given), expected)
    residual = in_layout(integers(*y.shape, device=card), layout)
    epilogue = [ops.sigmoid(), ops.group_norm(groups, eps=0.5), ops.add(residual)]
    expected = F.group_norm(y.sigmoid(), groups, eps=0.5) + residual.double()
    close(normed(STATISTICS, x, weight, epilogue=epilogue, **given), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["recipe", "groups across tiles", "sums of several blocks", "3-d", "transposed"]
)
def test_group_norm_in_a_whole_pass(name, layout, card):
    """Where a value from before the norm is read behind it, and in float64."""
    torch.manual_seed(0)
    extents, filters, groups, words = NORMS[name]
    x = in_layout(integers(*extents, device=card), layout)
    weight, given = integers(*filters, device=card), words | {"precision": "tf32"}

    def epilogue(y):
        half = y * 0.5
        return F.group_norm(half, groups) + half

    half = exact(x, weight, **words) * 0.5
    expected = F.group_norm(half, groups) + half
    close(normed(WHOLE, x, weight, epilogue=epiconv.trace(epilogue), **given), expected)
    shift = torch.randn(half.shape[1], *(1,) * (half.dim() - 2), device=card).double()
    got = normed(WHOLE, x, weight, epilogue=[ops.add(shift), ops.group_norm(groups)], **given)
    assert got.dtype == torch.float64
    expected = F.group_norm(half * 2 + shift, groups)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", ["tf32", "ieee"])
def test_a_mean_far_from_zero(math, layout, card):
    """Mean 10^3 and deviation 1 over a quarter of a million elements for each group, of 24 bits: sums of them
    are rounded, and only those of distances from a value near the mean lose little."""
    torch.manual_seed(0)
    x = in_layout(integers(1, 8, 258, 258, device=card), layout)
    weight = integers(32, 8, 3, 3, device=card)
    y = exact(x, weight)
    scale = 2.0 ** -round(float(y.std().log2()))
    residual = in_layout(torch.rand(y.shape, device=card) / 8 + 1000.0, layout)
    epilogue = [ops.mul(scale), ops.add(residual), ops.group_norm(8)]
    got = normed(STATISTICS, x, weight, epilogue=epilogue, precision=math)
    # What the norm is of: float32 values, whose rounding is no error of the norm's.
    value = ((y * scale).float() + residual).double()
    assert 0.5 < value.std() < 2 and value.mean().round() == 1000
    close(got, F.group_norm(value, 8), 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [3.0, 1e20, 2.0**66])
def test_a_constant_image_has_no_deviation(value, layout, card):
    """Squares would overflow; and of 11 x 11 pixels a product with a rounded 1 / 121 is not the mean."""
    x = in_layout(torch.full((2, 8, 11, 11), value, device=card), layout)
    weight = torch.zeros(96, 8, 1, 1, device=card)
    weight[:, 0] = 1.0
    shift = torch.randn(96, device=card)
    epilogue = [ops.group_norm(8, torch.randn(96, device=card), shift)]
    for precision in ("tf32", "ieee"):
        got = normed(STATISTICS, x, weight, epilogue=epilogue, precision=precision)
        exactly(got, shift.double().view(-1, 1, 1).expand(got.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinities_stay_in_their_group(layout, card):
    torch.manual_seed(0)
    x, weight = integers(3, 8, 20, 31, device=card), integers(24, 4, 3, 3, device=card)
    for value in (float("nan"), float("inf")):
        x[1, 2, 5, 7] = value
        words = {"groups": 2, "stride": 2}
        epilogue = [ops.group_norm(6)]
        got = normed(STATISTICS, in_layout(x, layout), weight, epilogue=epilogue, precision="tf32", **words)
        expected = F.group_norm(exact(x, weight, **words), 6)
        assert torch.equal(got.isnan(), expected.isnan())
        assert got[0].isfinite().all() and got[1, 12:].isfinite().all() and got[1, :12].isnan().any()


# ---- Runs.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["recipe", "sums of several blocks", "3-d", "transposed"])
def test_the_same_bits_in_every_run(name, layout, card):
    torch.manual_seed(0)
    extents, filters, groups, words = NORMS[name]
    x = in_layout(torch.randn(extents, device=card), layout)
    weight = torch.randn(filters, device=card)
    given = words | {"epilogue": [ops.sigmoid(), ops.group_norm(groups)], "precision": "tf32"}
    first = normed(STATISTICS, x, weight, **given)
    for _ in range(20):
        assert torch.equal(normed(STATISTICS, x, weight, **given), first)


# Sums of one block, of several, and a norm: none, one and two more buffers of a launch's own.
RUNS = {
    "strided": ((2, 8, 9, 9), (24, 4, 3, 3), {"groups": 2, "stride": 2}, []),
    "split": ((1, 512, 4, 4), (64, 512, 3, 3), {"padding": 1}, []),
    "norm": ((3, 8, 20, 21), (24, 8, 3, 3), {"stride": 2}, [ops.group_norm(8)]),
    "transposed": ((1, 512, 4, 4), (512, 64, 4, 4), {"transposed": True, "stride": 2}, []),
}


@pytest.mark.parametrize("case", RUNS)
def test_cuda_graph(case, card):
    torch.manual_seed(0)
    extents, filters, words, epilogue = RUNS[case]
    words = words | {"epilogue": [ops.relu(), *epilogue], "precision": "ieee"}
    x, weight = (torch.randn(shape, device=card) for shape in (extents, filters))
    inputs = [torch.randn(extents, device=card) for _ in range(3)]
    expected = [portable(each, weight, **words) for each in inputs]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = portable(x, weight, **words)
    for given, right in zip(inputs * 2, expected * 2, strict=True):
        x.copy_(given)
        graph.replay()
        assert torch.equal(captured, right)
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize("case", RUNS)
def test_streams(case, card):
    """Weights that are packed when a stream wakes up, and launches side by side, each with buffers of its
    own."""
    torch.manual_seed(0)
    extents, filters, words, epilogue = RUNS[case]
    words = words | {"epilogue": [ops.relu(), *epilogue], "precision": "tf32"}
    inputs = [torch.randn(extents, device=card) for _ in range(4)]
    weight = torch.randn(filters, device=card)
    expected = [portable(x, weight.clone(), **words) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(streams[0]):
        torch.cuda._sleep(20_000_000)
    results = []
    for _ in range(5):
        for x, stream in zip(inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(portable(x, weight, **words))
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, expected * 5))


def test_nothing_waits_for_the_card(card):
    x, weight = torch.randn(1, 512, 4, 4, device=card), torch.randn(64, 512, 3, 3, device=card)
    words = {"padding": 1, "precision": "tf32", "epilogue": [ops.group_norm(8)], "algorithm": "implicit_gemm"}
    portable(x, weight, **words)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weight.mul_(2.0)
        end = torch.cuda.Event()
        torch.cuda._sleep(100_000_000)
        epiconv.fused_conv_epilogue(x, weight, **words)  # packs
        epiconv.fused_conv_epilogue(x, weight, **words)
        end.record()
        assert not end.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def test_which_kernels_are_planned(card, monkeypatch):
    """Those of sm_80 where they are asked for, and where there are no others."""
    x, weight = integers(32, 64, 56, 56, device=card), integers(64, 64, 3, 3, device=card)
    words = {"precision": "tf32", "algorithm": "implicit_gemm"}
    of_sm_80 = epiconv.explain(x, weight, **words)
    force(monkeypatch, "any")
    no_other, fastest = (epiconv.explain(x, weight, stride=stride, **words) for stride in (2, 1))
    assert of_sm_80.kernel.startswith("fprop_sm80_tf32_") and no_other.kernel.startswith("fprop_sm80_tf32_")
    if torch.cuda.get_device_capability(card) == (9, 0):
        assert fastest.kernel.startswith("fprop_sm90_tf32_")
        assert len({of_sm_80.why, no_other.why, fastest.why}) == 3


EVALUATORS = {  # by what a program keeps besides its value
    "v1 = add(v0, 1.0); v2 = tanh(v1)": "interpreted_chain",
    "v1 = add(v0, 1.0); v2 = hardswish(v1); v3 = mul(v1, v2)": "interpreted_chain",  # a gate keeps nothing
    "v1 = add(v0, 1.0); v2 = hardswish(v1); v3 = add(v1, v2)": "interpreted_dag_of_one_slot",
    "v1 = tanh(v0); v2 = exp(v0); v3 = sub(v1, v2); v4 = mul(v3, v0)": "interpreted_dag",
}


@pytest.mark.parametrize("program", EVALUATORS)
def test_the_least_evaluator_is_planned(program, card):
    x, weight = integers(2, 8, 9, 9, device=card), integers(24, 8, 3, 3, device=card)
    words = {"epilogue": epiconv.Program(program), "precision": "tf32", "algorithm": "implicit_gemm"}
    assert epiconv.explain(x, weight, **words).kernel.endswith(f"f32_{EVALUATORS[program]}")


AUTO = {  # input, weight, words
    "8 channels in 3-d": ((2, 8, 6, 9, 9), (24, 8, 3, 3, 3), {}),
    "3 channels, strided": ((2, 3, 19, 19), (24, 3, 7, 7), {"stride": 2}),
    "both column phases": ((2, 16, 9, 9), (16, 24, 2, 2), {"stride": 2, "transposed": True}),
    "both, of many channels": ((8, 256, 32, 32), (256, 64, 2, 2), {"stride": 2, "transposed": True}),
    "256 channels": ((8, 256, 56, 56), (256, 256, 3, 3), {}),
    "groups": ((2, 8, 19, 19), (24, 4, 3, 3), {"groups": 2}),
    "float32 products": ((2, 8, 6, 9, 9), (24, 8, 3, 3, 3), {"precision": "ieee"}),
    "a norm": ((2, 8, 6, 9, 9), (24, 8, 3, 3, 3), {"epilogue": [ops.group_norm(8)]}),
}


@pytest.mark.parametrize("case", AUTO)
def test_auto_follows_the_predictions(case, card, setting):
    setting("tf32")
    shape, taps, words = AUTO[case]
    x, weight = integers(*shape, device=card), integers(*taps, device=card)
    words = {"epilogue": [ops.relu()], **words}
    plan = epiconv.explain(x, weight, **words)
    ways = dict(plan.ways)
    is_faster = ways["sm80"] < ways["cudnn+epilogue"] and "precision" not in words
    assert plan.path == ("implicit_gemm" if is_faster else "cudnn+epilogue"), plan
    assert plan.predicted_ms == ways["sm80" if is_faster else "cudnn+epilogue"]
    ours = epiconv.fused_conv_epilogue(x, weight, algorithm="implicit_gemm", **words)
    assert torch.allclose(epiconv.fused_conv_epilogue(x, weight, **words), ours, rtol=1e-5, atol=1e-5)
