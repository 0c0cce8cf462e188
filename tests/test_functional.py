"""`fused_conv_epilogue` and `epilogue_pass`: values, dtypes, layouts, gradients."""

import contextlib
import os
import time

import pytest
import torch
import torch.nn.functional as F

import epiconv
from epiconv import functional, ops

FUSED = {"cpu": "cpu", "cuda": "cudnn+epilogue"}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
SPATIAL = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}


def integers(*shape, device="cpu", dtype=torch.float32):
    """Small integers: every sum of their products is exact in float32, whatever its order."""
    return torch.randint(-3, 4, shape, device=device).to(dtype)


def tensors(rank, device, dtype=torch.float32, make=integers):
    x = make(2, 4, *SPATIAL[rank], device=device, dtype=dtype)
    weight = make(6, 4, *(3,) * rank, device=device, dtype=dtype)
    bias = make(6, device=device, dtype=dtype)
    per_channel = make(6, *(1,) * rank, device=device, dtype=dtype)
    return x, weight, bias, per_channel


def chain(per_channel, residual):
    return [ops.add(per_channel), ops.relu(), ops.clamp(max=20.0), ops.sub(residual)]


def torch_chain(y, per_channel, residual):
    return torch.clamp(torch.relu(y + per_channel), max=20.0) - residual


