"""GroupNorm behind convolutions by the path "implicit_gemm" on a card: all ways to compute it, against
float64; accuracy where means are large; the same bits in every run, batch and stream; NaN, graphs,
streams.

`fused` asserts that a kernel of ours runs, `normed` which way it goes.
"""

import pytest
import torch
import torch.nn.functional as F
from card_convolutions import (
    LAYOUTS,
    MATHS,
    convolution,
    force,
    fused,
    in_layout,
    integers,
    transposed_convolution,
)
from torch import nn

import epiconv
from epiconv import ops
from epiconv.recipes import ConvAddMulSigmoidGroupNorm

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def only_kernels_made_for_the_card(monkeypatch):
    force(monkeypatch, "sm90")


HOLDS, RECOMPUTES, STORES = "_holding", "_recomputing", "_with_statistics, elementwise_cuda_"
EITHER = ""  # 16-bit weights stay in shared memory, those of TF32 do not
UP = {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1}

# Input, (K, taps), groups, words, the way that the plan must go.
PROBLEMS = {
    "recipe": ((3, 8, 50, 256), (32, 3, 3), 8, {}, HOLDS),
    "more tiles than multiprocessors": ((9, 8, 120, 250), (32, 3, 3), 8, {}, HOLDS),
    "more tiles than are held": ((2, 8, 300, 520), (32, 3, 3), 8, {}, RECOMPUTES),
    "more tiles than are held, two filter groups": ((2, 8, 150, 260), (128, 3, 3), 8, {}, RECOMPUTES),
    "more images than a chunk": ((200, 8, 9, 9), (32, 3, 3), 4, {"padding": 1}, HOLDS),
    "one image": ((1, 8, 90, 70), (32, 3, 3), 2, {}, HOLDS),
    "an odd number of rows": ((2, 8, 13, 40), (32, 3, 3), 8, {}, HOLDS),
    "a group for each filter": ((3, 8, 20, 31), (24, 3, 3), 24, {}, HOLDS),
    "one group": ((2, 16, 20, 30), (64, 3, 3), 1, {}, HOLDS),
    "four joint rows": ((2, 4, 33, 47), (16, 3, 3), 4, {}, HOLDS),
    "groups across warps": ((2, 8, 20, 30), (60, 3, 3), 5, {}, HOLDS),
    "two filter groups": ((2, 8, 20, 30), (128, 3, 3), 8, {}, HOLDS),
    "three filter groups": ((2, 8, 20, 30), (192, 1, 1), 6, {}, HOLDS),
    "one filter": ((2, 3, 20, 30), (1, 3, 3), 1, {}, HOLDS),
    "one pixel": ((5, 8, 3, 3), (32, 3, 3), 4, {}, HOLDS),
    "reflected": ((2, 8, 20, 30), (32, 3, 3), 8, {"padding": 1, "padding_mode": "reflect"}, HOLDS),
    "1d": ((4, 8, 300), (32, 5), 8, {"padding": 2}, HOLDS),
    "transposed": ((2, 8, 17, 20), (32, 3, 3), 8, UP, HOLDS),
    "transposed, stride 4": ((2, 8, 9, 12), (32, 5, 5), 4, {"transposed": True, "stride": 4}, HOLDS),
    "deep": ((3, 256, 14, 14), (256, 3, 3), 32, {"padding": 1}, STORES),
    # Two blocks of channels beside weights that stay.
    "two units": ((2, 64, 30, 30), (16, 3, 3), 4, {}, EITHER),
    "two units, one tap": ((2, 64, 30, 30), (64, 1, 1), 4, {}, HOLDS),
    "deep, one group": ((2, 320, 9, 11), (96, 3, 3), 1, {"padding": 1}, STORES),
    "deep, a group for each filter": ((2, 256, 30, 30), (130, 3, 3), 130, {}, STORES),
    "deep, transposed": (
        (2, 256, 12, 12),
        (128, 4, 4),
        32,
        {"transposed": True, "stride": 2, "padding": 1},
        STORES,
    ),
}


def make(problem, math, layout, device):
    """Input, weight and bias, small integers; the norm's weight and shift."""
    extents, (filters, *taps), _, words, _ = problem
    dtype = MATHS[math][0]
    x = in_layout(integers(*extents, device=device, dtype=dtype), layout)
    shape = (extents[1], filters) if words.get("transposed") else (filters, extents[1])
    weight = integers(*shape, *taps, device=device, dtype=dtype)
    bias = integers(filters, device=device, dtype=dtype)
    affine = [torch.randn(filters, device=device).to(dtype) for _ in range(2)]
    return x, weight, bias, affine


def expected_of(problem, x, weight, bias):
    """The convolution in float64, on the tensors' device."""
    words = dict(problem[3])
    if words.pop("transposed", False):
        return transposed_convolution(x, weight, bias, **words).to(x.device)
    return convolution(x, weight, bias, words.get("padding", 0), mode=words.get("padding_mode", "zeros"))


