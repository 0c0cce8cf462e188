"""The same bits for an image whatever the batch: the setting, what it plans, and results on CPU and card."""

import pytest
import torch
from card_convolutions import force
from plan_problems import core_arguments

import epiconv
from epiconv import _core, nn, ops
from epiconv.bench.problems import Problem
from epiconv.program import Program


@pytest.fixture(autouse=True)
def enabled():
    """The setting, which is off again behind the test."""
    assert not epiconv.are_batch_invariant_algorithms_enabled()
    epiconv.use_batch_invariant_algorithms(True)
    yield
    epiconv.use_batch_invariant_algorithms(False)


def test_the_setting():
    assert epiconv.are_batch_invariant_algorithms_enabled() is True
    epiconv.use_batch_invariant_algorithms(False)
    assert epiconv.are_batch_invariant_algorithms_enabled() is False
    with pytest.raises(TypeError, match="mode is True or False, not 1"):
        epiconv.use_batch_invariant_algorithms(1)


# By name: shape of a few images, shape of the weight, more arguments.
CASES = {
    "3x3": ((7, 16, 9, 11), (24, 16, 3, 3), {"padding": 1}),
    "few tiles": ((5, 256, 7, 7), (64, 256, 3, 3), {"padding": 1}),
    "1x1": ((9, 64, 16, 16), (96, 64, 1, 1), {}),
    "stride 2": ((3, 20, 17, 16), (40, 20, 3, 3), {"padding": 1, "stride": 2}),
    "odd images": ((6, 30, 7, 9), (40, 30, 3, 3), {"padding": 1}),  # which begin at 4 bytes, or at 2
    "groups": ((4, 128, 8, 8), (64, 64, 3, 3), {"padding": 1, "groups": 2}),
    "1-d": ((6, 24, 70), (32, 24, 5), {"dilation": 2}),
    "3-d": ((3, 16, 5, 6, 7), (24, 16, 3, 3, 3), {"padding": 1}),
    "transposed": ((6, 32, 8, 8), (32, 24, 4, 4), {"transposed": True, "stride": 2, "padding": 1}),
}


def tensors(name, device, dtype=torch.float32, last=False):
    """Input, weight, a residual and a number of each image and filter, by a seed of the name's."""
    shape, weight_shape, arguments = CASES[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    x, weight = (torch.randn(s, generator=generator) for s in (shape, weight_shape))
    y = epiconv.fused_conv_epilogue(x, weight, **arguments)
    residual, scale = (
        torch.randn(s, generator=generator) for s in (y.shape, (*y.shape[:2], 1, 1, 1)[: y.dim()])
    )
    moved = [tensor.to(device, dtype) for tensor in (x, weight, residual, scale)]
    if last and len(shape) == 4:
        moved[0], moved[2] = (t.contiguous(memory_format=torch.channels_last) for t in (moved[0], moved[2]))
    return *moved, arguments


def results(name, device, norm=False, **types):
    """Of all images at once, and of parts of them, which may begin at any address."""
    x, weight, residual, scale, arguments = tensors(name, device, **types)

    def of(images):
        epilogue = [ops.add(residual[images]), ops.mul(scale[images]), ops.silu()]
        if norm:
            epilogue.append(ops.group_norm(4))
        return epiconv.fused_conv_epilogue(x[images], weight, epilogue=epilogue, **arguments)

    count = x.shape[0]
    parts = [slice(i, i + 1) for i in range(count)] + [slice(1, count), slice(0, count // 2 + 1)]
    return of(slice(None)), [(part, of(part)) for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("name", CASES)
def test_bits_on_the_cpu(name, norm, dtype):
    whole, parts = results(name, "cpu", norm, dtype=dtype)
    for images, part in parts:
        assert torch.equal(whole[images], part)


@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus", "elu", "mish", "logsigmoid"])
def test_bits_of_functions_with_vector_versions(name):
    """Images of an odd number of elements, so that each begins elsewhere in the processor's vectors."""
    x = torch.randn(9, 3, 7, 5)
    weight = torch.randn(5, 3, 1, 1)
    epilogue = [getattr(ops, name)(), ops.group_norm(5)]
    for steps in (epilogue[:1], epilogue):
        whole = epiconv.fused_conv_epilogue(x, weight, epilogue=steps)
        for i in range(9):
            assert torch.equal(
                whole[i : i + 1], epiconv.fused_conv_epilogue(x[i : i + 1], weight, epilogue=steps)
            )


def test_each_image_is_convolved_alone(monkeypatch):
    """Also for a gradient, and for a module."""
    batches = []
    original = torch.conv2d

    def conv2d(x, *arguments):
        batches.append(x.shape[0])
        return original(x, *arguments)

    monkeypatch.setattr(epiconv.convolution, "CONVOLUTIONS", (torch.conv1d, conv2d, torch.conv3d))
    x, weight = torch.randn(3, 4, 5, 5), torch.randn(6, 4, 3, 3, requires_grad=True)
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.relu()])
    y.sum().backward()
    assert batches == [1, 1, 1]
    epiconv.use_batch_invariant_algorithms(False)
    wanted = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.relu()])
    assert batches == [1, 1, 1, 3]
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(weight.grad, torch.autograd.grad(wanted.sum(), weight)[0])
    batches.clear()
    epiconv.use_batch_invariant_algorithms(True)
    with torch.no_grad():
        assert nn.FusedConv2d(4, 6, 3)(x[:0]).shape == (0, 6, 3, 3)
        assert epiconv.fused_conv_epilogue(x[0], weight).shape == (6, 3, 3)