def fused(*args, **kwargs):
    """The call, after a look at the plan: a result of another path would prove nothing."""
    if args[0].device.type == "cuda":
        kwargs["algorithm"] = "cudnn"  # test_implicit_gemm_gpu.py is about the other one
    assert epiconv.explain(*args, **kwargs).path == FUSED[args[0].device.type]
    return epiconv.fused_conv_epilogue(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_integers_are_exact(rank, dtype, device):
    x, weight, bias, per_channel = tensors(rank, device, dtype)
    y = CONV[rank](x.double(), weight.double(), bias.double())
    if dtype in (torch.float16, torch.bfloat16):
        x, y = x.clamp(-1, 1), None  # a convolution's output is rounded before the pass: keep it exact
        weight = weight.clamp(-1, 1)
        y = CONV[rank](x.double(), weight.double(), bias.double())
    residual = integers(*y.shape, device=device, dtype=dtype)
    expected = torch_chain(y, per_channel.double(), residual.double())
    got = fused(x, weight, bias, epilogue=chain(per_channel, residual))
    assert got.dtype == dtype
    assert torch.equal(got.double(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_values_are_as_good_as_torch_s(dtype, device):
    torch.manual_seed(0)
    x, weight, bias, per_channel = tensors(2, device, dtype, lambda *s, **k: torch.randn(s, **k))
    epilogue = [ops.gelu(), ops.add(per_channel), ops.sigmoid()]

    def reference(x, weight, bias, per_channel):
        return torch.sigmoid(F.gelu(F.conv2d(x, weight, bias)) + per_channel)

    expected = reference(*[t.double() for t in (x, weight, bias, per_channel)])
    theirs = (reference(x, weight, bias, per_channel).double() - expected).abs().max()
    ours = (fused(x, weight, bias, epilogue=epilogue).double() - expected).abs().max()
    rounding = torch.finfo(dtype).eps / 2 * expected.abs().max()
    assert ours <= 2 * theirs + rounding


@pytest.mark.parametrize("padding", ["valid", "same", 1, [2, 1], (0, 2)], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding(padding, mode):
    # An even filter: "same" pads more at the end than in front.
    module = torch.nn.Conv2d(
        4, 6, (3, 4), padding=tuple(padding) if isinstance(padding, list) else padding, padding_mode=mode
    )
    x = integers(2, 4, 7, 6)
    with torch.no_grad():
        module.weight.copy_(integers(6, 4, 3, 4))
        module.bias.copy_(integers(6))
        got = fused(x, module.weight, module.bias, padding=padding, padding_mode=mode, epilogue=[ops.relu()])
        assert torch.equal(got, module(x).relu())


def test_unbatched_input_keeps_its_channels(device):
    x, weight, bias, _ = tensors(2, device)
    per_channel = integers(6, 1, 1, device=device)
    slope = integers(6, device=device)
    epilogue = [ops.add(per_channel), ops.prelu(slope), ops.group_norm(3)]
    got = fused(x[0], weight, bias, epilogue=epilogue)
    expected = fused(x[:1], weight, bias, epilogue=epilogue)[0]
    assert got.shape == expected.shape
    assert torch.equal(got, expected)
    with_grad = epiconv.fused_conv_epilogue(x[0], weight.requires_grad_(), bias, epilogue=epilogue)
    torch.testing.assert_close(with_grad, expected)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("residual_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("weight_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("input_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("wanted", [None, *LAYOUTS], ids=str)
def test_layout_of_the_result(wanted, input_layout, weight_layout, residual_layout, device):
    x, weight, bias, _ = tensors(2, device)
    x, weight = x.to(memory_format=input_layout), weight.to(memory_format=weight_layout)
    residual = integers(2, 6, 5, 4, device=device).to(memory_format=residual_layout)
    got = fused(x, weight, bias, memory_format=wanted, epilogue=[ops.add(residual)])
    by_torch = torch.channels_last if torch.channels_last in (input_layout, weight_layout) else LAYOUTS[0]
    layout = wanted or by_torch
    assert got.stride() == torch.empty_like(got, memory_format=layout).stride()
    assert torch.equal(got, F.conv2d(x, weight, bias) + residual)
    if wanted is None:
        assert got.stride() == F.conv2d(x, weight, bias).stride()
    with_grad = epiconv.fused_conv_epilogue(
        x.requires_grad_(), weight, bias, memory_format=wanted, epilogue=[ops.add(residual)]
    )
    assert with_grad.stride() == got.stride()


# One channel, one pixel, one row: strides that could be read in two ways.
@pytest.mark.parametrize(
    "shape", [(2, 1, 5, 5), (2, 4, 1, 1), (1, 1, 5, 5), (2, 1, 1, 5), (2, 1, 5, 1), (3, 1, 1, 1)]
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ambiguous_strides_are_read_as_torch_reads_them(shape, layout):
    x = integers(*shape).contiguous(memory_format=layout)
    x = x.as_strided(shape, torch.empty(shape, memory_format=layout).stride())
    weight = integers(2, shape[1], 1, 1).as_strided((2, shape[1], 1, 1), (shape[1], 1, 1, 1))
    got = fused(x, weight, epilogue=[ops.relu()])
    assert torch.equal(got, F.conv2d(x, weight).relu())
    assert got.stride() == F.conv2d(x, weight).stride()


def test_three_dimensions_in_channels_last(device):
    x, weight, bias, _ = tensors(3, device)
    got = fused(x.to(memory_format=torch.channels_last_3d), weight, bias, epilogue=[ops.relu()])
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(got, F.conv3d(x, weight, bias).relu())


def test_any_strides(device):
    wide = integers(4, 8, 9, 14, device=device)
    weight = integers(6, 8, 3, 3, device=device)[:, ::2].transpose(2, 3)
    bias = integers(12, device=device)[::2]
    residual = integers(4, 6, 7, 1, device=device).expand(4, 6, 7, 5)
    for x in (wide[:, ::2, :, ::2], wide[:, 4:, :, :7].flip(0), wide[:1, :4, :, :7].expand(4, -1, -1, -1)):
        got = fused(x, weight, bias, epilogue=[ops.relu(), ops.add(residual)])
        assert torch.equal(got, F.conv2d(x, weight, bias).relu() + residual)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_empty_batch(dtype, device):
    x, weight, bias, per_channel = tensors(2, device)
    got = fused(x[:0], weight, bias, epilogue=[ops.add(per_channel), ops.group_norm(2)], dtype=dtype)
    assert got.shape == (0, 6, 5, 4)
    assert got.dtype == (dtype or torch.float32)


def test_dtype_is_torch_s_promotion_unless_given(device):
    x, weight, bias, _ = tensors(2, device, torch.bfloat16)
    scale = integers(6, 1, 1, device=device)  # float32
    number = torch.tensor(2.0, device=device)  # 0-d: does not promote
    assert fused(x, weight, bias, epilogue=[ops.mul(number)]).dtype == torch.bfloat16
    promoted = fused(x, weight, bias, epilogue=[ops.mul(scale)])
    assert promoted.dtype == torch.float32
    assert torch.equal(promoted, F.conv2d(x, weight).float().add(bias.view(-1, 1, 1)) * scale)
    given = fused(x, weight, bias, epilogue=[ops.mul(scale)], dtype=torch.float16)
    assert given.dtype == torch.float16
    assert torch.equal(given, promoted.half())


def test_default_dtype_counts_at_each_call():
    x, weight, _, _ = tensors(2, "cpu")
    program = epiconv.Program("v1 = lt(v0, 0.0); v2 = where(v1, 1.0, 2.0)")
    expected = torch.where(F.conv2d(x, weight) < 0, 1.0, 2.0)
    assert torch.equal(fused(x, weight, epilogue=program), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert fused(x, weight, epilogue=program).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_numbers_on_the_host_and_on_the_device(device):
    x, weight, _, _ = tensors(2, device)
    y = F.conv2d(x, weight)
    number = torch.tensor(3.0, dtype=torch.float64)  # on the CPU, read at each call
    on_device = torch.tensor(2.0, device=device)
    epilogue = [ops.minimum(number), ops.mul(on_device)]
    assert torch.equal(fused(x, weight, epilogue=epilogue), torch.clamp(y, max=3.0) * 2.0)
    number.fill_(-1.0)
    on_device.fill_(4.0)
    assert torch.equal(fused(x, weight, epilogue=epilogue), torch.clamp(y, max=-1.0) * 4.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64], ids=str)
def test_integer_operands(dtype, device):
    x, weight, _, _ = tensors(2, device)
    operand = torch.randint(0, 2, (6, 1, 1), device=device).to(dtype)
    expected = F.conv2d(x, weight) * operand
    assert torch.equal(fused(x, weight, epilogue=[ops.mul(operand)]), expected)
    number = torch.tensor(1, dtype=dtype)
    assert torch.equal(fused(x, weight, epilogue=[ops.mul(number)]), F.conv2d(x, weight) * number.to(device))


def test_lazily_negated_operand():
    x, weight, bias, _ = tensors(2, "cpu")
    negated = torch.complex(integers(6, 1, 1), integers(6, 1, 1)).conj().imag
    assert negated.is_neg()
    got = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.add(negated)])
    assert torch.equal(got, F.conv2d(x, weight, bias) + negated)
    plain = negated.resolve_neg().clone()  # the same form but for the bit
    assert torch.equal(epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.add(plain)]), got)


def test_nan_is_kept(device):
    x, weight, _, _ = tensors(2, device)
    x[0, 0, 0, 0] = float("nan")
    got = fused(x, weight, epilogue=[ops.relu(), ops.clamp(0.0, 1.0)])
    assert torch.equal(got.isnan(), F.conv2d(x, weight).isnan())
    assert got.isnan().any()


def test_precision_on_the_cpu():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3)

    def rounded(tensor, precision):
        if precision in ("bf16", "fp16"):
            return tensor.to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision]).double()
        if precision == "ieee":
            return tensor.double()
        scale = torch.exp2(tensor.abs().log2().floor() - 10).double()  # an ulp of a 10-bit mantissa
        return (tensor.double() / scale).round() * scale

    for precision in ("ieee", "tf32", "bf16", "fp16"):
        got = fused(x, weight, precision=precision, epilogue=[ops.relu()])
        expected = F.conv2d(rounded(x, precision), rounded(weight, precision)).relu()
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16", "fp16", None])
@pytest.mark.parametrize("setting", ["ieee", "tf32"])
def test_precision_on_the_card(setting, precision, cuda):
    x, weight = torch.ones(1, 64, 8, 8, device=cuda), torch.ones(64, 64, 1, 1, device=cuda)
    x += 2.0**-9  # bf16 loses it, TF32 and float16 keep it
    weight += 2.0**-12  # float16 and TF32 lose it
    kept = {"ieee": (1, 1), "tf32": (1, 0), "fp16": (1, 0), "bf16": (0, 0)}[precision or setting]
    expected = 64 * (1 + kept[0] * 2.0**-9) * (1 + kept[1] * 2.0**-12)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = setting
    try:
        got = fused(x, weight, precision=precision)
        assert torch.backends.cudnn.conv.fp32_precision == setting
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    torch.testing.assert_close(got, torch.full_like(got, expected), rtol=1e-6, atol=0)