def normed(problem, *args, **kwargs):
    """The call, after a look at which way it goes."""
    kernel = epiconv.explain(*args, algorithm="implicit_gemm", **kwargs).kernel
    ways = [way for way in (HOLDS, RECOMPUTES, STORES) if way in kernel]
    assert len(ways) == 1 and problem[4] in (EITHER, ways[0]), kernel
    return fused(*args, **kwargs)


def close(got, expected, tolerance=3e-5):
    """Within a tolerance of values around 1, and a rounding of the result's type."""
    assert got.shape == expected.shape
    eps = torch.finfo(got.dtype).eps
    bound = tolerance + expected.abs() * (eps if got.dtype != torch.float32 else 2e-6)
    error = (got.double() - expected).abs()
    assert (error <= bound).all(), f"{error.max().item()} is too far off"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_float64(cuda, name, math, layout):
    problem = PROBLEMS[name]
    x, weight, bias, affine = make(problem, math, layout, cuda)
    epilogue = [ops.mul(0.125), ops.group_norm(problem[2], *affine)]
    got = normed(problem, x, weight, bias, epilogue=epilogue, precision=MATHS[math][1], **problem[3])
    value = expected_of(problem, x, weight, bias) * 0.125
    close(got, F.group_norm(value, problem[2], *(tensor.double() for tensor in affine)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize(
    "name",
    ["recipe", "an odd number of rows", "four joint rows", "one group", "more tiles than are held", "deep"],
)
def test_the_recipe_and_what_follows_it(cuda, name, math, layout):
    """The recipe's program has a kernel of its own where one kernel does it all, longer ones have not."""
    problem = PROBLEMS[name]
    x, weight, bias, affine = make(problem, math, layout, cuda)
    per_channel = (problem[1][0], *(1,) * (x.dim() - 2))
    b0, b1 = (torch.randn(per_channel, device=cuda).to(x) for _ in range(2))
    shared = [ops.add(b0), ops.mul(b1 * 0.125), ops.sigmoid(), ops.group_norm(problem[2], *affine)]
    value = (expected_of(problem, x, weight, bias) + b0.double()) * (b1 * 0.125).double()
    expected = F.group_norm(value.sigmoid(), problem[2], *(tensor.double() for tensor in affine))
    words = {"precision": MATHS[math][1], **problem[3]}
    got = normed(problem, x, weight, bias, epilogue=shared, **words)
    # bf16's sigmoid is within 2^-12, of values whose deviation is about a third here.
    tolerance = 1e-3 if "bf16" in math else 3e-5
    if problem[4] != STORES:
        kernel = epiconv.explain(x, weight, bias, epilogue=shared, algorithm="implicit_gemm", **words).kernel
        assert "f32_static" in kernel
    close(got, expected, tolerance)
    longer = [*shared, ops.relu(), ops.mul(2.0), ops.add(b0)]
    got = normed(problem, x, weight, bias, epilogue=longer, **words)
    close(got, expected.relu() * 2 + b0.double(), 6e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_affine_and_without_bias(cuda, layout):
    problem = PROBLEMS["recipe"]
    x, weight, _, _ = make(problem, "tf32", layout, cuda)
    got = normed(problem, x, weight, epilogue=[ops.group_norm(problem[2], eps=0.5)], precision="tf32")
    close(got, F.group_norm(convolution(x, weight), problem[2], eps=0.5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["recipe", "deep"])
def test_operands_of_images(cuda, name, layout):
    """One element for each image and filter, before the norm and behind it, and one for each pixel."""
    problem = PROBLEMS[name]
    x, weight, bias, _ = make(problem, "tf32", layout, cuda)
    value = expected_of(problem, x, weight, bias)
    of_images = [integers(x.shape[0], problem[1][0], 1, 1, device=cuda) for _ in range(2)]
    residual = in_layout(integers(*value.shape, device=cuda), layout)
    epilogue = [ops.add(of_images[0]), ops.group_norm(problem[2]), ops.mul(of_images[1]), ops.add(residual)]
    got = normed(problem, x, weight, bias, epilogue=epilogue, precision="tf32", **problem[3])
    expected = F.group_norm(value + of_images[0].double(), problem[2])
    close(got, expected * of_images[1].double() + residual.double(), 1e-4)


def test_a_value_from_before_the_norm(cuda, monkeypatch):
    """Where everything is computed anew it can be read; what was stored keeps the norm's input only."""

    def epilogue(y):
        half = y * 0.5
        return F.group_norm(half, 8) + half

    program = epiconv.trace(epilogue)
    problem = (*PROBLEMS["recipe"][:4], RECOMPUTES)
    x, weight, bias, _ = make(problem, "tf32", "nchw", cuda)
    got = normed(problem, x, weight, bias, epilogue=program, precision="tf32")
    half = convolution(x, weight, bias) * 0.5
    close(got, F.group_norm(half, 8) + half, 1e-4)
    problem = PROBLEMS["deep"]
    x, weight, bias, _ = make(problem, "tf32", "nchw", cuda)
    words = {"padding": 1, "epilogue": program, "precision": "tf32"}
    plan = epiconv.explain(x, weight, bias, **words)
    assert "reads a value from before it" in dict(plan.refused)["implicit_gemm"]
    # The portable kernel stores the products alone, and a pass does all the rest.
    force(monkeypatch, "sm80")
    half = convolution(x, weight, bias, padding=1) * 0.5
    kernel = epiconv.explain(x, weight, bias, algorithm="implicit_gemm", **words).kernel
    assert kernel.startswith("fprop_sm80_tf32_") and "group_norm_cuda_" in kernel
    got = epiconv.fused_conv_epilogue(x, weight, bias, algorithm="implicit_gemm", **words)
    close(got, F.group_norm(half, 8) + half, 1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "extents"), [("recipe", (1, 8, 514, 514)), ("deep", (1, 128, 514, 514))])
def test_a_mean_far_from_zero(cuda, name, extents, layout):
    """Mean 10^3 and deviation 1 over a million elements for each group."""
    torch.manual_seed(0)
    problem = (extents, (32, 3, 3), 8, {}, RECOMPUTES)
    if name == "deep":
        problem = (extents, (256, 3, 3), 64, {}, STORES)
    x, weight, _, _ = make(problem, "tf32", layout, cuda)
    exact = convolution(x, weight)
    scale = 2.0 ** -round(float(exact.std().log2()))
    epilogue = [ops.mul(scale), ops.add(1000.0), ops.group_norm(problem[2])]
    got = normed(problem, x, weight, epilogue=epilogue, precision="tf32")
    # What the norm is of: float32 values, whose rounding is no error of the norm's.
    value = ((exact * scale).float() + 1000.0).double()
    assert 0.5 < value.std() < 2 and value.mean().round() == 1000
    close(got, F.group_norm(value, problem[2]), 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["more tiles than multiprocessors", "more tiles than are held", "deep", "transposed"]
)
def test_the_same_bits_in_every_run_and_batch(cuda, name, layout):
    problem = PROBLEMS[name]
    extents, (filters, *taps), groups, words, _ = problem
    x = in_layout(torch.randn(extents, device=cuda), layout)
    shape = (extents[1], filters) if words.get("transposed") else (filters, extents[1])
    weight = torch.randn(*shape, *taps, device=cuda)
    words = {"epilogue": [ops.sigmoid(), ops.group_norm(groups)], "precision": "tf32", **words}
    first = normed(problem, x, weight, **words)
    for _ in range(5):
        assert torch.equal(normed(problem, x, weight, **words), first)
    for image in (0, extents[0] - 1):
        assert torch.equal(normed(problem, x[image : image + 1].clone(), weight, **words)[0], first[image])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["recipe", "four joint rows", "more tiles than are held", "deep"])
def test_nan_and_infinities_stay_in_their_group(cuda, name, layout):
    problem = PROBLEMS[name]
    x, weight, bias, _ = make(problem, "tf32", layout, cuda)
    for value in (float("nan"), float("inf")):
        x[1, 2, 5, 7] = value
        got = normed(
            problem, x, weight, bias, epilogue=[ops.group_norm(problem[2])], precision="tf32", **problem[3]
        )
        expected = F.group_norm(expected_of(problem, x, weight, bias), problem[2])
        assert torch.equal(got.isnan(), expected.isnan())
        assert got[0].isfinite().all() and got[1].isnan().any()


def test_in_a_graph_and_on_streams_at_once(cuda):
    """Blocks wait for each other, and so two launches at once must not share the card by halves."""
    problem = PROBLEMS["more tiles than multiprocessors"]
    x, weight, bias, _ = make(problem, "tf32", "nchw", cuda)
    words = {"epilogue": [ops.group_norm(problem[2])], "precision": "tf32"}
    expected = normed(problem, x, weight, bias, **words)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused(x, weight, bias, **words)
    for _ in range(3):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(10):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                results.append(fused(x, weight, bias, **words))
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_module(cuda, dtype, layout):
    torch.manual_seed(0)
    model = ConvAddMulSigmoidGroupNorm(8, 32, 3, 8, (32, 1, 1), (32, 1, 1)).to(cuda, dtype)
    nn.init.normal_(model.group_norm.weight)
    nn.init.normal_(model.group_norm.bias)
    x = in_layout(torch.randn(3, 8, 60, 130, device=cuda).to(dtype), layout)
    with torch.no_grad():
        got = model(x)
        expected = model.double().reference(x.double())
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.02)