def test_vmap_is_refused():
    x, weight = torch.randn(3, 2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    over = torch.vmap(lambda image: epiconv.fused_conv_epilogue(image, weight))
    with pytest.raises(NotImplementedError, match="put them into one batch, or call for each alone"):
        over(x)
    epiconv.use_batch_invariant_algorithms(False)
    assert over(x).shape == (3, 2, 6, 3, 3)


def test_explain_says_so():
    x, weight = torch.randn(3, 4, 5, 5), torch.randn(6, 4, 3, 3)
    why = "batch-invariant algorithms are asked for: torch's convolution is called for each image alone"
    assert epiconv.explain(x, weight).why == why
    epiconv.use_batch_invariant_algorithms(False)
    assert epiconv.explain(x, weight).why == ""


def test_what_is_planned(core, monkeypatch):
    """Nothing is measured; families are tried in one order; a plan made before the setting is not used."""
    monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: True)
    monkeypatch.setattr(epiconv.search, "is_possible", lambda device: pytest.fail("asked"))
    refused = {"sm90_im2col"}
    core.refuse = lambda plan: "not by these" if plan.family in refused else ""
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    epiconv.fused_conv_epilogue(x, weight)
    assert [(plan.family, plan.compile, plan.is_batch_invariant) for plan in core.plans[-2:]] == [
        ("sm90_im2col", "always", True),
        ("sm90_compiled", "always", True),
    ]
    core.refuse = lambda plan: "the batch is too large for the kernel's 32-bit index arithmetic"
    with pytest.raises(NotImplementedError, match="32-bit index arithmetic: call with parts of the batch"):
        epiconv.fused_conv_epilogue(x[:, :, :4], weight)


def same_convolution(shape, weight):
    ones = (1, 1)
    return _core.ConvProblem(shape, weight, None, ones, ones, ones, ones, 1, False, (0, 0))