def test_gradients_of_every_tensor():
    torch.manual_seed(0)
    made = [(2, 4, 5, 5), (6, 2, 3, 3), (6,), (6, 1, 1), (2, 6, 3, 3), (6,), (6,), ()]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in made]

    def function(x, weight, bias, per_channel, residual, gamma, beta, number):
        epilogue = [ops.add(per_channel), ops.silu(), ops.add(residual)]
        epilogue += [ops.group_norm(3, gamma, beta), ops.mul(number)]
        return epiconv.fused_conv_epilogue(x, weight, bias, groups=2, epilogue=epilogue)

    assert torch.autograd.gradcheck(function, inputs)
    with torch.no_grad():
        torch.testing.assert_close(function(*inputs), function(*inputs).detach())
        x, weight, bias, per_channel, residual, gamma, beta, number = inputs
        y = F.silu(F.conv2d(x, weight, bias, groups=2) + per_channel) + residual
        torch.testing.assert_close(function(*inputs), F.group_norm(y, 3, gamma, beta) * number)


def test_gradients_of_a_transposed_convolution():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    words = {"stride": 2, "padding": (1, 0), "output_padding": 1, "groups": 2, "dilation": 1}

    def function(x, weight):
        return epiconv.fused_conv_epilogue(x, weight, transposed=True, epilogue=[ops.tanh()], **words)

    assert torch.autograd.gradcheck(function, [x, weight])
    expected = F.conv_transpose2d(x, weight, **words).tanh()
    torch.testing.assert_close(function(x, weight), expected)


