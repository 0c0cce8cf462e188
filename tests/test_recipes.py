"""The recipes are drop-ins for the plain PyTorch models, and `python -m epiconv` says so."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import epiconv
from epiconv.recipes import (
    RECIPES,
    ConvAddMulSigmoidGroupNorm,
    ConvMinAddMul,
    ConvReluAdd,
    ConvTransposeAddClampMulClampDiv,
    Recipe,
)


class PlainConvMinAddMul(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, constant_value, bias_shape, scaling_factor):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.constant_value = constant_value
        self.bias = nn.Parameter(torch.randn(bias_shape))
        self.scaling_factor = scaling_factor

    def forward(self, x):
        x = torch.min(self.conv(x), torch.tensor(self.constant_value, dtype=x.dtype))
        return (x + self.bias) * self.scaling_factor


class PlainConvReluAdd(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, bias_shape):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bias = nn.Parameter(torch.randn(bias_shape))

    def forward(self, x):
        return torch.relu(self.conv(x)) + self.bias


class PlainConvAddMulSigmoidGroupNorm(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, num_groups, bias_shape, scale_shape):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bias = nn.Parameter(torch.randn(bias_shape))
        self.scale = nn.Parameter(torch.randn(scale_shape))
        self.group_norm = nn.GroupNorm(num_groups, out_channels)

    def forward(self, x):
        return self.group_norm(torch.sigmoid((self.conv(x) + self.bias) * self.scale))


class PlainConvTransposeAddClampMulClampDiv(nn.Module):
    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding,
        output_padding,
        bias_shape,
        scaling_factor,
    ):
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size, stride, padding, output_padding
        )
        self.bias = nn.Parameter(torch.randn(bias_shape))
        self.scaling_factor = scaling_factor

    def forward(self, x):
        x = torch.clamp(self.conv_transpose(x) + self.bias, min=0.0, max=1.0)
        return torch.clamp(x * self.scaling_factor, min=0.0, max=1.0) / self.scaling_factor


# Odd extents, rectangular filters and channels that no vector width divides.
PAIRS = [
    pytest.param(ConvMinAddMul, PlainConvMinAddMul, (3, 5, (3, 2), 0.1, (5, 1, 1), 3.0), id="min_add_mul"),
    pytest.param(ConvReluAdd, PlainConvReluAdd, (3, 5, 3, (1, 5, 1, 1)), id="relu_add"),
    pytest.param(
        ConvAddMulSigmoidGroupNorm,
        PlainConvAddMulSigmoidGroupNorm,
        (3, 6, 3, 3, (6, 1, 1), (1, 1, 1)),
        id="add_mul_sigmoid_group_norm",
    ),
    pytest.param(
        ConvTransposeAddClampMulClampDiv,
        PlainConvTransposeAddClampMulClampDiv,
        (3, 5, (3, 2), 2, (1, 0), (1, 0), (5, 1, 1), 2.5),
        id="transpose_add_clamp_mul_clamp_div",
    ),
]


def models(recipe: type[Recipe], plain: type[nn.Module], init: tuple) -> tuple[Recipe, nn.Module]:
    torch.manual_seed(1)
    theirs = plain(*init).double()
    if isinstance(getattr(theirs, "group_norm", None), nn.GroupNorm):
        nn.init.normal_(theirs.group_norm.weight)  # ones and zeros would hide an affine that is not applied
        nn.init.normal_(theirs.group_norm.bias)
    ours = recipe(*init).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("recipe", "plain", "init"), PAIRS)
def test_same_result_and_gradients_as_the_plain_model(recipe, plain, init):
    ours, theirs = models(recipe, plain, init)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(ours_x), theirs(theirs_x)
    close(y, expected)
    close(ours.reference(x), expected)
    with torch.no_grad():
        close(ours(x), expected)
    weights = torch.randn_like(expected)
    y.backward(weights)
    expected.backward(weights)
    close(ours_x.grad, theirs_x.grad)
    for (name, parameter), (their_name, their_parameter) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == their_name
        close(parameter.grad, their_parameter.grad)


@pytest.mark.parametrize(("recipe", "plain", "init"), PAIRS)
def test_state_dict_loads_both_ways(recipe, plain, init):
    ours, theirs = recipe(*init), plain(*init)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])


@pytest.mark.parametrize(("recipe", "plain", "init"), PAIRS)
def test_inputs_in_any_memory(recipe, plain, init):
    ours, theirs = models(recipe, plain, init)
    wide = torch.randn(2, 6, 9, 14, dtype=torch.float64)
    for x in (
        wide[:, ::2, :, ::2],
        wide[:, :3].transpose(2, 3),
        wide[:1, :3].expand(4, -1, -1, -1),
        wide[:, :3].contiguous(memory_format=torch.channels_last),
        wide[:0, :3],
    ):
        with torch.no_grad():
            close(ours(x), theirs(x))


@pytest.mark.parametrize("recipe", RECIPES)
def test_pickle_and_deepcopy(recipe):
    model = recipe(*recipe.example_init())
    (x,) = recipe.example_inputs(reduced=True)
    x = x[:1, :, :12, :12]
    with torch.no_grad():
        expected = model(x)
        for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert twin.program == model.program
            assert torch.equal(twin(x), expected)
            twin.bias.add_(1.0)  # the copy binds its own parameters, not the original's
            assert not torch.equal(twin(x), expected)
            assert torch.equal(model(x), expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_example_has_the_sizes_of_the_project_s_table(recipe):
    outputs = {
        ConvMinAddMul: ((128, 64, 128, 128), (128, 64, 3, 3)),
        ConvReluAdd: ((128, 64, 128, 128), (128, 64, 3, 3)),
        ConvAddMulSigmoidGroupNorm: ((128, 8, 256, 256), (32, 8, 3, 3)),
        ConvTransposeAddClampMulClampDiv: ((128, 64, 128, 128), (64, 64, 3, 3)),
    }
    model = recipe(*recipe.example_init())
    weight = next(p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() == 4)
    assert (recipe.sizes, tuple(weight.shape)) == outputs[recipe]
    (full,) = recipe.example_inputs(device="meta", dtype=torch.bfloat16)
    assert tuple(full.shape) == recipe.sizes
    assert full.dtype == torch.bfloat16
    (x,) = recipe.example_inputs(reduced=True, memory_format=torch.channels_last)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.shape[1] == recipe.sizes[1]


def test_constants_cannot_be_changed_behind_the_program():
    model = ConvMinAddMul(3, 5, 3, 0.5, (5, 1, 1), 2)
    assert (model.constant_value, model.scaling_factor) == (0.5, 2.0)
    with pytest.raises(AttributeError):
        model.scaling_factor = 3.0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), "runs along the width.*(5, 1, 1)"),
        ((4, 1, 1), r"does not broadcast against 5 output channels.*\(5, 1, 1\)"),
        ((1, 1, 5, 1, 1), "5 dimensions"),
        ((0, 1, 1), "positive integers"),
        ((5.0, 1, 1), "positive integers"),
    ],
)
def test_bad_bias_shape_is_refused_by_the_constructor(shape, message):
    with pytest.raises(ValueError, match=message):
        ConvReluAdd(3, 5, 3, shape)


def test_scale_shape_is_named_in_its_error():
    with pytest.raises(ValueError, match="scale_shape"):
        ConvAddMulSigmoidGroupNorm(3, 6, 3, 2, (6, 1, 1), (4, 1, 1))


def test_explain_says_which_path_runs():
    model = ConvReluAdd(3, 5, 3, (5, 1, 1))
    plan = model.explain(torch.randn(1, 3, 8, 8))
    assert plan.path
    assert plan.kernel


def test_command_line_checks_and_times_every_recipe(tmp_path, capsys):
    from epiconv.__main__ import main

    path = tmp_path / "recipes.json"
    assert main(["--device", "cpu", "--dtype", "fp32", "--seconds", "0.01", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert [row["recipe"] for row in content["recipes"]] == [recipe.__name__ for recipe in RECIPES]
    for row in content["recipes"]:
        assert row["ok"] is True
        assert row["ratio"] == pytest.approx(row["eager_ms"] / row["epiconv_ms"])
        assert 0 <= row["epiconv_error"] <= 2 * row["eager_error"] + 2**-24
    printed = capsys.readouterr().out
    assert str(epiconv.info()).splitlines()[0] in printed
    assert all(recipe.__name__ in printed for recipe in RECIPES)


def test_command_line_fails_when_a_recipe_is_wrong(monkeypatch, capsys):
    from epiconv import __main__ as command_line

    class Wrong(ConvReluAdd):
        def forward(self, x):
            y = super().forward(x)
            y[-1, -1, -1, -1] += 0.01
            return y

    monkeypatch.setattr(command_line, "RECIPES", (Wrong,))
    assert command_line.main(["--device", "cpu", "--dtype", "fp32", "--seconds", "0.01"]) == 1
    assert "NO" in capsys.readouterr().out
