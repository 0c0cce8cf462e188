"""The epilogue pass, CPU and CUDA: every way of walking and addressing a tensor, and GroupNorm's statistics.

What the operations compute is tested elsewhere; here inputs are small integers, so that results are exact.
"""

import pytest
import torch
from plan_runner import make_plan, run_plan

from epiconv import _core
from epiconv.program import Program

FLOATING = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

SHAPES = {
    "one element": (1, 1, 1, 1),
    "no pixels to speak of": (3, 5),
    "odd everywhere": (2, 3, 5, 7),
    "rows of whole chunks": (2, 8, 16, 16),
    "rows shorter than a chunk": (3, 17, 3, 1),
    "rows that end inside a chunk": (2, 16, 9, 14),
    "one spatial dimension": (2, 7, 131),
    "three spatial dimensions": (2, 4, 3, 5, 6),
    "more channels than pixels": (1, 520, 2, 3),
    "several chunks a thread, and a tail": (3, 32, 210, 211),
}

# How y lies in memory: dimensions from the outermost to the innermost, and elements between rows.
LAYOUTS = {
    "contiguous": lambda rank: (list(range(rank)), 0),
    "channels_last": lambda rank: ([0, *range(2, rank), 1], 0),
    "sliced": lambda rank: (list(range(rank)), 3),
    "transposed": lambda rank: ([*range(rank - 2), rank - 1, rank - 2], 0),
    "batch inside": lambda rank: ([*range(1, rank), 0], 1),
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def strides_of(shape, layout):
    order, gap = LAYOUTS[layout](len(shape))
    strides, step = [0] * len(shape), 1
    for position, dim in enumerate(reversed(order)):
        strides[dim] = step
        step = step * shape[dim] + (gap if position == 0 else 0)
    return strides


def integers(shape, device, dtype=torch.float32, low=-4, high=5):
    return torch.randint(low, high, shape, device=device).to(dtype)


def laid_out(tensor, strides):
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(tensor.shape, strides, strict=True))
    result = tensor.new_full((span,), float("nan")).as_strided(tensor.shape, strides)
    return result.copy_(tensor)


def operand_shapes(shape):
    """Each way in which an operand may broadcast."""
    ones = [1] * (len(shape) - 2)
    yield "full", shape
    yield "per channel", (shape[1], *ones)
    yield "per sample and channel", (*shape[:2], *ones)
    yield "per sample and pixel", (shape[0], 1, *shape[2:])
    yield "per pixel", shape[2:]
    yield "width", shape[-1:]
    yield "one", (1,)