@pytest.mark.parametrize("which", range(4))
def test_one_tensor_that_requires_grad_is_enough(which, device):
    made = list(tensors(2, device))
    made[which].requires_grad_()
    x, weight, bias, per_channel = made
    epilogue = [ops.relu(), ops.mul(per_channel)]
    path = "cpu" if device.type == "cpu" else "torch"
    assert epiconv.explain(x, weight, bias, epilogue=epilogue).path == path
    got = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue)
    expected = F.conv2d(x, weight, bias).relu() * per_channel
    assert torch.equal(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), made[which])
    (theirs,) = torch.autograd.grad(expected.sum(), made[which])
    torch.testing.assert_close(gradient, theirs)
    with torch.no_grad():
        got = fused(x, weight, bias, epilogue=epilogue)
    assert not got.requires_grad
    assert torch.equal(got, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_grad(mode):
    x, weight, bias, _ = tensors(2, "cpu")
    with mode():
        got = fused(x, weight.requires_grad_(), bias, epilogue=[ops.relu()])
    assert got.is_inference() == (mode is torch.inference_mode)
    assert torch.equal(got, F.conv2d(x, weight, bias).relu())


GROUP_NORMS = [
    # output (N, K, P, Q), groups: one value per group, then what differs from that in one respect
    ((1, 4, 1, 1), 4),
    ((2, 4, 1, 1), 4),
    ((1, 4, 1, 2), 4),
    ((1, 4, 1, 1), 2),
    ((1, 1, 1, 1), 1),
    ((0, 4, 1, 1), 4),
]


@pytest.mark.parametrize(("shape", "groups"), GROUP_NORMS)
def test_group_norm_is_refused_where_torch_refuses_it(shape, groups):
    x, weight = torch.randn(shape[0], 3, *shape[2:]), torch.randn(shape[1], 3, 1, 1)
    y = F.conv2d(x, weight)
    try:
        expected = F.group_norm(y, groups)
    except ValueError:
        for tensor in (weight, weight.clone().requires_grad_()):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                epiconv.fused_conv_epilogue(x, tensor, epilogue=[ops.group_norm(groups)])
    else:
        torch.testing.assert_close(fused(x, weight, epilogue=[ops.group_norm(groups)]), expected)


def test_autocast_casts_what_torch_s_convolution_casts(device):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3), torch.randn(6)
    x, weight, bias = x.to(device), weight.to(device), bias.to(device, torch.bfloat16)
    scale = torch.randn(6, 1, 1, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = F.conv2d(x, weight, bias)
        for epilogue, expected in (([ops.relu()], y.relu()), ([ops.mul(scale)], y * scale)):
            got = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue)
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-7)
            assert epiconv.explain(x, weight, bias, epilogue=epilogue).dtype == expected.dtype
        doubles = epiconv.fused_conv_epilogue(x.double(), weight.double(), epilogue=[ops.relu()])
        assert doubles.dtype == torch.float64
    assert epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.relu()]).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_epilogue_pass_works_in_place(layout, device):
    y = integers(2, 6, 5, 4, device=device).to(memory_format=layout)
    bias, residual = integers(6, device=device), integers(2, 6, 5, 4, device=device)
    expected = torch.relu(y + bias.view(-1, 1, 1)) - residual
    strides = y.stride()
    got = functional.epilogue_pass(y, [ops.relu(), ops.sub(residual)], bias)
    assert got is y
    assert got.stride() == strides
    assert torch.equal(got, expected)


