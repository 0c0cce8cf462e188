"""The modules stand for torch.nn's: constructor, parameters, `state_dict`, forward; with an epilogue."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import epiconv
from epiconv import ops

CASES = [
    pytest.param(f"Conv{transposed}{rank}d", rank, id=f"{transposed or 'Conv'}{rank}d")
    for transposed in ("", "Transpose")
    for rank in (1, 2, 3)
]


def pair(name, *args, epilogue=None, **kwargs):
    """torch.nn's module and ours, with the same parameters."""
    theirs = getattr(nn, name)(*args, **kwargs)
    ours = getattr(epiconv.nn, f"Fused{name}")(*args, **kwargs, epilogue=epilogue)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def example(rank, channels=4):
    return torch.randn(2, channels, *(6, 7, 5)[:rank])


@pytest.mark.parametrize(("name", "rank"), CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_stands_for_torch_s_module(name, rank, bias):
    torch.manual_seed(0)
    words = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2, "bias": bias}
    if "Transpose" in name:
        words["output_padding"] = 1
    theirs, ours = pair(name, 4, 6, 3, **words, epilogue=[ops.relu(), ops.mul(2.0)])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert isinstance(ours, getattr(nn, name))
    x = example(rank)
    expected = theirs(x).relu() * 2.0
    got = ours(x)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(expected)
    ours_gradient = torch.autograd.grad(got, ours.weight, weights)
    torch.testing.assert_close(ours_gradient, torch.autograd.grad(expected, theirs.weight, weights))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)
        torch.testing.assert_close(ours(x[0]), expected[0], atol=1e-5, rtol=1e-5)
        assert ours(x[0]).shape == theirs(x[0]).shape


@pytest.mark.parametrize(("name", "rank"), CASES)
def test_the_same_constructor_arguments(name, rank):
    arguments = list(inspect.signature(getattr(nn, name).__init__).parameters)[1:]
    values = {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
        "output_padding": 1,
        "dilation": 2,
        "groups": 2,
        "bias": False,
        "padding_mode": "zeros",
        "device": "meta",
        "dtype": torch.float64,
    }
    positional = [values[argument] for argument in arguments]
    theirs = getattr(nn, name)(*positional)
    ours = getattr(epiconv.nn, f"Fused{name}")(*positional)
    assert ours.weight.shape == theirs.weight.shape
    assert ours.weight.dtype == torch.float64
    assert theirs.extra_repr() in repr(ours)


@pytest.mark.parametrize("padding", ["same", 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(padding, mode):
    theirs, ours = pair("Conv2d", 4, 6, (3, 5), padding=padding, padding_mode=mode)
    x = example(2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("name", "rank"), [case for case in CASES if "Transpose" in case.values[0]])
def test_output_size(name, rank):
    theirs, ours = pair(name, 4, 6, 3, stride=2, padding=1, epilogue=[ops.relu()])
    x = example(rank)
    size = [2 * extent for extent in x.shape[2:]]
    with torch.no_grad():
        torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size).relu())
        torch.testing.assert_close(ours(x, [2, 6, *size]), theirs(x, [2, 6, *size]).relu())
        assert ours(x).shape == theirs(x).shape
        with pytest.raises(ValueError, match="output size"):
            ours(x, output_size=[100] * rank)


def test_operands_belong_to_the_module():
    scale, shift = nn.Parameter(torch.randn(6, 1, 1)), torch.randn(6, 1, 1)
    conv = epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.mul(scale), ops.add(shift), ops.mul(scale)])
    assert [name for name, _ in conv.named_parameters()] == ["weight", "bias", "epilogue_operand0"]
    assert [name for name, _ in conv.named_buffers()] == ["epilogue_operand1"]
    assert list(conv.state_dict()) == ["weight", "bias", "epilogue_operand0"]
    assert conv.epilogue_operand0 is scale
    conv.double()
    assert conv.epilogue.operands[1].dtype == torch.float64
    x = example(2).double()
    y = nn.functional.conv2d(x, conv.weight, conv.bias)
    expected = (y * scale + shift.double()) * scale
    torch.testing.assert_close(conv(x), expected)
    (gradient,) = torch.autograd.grad(conv(x).sum(), scale)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), scale)[0])
    assert conv.to("meta")(x.to("meta")).device.type == "meta"


def test_operands_follow_parameters_that_are_replaced():
    conv = epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.mul(nn.Parameter(torch.ones(6, 1, 1)))])
    conv.epilogue_operand0 = nn.Parameter(torch.full((6, 1, 1), 3.0))
    x = example(2)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias) * 3.0)


