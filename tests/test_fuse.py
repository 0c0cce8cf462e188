"""`epiconv.fuse` on blocks of well-known networks: what is fused, and that it is the network it was."""

import copy
import io
import pickle

import pytest
import torch
from fusion_blocks import BLOCKS, make, programs
from torch import nn

import epiconv

TRACEABLE = [name for name in BLOCKS if name != "branching"]


def assert_same(fused, model, x):
    """Values without and with gradients, and gradients of all parameters and of the input."""
    with torch.no_grad():
        torch.testing.assert_close(fused(x.clone()), model(x.clone()), atol=1e-5, rtol=1e-4)
    gradients = []
    weights = None
    for each in (model, fused):
        given = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = each(given * 1)
        weights = torch.randn_like(y) if weights is None else weights
        wanted = [given, *[p for p in each.parameters() if p.requires_grad]]
        gradients.append([y, *torch.autograd.grad(y, wanted, weights, allow_unused=True)])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("with_example", [True, False])
def test_what_is_fused(name, with_example, capsys):
    model, x = make(name)
    report = epiconv.report(epiconv.fuse(model, x if with_example else None))
    expected = dict(BLOCKS[name].programs)
    if name == "mbconv" and not with_example:
        expected["se.fc2"] = "v1 = sigmoid(v0); v2 = mul(b0, v1)"  # and is refused when it runs
    assert programs(report) == expected
    assert tuple(row.module for row in report.rows if not row.fused) == BLOCKS[name].left
    assert all(row.reason for row in report.rows if not row.fused)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("with_example", [True, False])
def test_values_and_gradients_in_eval_mode(name, with_example):
    model, x = make(name)
    assert_same(epiconv.fuse(model, x if with_example else None), model, x)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "mbconv"])
def test_training_mode(name):
    model, x = make(name)
    fused = epiconv.fuse(model, x).train()
    model.train()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused.state_dict(), model.state_dict())  # the statistics of BatchNorms
    assert_same(fused, model, x)
    assert_same(fused.eval(), model.eval(), x)


def test_dropout_in_training_mode():
    model, x = make("mbconv")
    fused = epiconv.fuse(model, x).train()
    model.train()
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(fused(x), expected)


def test_one_batch_norm_in_training_mode():
    model, x = make("basic")
    fused = epiconv.fuse(model, x)
    for each in (model, fused):
        each[0].bn2.train()
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused[0].bn2.running_mean, model[0].bn2.running_mean)
    assert fused[0].bn2.num_batches_tracked == 1
    assert fused[0].bn1.num_batches_tracked == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_the_model_is_left_as_it_was(name):
    model, x = make(name)
    before = copy.deepcopy(model.state_dict())
    classes = [type(module) for module in model.modules()]
    fused = epiconv.fuse(model, x)
    assert [type(module) for module in model.modules()] == classes
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)
    assert isinstance(fused, type(model))
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in model.named_modules()]
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", BLOCKS)
def test_state_goes_both_ways(name):
    model, x = make(name)
    fused = epiconv.fuse(model, x)
    assert list(fused.state_dict()) == list(model.state_dict())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        fused(x)  # what it keeps for each version of its tensors is of the old ones
        fused.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)
    other, _ = make(name)
    other.load_state_dict(fused.state_dict(), strict=True)
    torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("name", ["basic", "mbconv", "unet", "branching"])
def test_copies_and_pickles(name, capsys):
    model, x = make(name)
    fused = epiconv.fuse(model, x)
    stream = io.BytesIO()
    torch.save(fused, stream)
    stream.seek(0)
    others = [
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(stream, weights_only=False),
        copy.deepcopy(pickle.loads(pickle.dumps(fused))),
    ]
    for other in others:
        assert type(other) is type(fused)
        assert programs(epiconv.report(other)) == BLOCKS[name].programs
        for parameter in other.parameters():
            nn.init.normal_(parameter, std=0.3)  # its own
        expected = copy.deepcopy(model)
        expected.load_state_dict(other.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(other(x), expected(x), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)


def calls_of_the_operator(program):
    return sum("fused_conv_epilogue" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("name", TRACEABLE)
def test_compile(name):
    model, x = make(name)
    fused = epiconv.fuse(model, x)
    found = []

    def backend(module, example_inputs):
        found.append(calls_of_the_operator(module))
        return module

    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend=backend)(x), model(x))
    assert found == [len(BLOCKS[name].programs)]
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), model(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    parameters = list(fused.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), list(model.parameters())),
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("name", TRACEABLE)
def test_export(name):
    model, x = make(name)
    exported = torch.export.export(epiconv.fuse(model, x), (x,), strict=False)
    assert calls_of_the_operator(exported) == len(BLOCKS[name].programs)
    assert set(exported.state_dict) == set(model.state_dict())
    torch.testing.assert_close(exported.module()(x), model(x), atol=1e-5, rtol=1e-4)


def test_functional_call():
    model, x = make("basic")
    fused = epiconv.fuse(model)
    state = {name: torch.rand_like(value.float()) + 0.5 for name, value in model.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(
            torch.func.functional_call(fused, state, x), torch.func.functional_call(model, state, x)
        )
        torch.testing.assert_close(fused(x), model(x))


def test_transforms():
    model, x = make("vae")
    fused = epiconv.fuse(model, x)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(fused)(x[:, None]), torch.vmap(model)(x[:, None]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["basic", "unet"])
def test_dtypes(name, dtype):
    model, x = make(name)
    fused = epiconv.fuse(model, x).to(dtype)
    with torch.no_grad():
        y, expected = fused(x.to(dtype)), model.to(dtype)(x.to(dtype))
    assert y.dtype == expected.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 5e-2
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", BLOCKS)
def test_autocast(name):
    model, x = make(name)
    fused = epiconv.fuse(model, x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, expected = fused(x), model(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, atol=5e-2, rtol=5e-2)


def test_channels_last_and_other_extents():
    model, x = make("basic")
    fused = epiconv.fuse(model, x)
    with torch.no_grad():
        for given in (x.to(memory_format=torch.channels_last), torch.randn(3, 6, 11, 9)):
            y, expected = fused(given), model(given)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
            assert y.stride() == expected.stride()
