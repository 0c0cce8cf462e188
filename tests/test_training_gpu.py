"""Training on a card with EPICONV_TRAINING=fused: gradients against float64, graphs, streams, operators."""

import pytest
import torch
import torch.nn.functional as F
from training_cases import EPILOGUES, SAVES, tensors

import epiconv
from epiconv import functional, ops, training
from epiconv.form_cache import FormCache

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fused(card, monkeypatch):
    """Calls prepared by another setting are not found."""
    monkeypatch.setattr(training, "SETTING", "fused")
    monkeypatch.setattr(functional, "_runs", FormCache())


def on_card(given):
    return [tensor.detach().cuda().requires_grad_() for tensor in given]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", EPILOGUES)
def test_as_accurate_as_eager(name, dtype, layout, save):
    """At most twice eager's error against float64, and two roundings, as on the CPU. Eager multiplies in
    TF32, too: its error is what counts."""
    ours, theirs = EPILOGUES[name]
    made = on_card(tensors((2, 16, 19, 18), (24, 16, 3, 3), (24,), (24, 1, 1), (2, 24, 17, 16), dtype=dtype))
    gradient = torch.randn(2, 24, 17, 16, device="cuda").to(dtype)

    def differentiate(function, given, gradient):
        return torch.autograd.grad(function(*given), given, gradient, allow_unused=True)

    def fused(x, weight, bias, scale, residual):
        x = x.contiguous(memory_format=layout)
        y = epiconv.fused_conv_epilogue(x, weight, bias, epilogue=ours(scale, residual), save=save)
        assert type(y.grad_fn).__name__ == "_FusedConvEpilogueBackward"
        return y

    def eager(x, weight, bias, scale, residual):
        return theirs(F.conv2d(x, weight, bias), scale, residual)

    exact = [tensor.detach().double().requires_grad_() for tensor in made]
    got, of_eager = differentiate(fused, made, gradient), differentiate(eager, made, gradient)
    for ours_gradient, theirs_gradient, right in zip(
        got, of_eager, differentiate(eager, exact, gradient.double()), strict=True
    ):
        assert (ours_gradient is None) == (right is None)
        if right is None:
            continue
        assert ours_gradient.dtype == dtype and ours_gradient.shape == right.shape
        error = (theirs_gradient.double() - right).abs().max()
        roundings = 64 if dtype == torch.float64 else 2
        allowed = 2 * error + roundings * torch.finfo(dtype).eps * right.abs().max()
        assert ((ours_gradient.double() - right).abs() <= allowed).all()


def small_step():
    x, weight, scale = on_card(tensors((2, 8, 12, 12), (8, 8, 3, 3), (8, 1, 1), dtype=torch.float32))

    def step():
        y = epiconv.fused_conv_epilogue(x, weight, padding=1, epilogue=[ops.mul(scale), ops.gelu()])
        return torch.autograd.grad(y.square().sum(), (x, weight, scale))

    return step, (x, weight, scale)


def test_on_a_side_stream():
    step, _ = small_step()
    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = step()
    torch.cuda.synchronize()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_in_a_cuda_graph():
    step, (x, *_) = small_step()
    for _ in range(3):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.mul_(0.5)
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_sums_give_the_same_bits():
    step, _ = small_step()
    (_, _, first), (_, _, second) = step(), step()
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "text", ["v1 = mul(v0, b0); v2 = gelu(v1)", "v1 = mul(v0, b0); v2 = group_norm(v1, 4)"]
)
def test_opcheck(text):
    x, weight, scale = (t.detach() for t in small_step()[1])
    conv = ([1, 1], [1, 1], [1, 1], [1, 1], 1, False, [0, 0], "zeros", None, "auto")
    forward = torch.ops.epiconv.fused_conv_epilogue_training.default
    given = (True, x, weight, None, [scale], text, *conv, False, None)
    torch.library.opcheck(forward, given)
    output, y, mean, rstd = forward(*given)
    backward = torch.ops.epiconv.epilogue_backward.default
    norm = (mean, rstd) if "norm" in text else (None, None)
    given = (torch.ones_like(output), y, *norm, None, [scale], text, "conv", torch.float32, False)
    torch.library.opcheck(backward, (*given, [True, False, True]))


def test_a_module_keeps_its_packed_weight_and_trains():
    module = epiconv.nn.FusedConv2d(16, 16, 3, padding=1, epilogue=[ops.relu()]).cuda()
    x = torch.randn(4, 16, 20, 20, device="cuda")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = (module(x) - 1.0).square().mean()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
