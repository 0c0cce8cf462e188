"""Training on the CPU as autograd, modules, compilers and torch's checks of operators see it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from training_cases import EPILOGUES, SAVES, Kept, Masks, one_thread, tensors  # noqa: F401 - a fixture

import epiconv
from epiconv import nn, ops


def test_a_result_that_no_gradient_reaches():
    """As in torch, it does not require grad, and what is only compared has none."""
    x, weight, bound, value = tensors((1, 2, 4, 4), (3, 2, 2, 2), (3, 1, 1), (3, 1, 1))
    program = epiconv.Program("v1 = gt(v0, b0); v2 = where(v1, b1, 0.5)")
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=program(bound, value))
    y.sum().backward()
    assert x.grad is weight.grad is bound.grad is None and value.grad is not None
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=program(bound, value.detach()))
    assert not y.requires_grad
    with Masks():  # by way of the dispatcher
        assert not epiconv.fused_conv_epilogue(
            x, weight, epilogue=program(bound, value.detach())
        ).requires_grad


def test_grad_modes():
    x, weight = tensors((1, 2, 4, 4), (3, 2, 2, 2))
    call = lambda: epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.gelu()])  # noqa: E731
    assert call().requires_grad
    with torch.no_grad():
        assert not call().requires_grad
    with torch.inference_mode():
        assert call().is_inference()
    assert torch.equal(call(), call().detach())


def test_the_graph_may_be_kept():
    x, weight = tensors((1, 2, 4, 4), (3, 2, 2, 2))
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.gelu()]).sum()
    first = torch.autograd.grad(y, [x, weight], retain_graph=True)
    second = torch.autograd.grad(y, [x, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, [x, weight])


def test_hooks_on_saved_tensors():
    """What they give back may lie in another layout."""
    made = tensors((2, 4, 7, 6), (6, 4, 3, 3), (2, 6, 5, 4))

    def differentiate():
        y = epiconv.fused_conv_epilogue(made[0], made[1], epilogue=[ops.mul(made[2]), ops.group_norm(3)])
        return torch.autograd.grad(y.square().sum(), made)

    expected = differentiate()

    def unpack(bytes_and_shape):
        return pickle.loads(bytes_and_shape).transpose(-1, -2).contiguous().transpose(-1, -2)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: pickle.dumps(t.detach()), unpack):
        torch.testing.assert_close(differentiate(), expected)
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(differentiate(), expected)


@pytest.mark.parametrize("which", ["x", "weight", "bias", "scale"])
def test_a_write_to_what_is_kept_is_found(which):
    names = ("x", "weight", "bias", "scale")
    made = dict(zip(names, tensors((2, 4, 7, 6), (6, 4, 3, 3), (6,), (6, 1, 1)), strict=True))
    x, weight, bias, scale = made.values()
    y = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.mul(scale), ops.gelu()])
    with torch.no_grad():
        made[which].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_write_to_the_result():
    """It counts where the result is kept, as behind torch's relu, and nowhere else."""
    x, weight = tensors((2, 4, 7, 6), (6, 4, 3, 3))
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.relu()])
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    for epilogue in ([ops.gelu()], [ops.mul(3.0)]):
        y = epiconv.fused_conv_epilogue(x, weight, epilogue=epilogue)
        y.mul_(2.0)
        y.sum().backward()


def test_a_number_that_wants_a_gradient():
    x, weight = tensors((2, 4, 7, 6), (6, 4, 3, 3))
    number = torch.tensor(0.5, requires_grad=True)
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.mul(number), ops.tanh()])
    y.sum().backward()
    expected = torch.tanh(F.conv2d(x, weight) * number).sum()
    torch.testing.assert_close(number.grad, torch.autograd.grad(expected, number)[0])
    assert number.grad.shape == () and number.grad.dtype == torch.float32


def test_one_tensor_given_twice():
    (x, weight) = tensors((2, 6, 5, 4), (6, 6, 1, 1))
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.mul(x), ops.tanh(), ops.add(x)])
    expected = torch.tanh(F.conv2d(x, weight) * x) + x
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), [x, weight]), torch.autograd.grad(expected.sum(), [x, weight])
    )


@pytest.mark.parametrize(
    "epilogue",
    [
        lambda s, r: [ops.tanh(), ops.mul(s)],
        lambda s, r: [ops.mul(s), ops.add(r)],  # of which r is not kept
        lambda s, r: [ops.group_norm(3), ops.mul(s)],
    ],
)
def test_second_derivatives(epilogue):
    made = tensors((1, 3, 4, 4), (3, 3, 2, 2), (3,), (3, 1, 1), (1, 3, 3, 3))

    def function(x, weight, bias, scale, residual):
        return epiconv.fused_conv_epilogue(x, weight, bias, epilogue=epilogue(scale, residual))

    assert torch.autograd.gradgradcheck(function, made)