def test_load_state_dict_reaches_operands():
    make = lambda value: epiconv.nn.FusedConv2d(  # noqa: E731
        4, 6, 3, epilogue=[ops.mul(nn.Parameter(torch.full((6, 1, 1), value)))]
    )
    one, other = make(1.0), make(5.0)
    one.load_state_dict(other.state_dict())
    x = example(2)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(copied):
    scale = nn.Parameter(torch.randn(6, 1, 1))
    conv = epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.mul(scale), ops.add(torch.randn(6, 1, 1))])
    x = example(2)
    with torch.no_grad():
        expected = conv(x)
        twin = copied(conv)
        assert torch.equal(twin(x), expected)
        twin.epilogue_operand0.add_(1.0)
        assert not torch.equal(twin(x), expected)
        assert torch.equal(conv(x), expected)


@pytest.mark.parametrize(("name", "rank"), CASES)
def test_from_module(name, rank):
    torch.manual_seed(0)
    conv = getattr(nn, name)(4, 6, 3, stride=2, padding=1, bias=rank != 2).eval()
    norm = nn.GroupNorm(2, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain = nn.Sequential(conv, nn.Hardtanh(-0.5, 0.75), norm, nn.PReLU(6))
    fused = getattr(epiconv.nn, f"Fused{name}").from_module(*plain)
    assert fused.weight is conv.weight
    assert fused.bias is conv.bias
    assert fused.training is False
    x = example(rank)
    expected = plain(x)
    torch.testing.assert_close(fused(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected)
        plan = epiconv.explain(
            x,
            fused.weight,
            fused.bias,
            stride=2,
            padding=1,
            transposed="Transpose" in name,
            epilogue=fused.epilogue,
        )
        assert plan.path == "cpu"
        norm.weight.mul_(2.0)  # the fused module reads the parameters that are there
        torch.testing.assert_close(fused(x), plain(x))
    keys = ["following.1.weight", "following.1.bias", "following.2.weight"]
    assert list(fused.state_dict()) == [*conv.state_dict(), *keys]
    doubled = copy.deepcopy(fused).double()
    torch.testing.assert_close(doubled(x.double()), copy.deepcopy(plain).double()(x.double()))
    assert isinstance(pickle.loads(pickle.dumps(fused))(x), torch.Tensor)


def test_from_module_alone():
    conv = nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect")
    fused = epiconv.nn.FusedConv2d.from_module(conv)
    assert list(fused.state_dict()) == ["weight", "bias"]
    x = example(2)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), conv(x))


def test_from_module_refuses():
    conv = nn.Conv2d(4, 6, 3)
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Conv1d, not a Conv2d"):
        epiconv.nn.FusedConv1d.from_module(conv)
    with pytest.raises(TypeError, match="not a FusedConv2d"):
        epiconv.nn.FusedConv2d.from_module(epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.relu()]))
    with pytest.raises(Exception, match=r"Linear|linear"):
        epiconv.nn.FusedConv2d.from_module(conv, nn.Linear(6, 6))
    with pytest.raises(ValueError, match="parametrized"):
        epiconv.nn.FusedConv2d.from_module(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)))
    relu = nn.ReLU()
    relu.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        epiconv.nn.FusedConv2d.from_module(conv, relu)


def test_a_bad_epilogue_is_refused_by_the_constructor():
    with pytest.raises(TypeError, match="trace it once"):
        epiconv.nn.FusedConv2d(4, 6, 3, epilogue=torch.relu)
    with pytest.raises(TypeError, match="needs 1 operand"):
        epiconv.nn.FusedConv2d(4, 6, 3, epilogue=epiconv.Program("v1 = add(v0, b0)"))


def test_repr_shows_the_program():
    conv = epiconv.nn.FusedConv2d(4, 6, 3, padding=1, epilogue=[ops.relu()])
    assert repr(conv) == (
        "FusedConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), epilogue='v1 = relu(v0)')"
    )


def test_under_compile():
    fused = epiconv.nn.FusedConv2d.from_module(nn.Conv2d(4, 6, 3), nn.GELU(), nn.GroupNorm(2, 6))
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = example(2)
    torch.testing.assert_close(compiled(x), fused(x))
    compiled(x).sum().backward()
    assert fused.following[1].weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), fused(x))
    torch.compiler.reset()