def test_epilogue_pass_counts_as_a_write():
    y, weight = integers(2, 6, 5, 4), integers(2, 6, 5, 4).requires_grad_()
    product = y * weight  # saves y
    with torch.no_grad():
        functional.epilogue_pass(y, [ops.relu()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        functional.epilogue_pass(integers(2, 6, 5, 4), [ops.relu()])


def test_epilogue_pass_refuses():
    y = torch.zeros(2, 6, 5, 4)
    with pytest.raises(RuntimeError, match="no gradient"):
        functional.epilogue_pass(y.clone().requires_grad_(), [ops.relu()])
    with pytest.raises(ValueError, match="overlap"):
        functional.epilogue_pass(torch.zeros(6, 5, 4).expand(2, -1, -1, -1), [ops.relu()])
    with pytest.raises(ValueError, match=r"\(6,\)"):
        functional.epilogue_pass(y, None, torch.zeros(5))
    with pytest.raises(ValueError, match="does not broadcast"):
        functional.epilogue_pass(y, [ops.add(torch.zeros(5, 1, 1))])
    with pytest.raises(ValueError, match="dimensions"):
        functional.epilogue_pass(torch.zeros(2, 6), None)
    with pytest.raises(TypeError, match="int64"):
        functional.epilogue_pass(y.long(), None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_pass_runs_in_a_forked_process():
    # Large enough for several threads, in the parent and in the child.
    y, again = integers(1, 8, 128, 256), None
    again = y.clone()
    residual = integers(1, 8, 128, 256)
    functional.epilogue_pass(y, [ops.relu(), ops.add(residual)])
    expected = y.numpy().tobytes()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            functional.epilogue_pass(again, [ops.relu(), ops.add(residual)])
            code = 0 if again.numpy().tobytes() == expected else 2
        os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_a_build_without_kernels_runs_plain_torch_and_warns_once(monkeypatch):
    from epiconv import call, fallback

    reason = "this build of epiconv has no CUDA kernels: put nvcc on PATH and build again"
    monkeypatch.setattr(call, "why_not_fused", lambda device: reason)
    fallback.warn_not_fused.cache_clear()
    x, weight, bias = integers(3, 4, 11, 11), integers(6, 4, 3, 3), integers(6)
    plan = epiconv.explain(x, weight, bias, epilogue=[ops.relu()])
    assert plan.path == "torch"
    assert ("cpu", reason) in plan.refused
    with pytest.warns(RuntimeWarning, match="nvcc on PATH") as warned:
        for _ in range(3):
            got = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.relu()])
    assert len(warned) == 1
    assert torch.equal(got, F.conv2d(x, weight, bias).relu())


@pytest.mark.parametrize(
    ("driver", "card", "words"),
    [
        ("the NVIDIA driver supports CUDA 11.8", "", "11.8"),
        ("", "the card has compute capability 7.0", "7.0"),
    ],
)
def test_an_old_driver_or_card_is_a_reason(driver, card, words, monkeypatch):
    from epiconv import _core, fallback

    monkeypatch.setattr(_core, "why_not_on_driver", lambda version: driver)
    monkeypatch.setattr(_core, "why_not_on_card", lambda major, minor: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    fallback.why_not_fused.cache_clear()
    try:
        assert words in fallback.why_not_fused(torch.device("cuda", 0))
    finally:
        fallback.why_not_fused.cache_clear()