def test_second_derivatives_of_one_tensor_given_twice():
    (x, weight) = tensors((1, 2, 3, 3), (2, 2, 1, 1))

    def function(x, weight):
        return epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.mul(x), ops.tanh()])

    assert torch.autograd.gradgradcheck(function, [x, weight])


def test_batches_of_gradients():
    x, weight, scale = tensors((1, 2, 4, 4), (3, 2, 2, 2), (3, 1, 1))
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.mul(scale), ops.gelu()])
    batch = torch.randn(5, *y.shape, dtype=y.dtype)
    got = torch.autograd.grad(y, [x, weight, scale], batch, is_grads_batched=True, retain_graph=True)
    for i, gradient in enumerate(batch):
        single = torch.autograd.grad(y, [x, weight, scale], gradient, retain_graph=True)
        torch.testing.assert_close([each[i] for each in got], list(single))


def test_an_empty_batch():
    x, weight, bias = tensors((0, 4, 7, 6), (6, 4, 3, 3), (6,))
    for mode in (torch.enable_grad(), Masks()):
        with mode:
            y = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.gelu()])
        got = torch.autograd.grad(y.sum(), [x, weight, bias])
        assert [each.shape for each in got] == [x.shape, weight.shape, bias.shape]
        assert not got[1].any() and not got[2].any()


def test_autocast():
    x, weight, bias = tensors((2, 4, 7, 6), (6, 4, 3, 3), (6,), dtype=torch.float32)
    for save in SAVES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.gelu()], save=save)
            assert y.dtype == torch.bfloat16
            inside = torch.autograd.grad(y.sum(), [x, weight, bias], retain_graph=True)
        outside = torch.autograd.grad(y.sum(), [x, weight, bias])
        expected = torch.autograd.grad(F.gelu(F.conv2d(x, weight, bias)).sum(), [x, weight, bias])
        for a, b, c in zip(inside, outside, expected, strict=True):
            assert a.dtype == torch.float32 and torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=0.05, atol=0.05 * float(c.abs().max()))  # of bfloat16


@pytest.mark.parametrize("save", SAVES)
def test_modules(save):
    torch.manual_seed(0)
    ours = nn.FusedConv2d(4, 6, 3, epilogue=[ops.gelu()], save=save).double()
    twin = copy.deepcopy(ours)
    assert twin.save == save and pickle.loads(pickle.dumps(ours)).save == save
    (x,) = tensors((2, 4, 7, 6))
    with Kept() as kept:
        ours(x).sum().backward()
    assert ((2, 6, 5, 4) in [tuple(t.shape) for t in kept.tensors]) == (save != "recompute")
    twin(x).sum().backward()
    assert torch.equal(ours.weight.grad, twin.weight.grad) and torch.equal(ours.bias.grad, twin.bias.grad)
    ours.weight.requires_grad_(False)
    ours.zero_grad()
    ours(x).sum().backward()
    assert ours.weight.grad is None and ours.bias.grad is not None