EXACT = "v1 = add(v0, b0); v2 = maximum(v1, -3.0); v3 = mul(v2, b1)"


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_exact_in_every_layout(shape, layout, dtype, device):
    torch.manual_seed(0)
    strides = strides_of(shape, layout)
    y = laid_out(integers(shape, device, dtype), strides)
    bias = integers(shape[1:2], device, dtype)
    operands = [integers((shape[1], *[1] * (len(shape) - 2)), device, dtype), integers(shape, device, dtype)]
    with_bias = y + bias.view(-1, *[1] * (len(shape) - 2))
    expected = Program(EXACT).apply(with_bias.double(), [b.double() for b in operands]).to(dtype)

    plan = make_plan(EXACT, y, operands, bias)
    assert plan.kernel.startswith(f"elementwise_{device}_")
    assert torch.equal(run_plan(plan, y, operands, bias), expected)
    assert torch.equal(run_plan(plan, y, operands, bias, in_place=True), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_exact_with_every_broadcast(shape, layout, device):
    torch.manual_seed(1)
    y = laid_out(integers(shape, device), strides_of(shape, layout))
    for name, operand_shape in operand_shapes(shape):
        operand = integers(operand_shape, device)
        for b in (operand, operand.to(torch.bfloat16), operand.to(torch.int64), operand > 0):
            expected = torch.add(y, b, alpha=2).to(torch.float32)
            result = run_plan(make_plan("v1 = add(v0, b0, alpha=2)", y, [b]), y, [b])
            assert torch.equal(result, expected), f"{name} {b.dtype}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual_in_every_layout(layout, device):
    torch.manual_seed(2)
    shape = (2, 24, 10, 11)
    y = integers(shape, device, torch.bfloat16)
    residual = laid_out(integers(shape, device, torch.bfloat16), strides_of(shape, layout))
    expanded = integers((1, 24, 1, 11), device, torch.bfloat16).expand(shape)
    for b in (residual, residual.flip(3), expanded, residual[:, ::1]):
        result = run_plan(make_plan("v1 = add(v0, b0)", y, [b]), y, [b])
        assert torch.equal(result, y + b)


@pytest.mark.parametrize("out_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("in_dtype", FLOATING, ids=str)
def test_another_dtype_and_layout_for_the_output(in_dtype, out_dtype, device):
    torch.manual_seed(3)
    shape = (3, 24, 9, 8)
    y = integers(shape, device, in_dtype)
    operand = integers(shape, device, out_dtype)
    strides = strides_of(shape, "channels_last")
    for out_strides in (y.stride(), strides):
        plan = make_plan("v1 = sub(v0, b0)", y, [operand], dtype=out_dtype, strides=out_strides)
        result = run_plan(plan, y, [operand], dtype=out_dtype, strides=out_strides)
        assert torch.equal(result, (y.double() - operand.double()).to(out_dtype))


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_memory_that_is_not_aligned(dtype, shift, device):
    torch.manual_seed(4)
    shape = (2, 16, 12, 16)
    y = integers((2 * 16 * 12 * 16 + shift,), device, dtype)[shift:].view(shape)
    operand = integers((2 * 16 * 12 * 16 + 3,), device, dtype)[3:].view(shape)
    plan = make_plan("v1 = add(v0, b0)", y, [operand])
    assert torch.equal(run_plan(plan, y, [operand], shift=shift), y + operand)
    assert torch.equal(run_plan(plan, y, [operand]), y + operand)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_dag_keeps_four_values(dtype, device):
    text = (
        "v1 = mul(v0, 2.0); v2 = abs(v0); v3 = neg(v0); v4 = add(v1, v2); v5 = add(v4, v3); v6 = mul(v5, v0)"
    )
    torch.manual_seed(5)
    y = integers((2, 9, 11, 13), device, dtype)
    expected = Program(text).apply(y.double()).to(dtype)
    assert torch.equal(run_plan(make_plan(text, y), y), expected)
    assert torch.equal(run_plan(make_plan(text, y), y, in_place=True), expected)


def test_numbers_and_0d_tensors(device):
    torch.manual_seed(6)
    y = integers((2, 3, 8, 8), device)
    text = "v1 = minimum(v0, b0); v2 = div(v1, b1); v3 = clamp(v2, None, b2)"
    on_host = [torch.tensor(3), torch.tensor(0.5, dtype=torch.float64), torch.tensor(4.0)]
    expected = (y.clamp(max=3) / 0.5).clamp(max=4.0)
    assert torch.equal(run_plan(make_plan(text, y, on_host), y, on_host), expected)
    there = [b.to(device, torch.float32) for b in on_host]
    assert torch.equal(run_plan(make_plan(text, y, there), y, there), expected)


def test_result_does_not_depend_on_threads():
    torch.manual_seed(7)
    y = torch.randn(4, 16, 65, 67)
    weight = torch.randn(16)
    for text, operands in (("v1 = gelu(v0)", []), ("v1 = silu(v0); v2 = group_norm(v1, 4, b0)", [weight])):
        plan = make_plan(text, y, operands)
        one = run_plan(plan, y, operands, threads=1)
        for threads in (2, 3, 8):
            assert torch.equal(run_plan(plan, y, operands, threads=threads), one)


def test_empty_tensors(device):
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        y = torch.empty(shape, device=device)
        assert run_plan(make_plan("v1 = relu(v0)", y), y).shape == shape


def test_refusals(device):
    y = torch.zeros(2, 3, 4, 4, device=device)
    with pytest.raises(ValueError, match="does not broadcast"):
        make_plan("v1 = add(v0, b0)", y, [torch.zeros(3, device=device)])
    with pytest.raises(ValueError, match="overlap"):
        make_plan("v1 = relu(v0)", y, strides=(16, 16, 4, 1))
    with pytest.raises(ValueError, match="multiple of num_groups"):
        make_plan("v1 = group_norm(v0, 2)", y)


# ---- Static programs: those of the recipes, behind a bias.

STATIC = {
    "min add mul": ("v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)", 1),
    "relu add": ("v1 = relu(v0); v2 = add(v1, b0)", 1),
    "add clamp mul clamp div": (
        "v1 = add(v0, b0); v2 = clamp(v1, 0.0, 1.0); v3 = mul(v2, 2.0); v4 = clamp(v3, 0.0, 1.0); "
        "v5 = div(v4, 2.0)",
        1,
    ),
    "add mul sigmoid group_norm": (
        "v1 = add(v0, b0); v2 = mul(v1, b1); v3 = sigmoid(v2); v4 = group_norm(v3, 8, b2, b3)",
        4,
    ),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STATIC)
def test_static_and_interpreted_agree(name, dtype, layout):
    text, num_operands = STATIC[name]
    torch.manual_seed(8)
    shape = (3, 32, 29, 30)
    y = laid_out(torch.randn(shape, device="cuda").to(dtype), strides_of(shape, layout))
    bias = torch.randn(32, device="cuda").to(dtype)
    operands = [torch.randn(32, 1, 1, device="cuda").to(dtype) for _ in range(num_operands)]
    operands[2:] = [b.flatten() for b in operands[2:]]
    static = make_plan(text, y, operands, bias)
    # Of more than three dimensions that do not merge, the general kernel takes care.
    is_large = layout == "sliced" or (layout == "transposed" and "group_norm" in name)
    assert static.kernel.endswith("_f32_interpreted_large" if is_large else "_f32_static")
    # A multiplication by 1 more is another program with the same values.
    last = text.count(";") + 1
    interpreted = make_plan(f"{text}; v{last + 1} = mul(v{last}, 1.0)", y, operands, bias)
    assert interpreted.kernel.endswith("_f32_interpreted_large" if is_large else "_f32_interpreted_chain")
    a, b = run_plan(static, y, operands, bias), run_plan(interpreted, y, operands, bias)
    # The static evaluator fuses a product with the sum behind it, and so may round once less.
    torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


# ---- GroupNorm

# shape, groups
NORMS = {
    "recipe in small": ((3, 32, 30, 31), 8),
    "one group": ((2, 12, 9, 10), 1),
    "a group for each channel": ((2, 6, 17, 19), 6),
    "channels that fill no chunk": ((2, 15, 13, 14), 3),
    "more channels than a block takes": ((2, 600, 5, 7), 60),
    "two values in a group": ((5, 4, 1, 1), 2),
    "one pixel": ((2, 64, 1, 1), 4),
    "several tiles": ((2, 8, 100, 173), 2),
    "many tiles": ((1, 24, 301, 307), 3),
    "one spatial dimension": ((2, 10, 501), 5),
    "three spatial dimensions": ((2, 16, 5, 6, 7), 4),
}
NORM_TEXT = "v1 = mul(v0, b0); v2 = group_norm(v1, {groups}, b1, b2); v3 = leaky_relu(v2, 0.25)"


def norm_reference(y, operands, groups):
    v1 = y * operands[0]
    v2 = torch.nn.functional.group_norm(v1, groups, operands[1], operands[2])
    return torch.nn.functional.leaky_relu(v2, 0.25)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, groups", NORMS.values(), ids=NORMS)
def test_group_norm(shape, groups, layout, dtype, device):
    torch.manual_seed(9)
    y = laid_out(torch.randn(shape, device=device).to(dtype), strides_of(shape, layout))
    operands = [torch.randn(n, device=device).to(dtype) for n in (shape[1], shape[1], shape[1])]
    operands[0] = operands[0].view(-1, *[1] * (len(shape) - 2))
    text = NORM_TEXT.format(groups=groups)
    plan = make_plan(text, y, operands)
    assert plan.kernel.startswith(f"group_norm_{device}_")
    assert plan.workspace_bytes > 0 or device == "cpu"
    result = run_plan(plan, y, operands)
    assert torch.equal(run_plan(plan, y, operands, in_place=True), result)

    exact = norm_reference(y.double(), [b.double() for b in operands], groups)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    theirs = norm_reference(y.to(compute), [b.to(compute) for b in operands], groups)
    # In float64 both are the same computation; what is left is the rounding of its sums.
    floor = 4 * torch.finfo(torch.float32).eps if compute == torch.float32 else 1e-13
    allowed = 2 * (theirs - exact).abs().max() + floor * exact.abs().max()
    rounding = torch.finfo(dtype).eps / 2 * exact.abs() if dtype != compute else 0
    assert ((result.double() - exact).abs() <= allowed + rounding).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm_far_from_zero(layout, device):
    """Sums of squares would lose all digits here."""
    torch.manual_seed(10)
    shape = (2, 16, 64, 65)
    y = laid_out(torch.randn(shape, device=device) + 3000.0, strides_of(shape, layout))
    result = run_plan(make_plan("v1 = group_norm(v0, 4)", y), y)
    exact = torch.nn.functional.group_norm(y.double(), 4)
    # One rounding of the mean, 3000 * 2**-24, over a standard deviation of 1.
    assert (result.double() - exact).abs().max() < 4e-4


def test_group_norm_without_affine_and_with_values_around_it(device):
    torch.manual_seed(11)
    y = torch.randn(2, 12, 9, 11, device=device)
    text = "v1 = tanh(v0); v2 = group_norm(v1, 3, None, b0, eps=0.1); v3 = add(v2, v0); v4 = mul(v3, v1)"
    shift = torch.randn(12, device=device)
    x = y.double()
    expected = (torch.nn.functional.group_norm(x.tanh(), 3, None, shift.double(), 0.1) + x) * x.tanh()
    result = run_plan(make_plan(text, y, [shift]), y, [shift])
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm_of_nan_and_infinity_stays_in_its_group(layout, device):
    torch.manual_seed(12)
    shape = (2, 8, 33, 35)
    y = laid_out(torch.randn(shape, device=device), strides_of(shape, layout))
    y[0, 2, 3, 4] = float("nan")
    y[1, 7, 32, 34] = float("inf")
    result = run_plan(make_plan("v1 = group_norm(v0, 4)", y), y)
    expected = torch.nn.functional.group_norm(y.double(), 4)
    assert torch.equal(result.isnan(), expected.isnan())
    assert int(result.isnan().sum()) == 2 * 2 * 33 * 35
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_group_norm_is_deterministic():
    torch.manual_seed(13)
    y = torch.randn(4, 32, 127, 129, device="cuda")
    plan = make_plan("v1 = sigmoid(v0); v2 = group_norm(v1, 8)", y)
    first = run_plan(plan, y)
    for _ in range(5):
        assert torch.equal(run_plan(plan, y), first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("text", ["v1 = add(v0, b0)", "v1 = group_norm(v0, 11); v2 = add(v1, b0)"])
def test_more_than_2_31_elements(text):
    shape = (2, 33, 8192, 4096)  # 2.2e9 elements, 4.4 GB in bfloat16
    y = torch.empty(shape, device="cuda", dtype=torch.bfloat16).random_(-4, 5)
    b = integers((33, 1, 1), "cuda", torch.bfloat16)
    plan = make_plan(text, y, [b])
    assert plan.kernel.endswith("_f32_interpreted_large")
    result = torch.empty_like(y)
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    plan.run(y.data_ptr(), result.data_ptr(), 0, workspace.data_ptr(), 0, stream, 1, b.data_ptr())
    for sample in range(2):
        for group in range(0, 33, 3):
            part = y[sample, group : group + 3].float()
            if "group_norm" in text:
                part = (part - part.double().mean()) / (part.double().var(correction=0) + 1e-5).sqrt()
            expected = part + b[group : group + 3].float()
            found = result[sample, group : group + 3].double()
            # Half an ulp of bfloat16, and what float32 statistics leave.
            assert ((found - expected).abs() <= expected.abs() * 2**-8 + 1e-5).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_failed_launch_names_the_kernel():
    y = torch.zeros(2, 3, 4, 4, device="cuda")
    plan = make_plan("v1 = relu(v0)", y)
    with pytest.raises(_core.CudaError, match="cudaSetDevice"):
        plan.run(y.data_ptr(), y.data_ptr(), 0, 0, 4096, 0, 1)
    # The error does not stick.
    assert torch.equal(run_plan(plan, y), y)