@pytest.mark.parametrize("family", ["sm80", "sm90_im2col", "sm90_compiled"])
def test_plans_of_kernels(family, nvrtc):
    """Kernels of few tiles are the same for every batch, which they are not without the setting."""

    def kernels(batch_invariant):
        found = set()
        for batch in (1, 2, 30):
            conv = same_convolution((batch, 512, 7, 7), (512, 512, 3, 3))
            shape = (512 * 49, 1, 512 * 7, 512)
            plan = _core.make_conv_plan(
                *(conv, "bf16", "bfloat16", shape, 16, "zeros", Program().core, None, [], "bfloat16", shape),
                *((9, 0), family, "never" if family == "sm80" else "always", batch_invariant),
            )
            found.add(plan.kernel)
            assert ("planned as for any batch" in plan.why_kernel) == batch_invariant
        return found

    assert len(kernels(True)) == 1
    assert len(kernels(False)) > 1


FORMS = {  # channels, extent, filters, and form: rows and images of 16 bytes or not
    "aligned": (64, 16, 96, ("fp32", "nchw")),
    "odd images": (24, 7, 40, ("bf16", "nchw")),
}


@pytest.mark.parametrize("family", ["sm80", "sm90_im2col", "sm90_compiled"])
@pytest.mark.parametrize("name", FORMS)
def test_plans_do_not_depend_on_the_batch(name, family, nvrtc):
    """Nor on what a batch of one image does not tell: whether an operand is of an image or of all."""
    channels, extent, filters, form = FORMS[name]
    plans = set()
    for batch in (1, 7):
        for of_image in {1, batch}:
            problem = Problem(
                *("conv", "", "conv2d", (batch, channels, extent, extent), filters, (3, 3)),
                "v1 = mul(v0, b0); v2 = add(v1, b1); v3 = silu(v2)",
                operands=((of_image, filters, 1, 1), (of_image, filters, extent, extent)),
                padding=1,
            )
            plan = _core.make_conv_plan(
                *core_arguments(problem, *form),
                *(family, "never" if family == "sm80" else "always", True),
            )
            plans.add((plan.kernel, plan.weight_format))
    ((kernel, _),) = plans
    assert kernel.startswith(("fprop_sm80_", "fprop_sm90_"))


def test_alignment_and_gaps(core):
    """The plan is for what each image's address divides by; others, and images with gaps, are copied."""
    weight = torch.randn(6, 3, 3, 3)
    odd = torch.randn(5, 3, 7, 9)  # 189 elements, 4 bytes each
    for x, copied in ((odd, False), (odd[3:4], False), (odd[1:], False), (odd[:, :, 1:], True)):
        expected = torch.nn.functional.conv2d(x.float(), weight)
        torch.testing.assert_close(epiconv.fused_conv_epilogue(x, weight), expected, rtol=1e-2, atol=1e-2)
        plan = core.runs[-1][0]
        assert plan.input_alignment == (8 if copied else 4)  # 162 or 189 elements of 4 bytes
        assert (plan.input_strides == x.stride()) is not copied
    even = torch.randn(4 * 3 * 8 * 8 + 1)
    moved = even[1:].view(4, 3, 8, 8)  # at an odd address, unlike any image of a batch
    epiconv.fused_conv_epilogue(moved, weight)
    assert core.runs[-1][0].input_alignment == 16


def test_what_is_left_out(nvrtc):
    strides = (64 * 256, 256, 16, 1)
    plan = _core.make_conv_plan(
        *(
            same_convolution((2, 64, 16, 16), (64, 64, 3, 3)),
            "tf32",
            "float32",
            strides,
            16,
            "zeros",
            Program().core,
            None,
            [],
        ),
        *("float32", strides, (9, 0), "sm90", "never", True),
    )
    assert plan == "they choose tiles by the batch, and the result is to be the same for every batch"


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sm80", "sm90_compiled", "sm90_im2col", "cudnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_bits_on_the_card(name, last, dtype, family, hopper, monkeypatch):
    if family != "cudnn":
        force(monkeypatch, family)
        monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: family != "sm80")
    else:
        monkeypatch.setattr(epiconv.call, "why_not_computed", lambda dtype, arguments: "not by these")
    whole, parts = results(name, hopper, norm=family in ("sm80", "cudnn"), dtype=dtype, last=last)
    for images, part in parts:
        assert torch.equal(whole[images], part)