def test_training_a_module():
    """A few steps of an optimiser, beside torch's own modules."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.GroupNorm(3, 6), torch.nn.SiLU()).double()
    ours = nn.FusedConv2d.from_module(*copy.deepcopy(theirs))
    (x,) = tensors((2, 4, 7, 6))
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x.detach()).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("call", [epiconv.fused_conv_epilogue, epiconv.explain])
def test_a_word_for_save_that_is_not_known(call):
    with pytest.raises(ValueError, match=r"save is 'all', but it is one of auto, conv, recompute"):
        call(torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 2, 2), save="all")
    with pytest.raises(ValueError, match="save is 'all'"):
        nn.FusedConv2d(2, 3, 2, save="all")


@pytest.fixture
def forget_compiled_code():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "save", "dynamic"),
    [
        *[(name, "auto", False) for name in EPILOGUES],
        ("norm", "recompute", False),
        ("relu", "auto", True),
        ("norm", "auto", True),
    ],
)
def test_a_compiled_training_step(name, save, dynamic, forget_compiled_code):
    ours, theirs = EPILOGUES[name]
    made = tensors((2, 4, 9, 8), (6, 4, 3, 3), (6,), (6, 1, 1), (2, 6, 7, 6), dtype=torch.float32)

    def step(x, weight, bias, scale, residual):
        epilogue = ours(scale, residual)
        return epiconv.fused_conv_epilogue(x * 2.0, weight, bias, epilogue=epilogue, save=save).square()

    def expected(x, weight, bias, scale, residual):
        return theirs(F.conv2d(x * 2.0, weight, bias), scale, residual).square()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    got = torch.autograd.grad(compiled(*made).sum(), made, allow_unused=True)
    wanted = torch.autograd.grad(expected(*made).sum(), made, allow_unused=True)
    for ours_gradient, right in zip(got, wanted, strict=True):
        if right is None:
            assert ours_gradient is None or not ours_gradient.any()
        else:
            torch.testing.assert_close(ours_gradient, right, rtol=1e-4, atol=1e-4)


def test_a_compiled_graph_holds_the_operators(forget_compiled_code):
    from torch._dynamo.testing import AotEagerAndRecordGraphs

    backend = AotEagerAndRecordGraphs()
    x, weight = tensors((2, 4, 7, 6), (6, 4, 3, 3))
    compiled = torch.compile(
        lambda x, weight: epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.gelu()]),
        fullgraph=True,
        backend=backend,
    )
    compiled(x, weight).sum().backward()

    def targets(graphs):
        return [
            str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"
        ]

    assert "epiconv.fused_conv_epilogue_training.default" in targets(backend.fw_graphs)
    backward = targets(backend.bw_graphs)
    assert "epiconv.epilogue_backward.default" in backward
    assert "aten.convolution_backward.default" in backward


X, WEIGHT, BIAS = (t.detach() for t in tensors((2, 4, 7, 6), (6, 4, 3, 3), (6,), dtype=torch.float32))
SCALE, RESIDUAL = (t.detach() for t in tensors((6, 1, 1), (2, 6, 5, 4), dtype=torch.float32))
CONV = ([1, 1], [0, 0], [0, 0], [1, 1], 1, False, [0, 0], "zeros", None, "auto")
NORM = "v1 = mul(v0, b0); v2 = group_norm(v1, 3); v3 = add(v2, b1)"


@pytest.mark.parametrize("in_channels_last", [False, True])
@pytest.mark.parametrize("keeps_conv", [False, True])
def test_opcheck_of_the_forward_operator(keeps_conv, in_channels_last):
    operator = torch.ops.epiconv.fused_conv_epilogue_training.default
    given = (keeps_conv, X, WEIGHT, BIAS, [SCALE, RESIDUAL], NORM, *CONV, in_channels_last, None)
    torch.library.opcheck(operator, given)
    output, conv, mean, rstd = operator(*given)
    y = F.conv2d(X, WEIGHT)
    torch.testing.assert_close(output, F.group_norm((y + BIAS.view(-1, 1, 1)) * SCALE, 3) + RESIDUAL)
    assert mean.shape == rstd.shape == (2, 3)
    if keeps_conv:
        torch.testing.assert_close(conv, y)
    else:
        assert conv.numel() == 0


@pytest.mark.parametrize("in_channels_last", [False, True])
@pytest.mark.parametrize("wanted", [[True] * 4, [False, True, False, True]], ids=str)
def test_opcheck_of_the_backward_operator(wanted, in_channels_last):
    y = F.conv2d(X, WEIGHT)
    _, _, mean, rstd = torch.ops.epiconv.fused_conv_epilogue_training(
        True, X, WEIGHT, BIAS, [SCALE, RESIDUAL], NORM, *CONV, False, None
    )
    gradient = torch.ones(()).expand(y.shape)
    operator = torch.ops.epiconv.epilogue_backward.default
    given = (gradient, y, mean, rstd, BIAS, [SCALE, RESIDUAL], NORM, "conv", torch.float32, in_channels_last)
    torch.library.opcheck(operator, (*given, wanted))
    results = operator(*given, wanted)
    assert [result.numel() > 0 for result in results] == wanted


def test_batch_invariant_algorithms_train():
    x, weight = tensors((3, 4, 7, 6), (6, 4, 3, 3), dtype=torch.float32)
    expected = torch.autograd.grad(F.gelu(F.conv2d(x, weight)).sum(), [x, weight])
    epiconv.use_batch_invariant_algorithms(True)
    try:
        y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.gelu()])
        alone = epiconv.fused_conv_epilogue(x[1:2], weight, epilogue=[ops.gelu()])
        got = torch.autograd.grad(y.sum(), [x, weight])
    finally:
        epiconv.use_batch_invariant_algorithms(False)
    assert torch.equal(y[1:2], alone)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
