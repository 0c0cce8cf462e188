"""Where `epiconv.fuse` has to stop: shared values, writes in place, hooks, modes, shapes, limits."""

import pytest
import torch
from fusion_blocks import BasicBlock, make, programs
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import epiconv


def network(forward, **modules):
    """A module of a class of its own with this forward."""
    model = type("Network", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(model, name, module)
    return model.eval()


def conv(inputs=3, outputs=3, **words):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **words)


def check(model, x, expected, capsys, example=True):
    """Fuses, compares values and programs, and returns the reasons by convolution."""
    torch.manual_seed(0)
    fused = epiconv.fuse(model, x if example else None)
    report = epiconv.report(fused)
    assert programs(report) == expected
    with torch.no_grad():
        torch.testing.assert_close(fused(x.clone()), model(x.clone()), atol=1e-5, rtol=1e-4)
    return {row.module: row.reason for row in report.rows}


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_value_with_two_users(capsys):
    def forward(self, x):
        y = self.conv(x)
        return F.relu(y) + y.mean()

    reasons = check(network(forward, conv=conv()), X, {}, capsys)
    assert "read by" in reasons["conv"] and "mean" in reasons["conv"]


def test_the_chain_ends_at_a_value_with_two_users(capsys):
    def forward(self, x):
        y = F.relu(self.conv(x))
        return self.other(y) * 2 + y

    reasons = check(
        network(forward, conv=conv(), other=conv()),
        X,
        {"conv": "v1 = relu(v0)", "other": "v1 = mul(v0, 2); v2 = add(v1, b0)"},
        capsys,
    )
    assert reasons["other"] == ""


def test_several_users_within_the_chain(capsys):
    def forward(self, x):
        y = self.conv(x)
        return y * F.relu6(y + 3) / 6

    expected = "v1 = add(v0, 3); v2 = relu6(v1); v3 = mul(v0, v2); v4 = div(v3, 6)"
    check(network(forward, conv=conv()), X, {"conv": expected}, capsys)


def test_a_convolution_that_is_called_twice(capsys):
    def forward(self, x):
        return torch.tanh(self.conv(F.relu(self.conv(x))))

    model = network(forward, conv=conv())
    fused = epiconv.fuse(model, X)
    rows = epiconv.report(fused).rows
    assert [(row.module, row.program) for row in rows] == [
        ("conv", "v1 = relu(v0)"),
        ("conv", "v1 = tanh(v0)"),
    ]
    torch.testing.assert_close(fused(X), model(X))
    assert list(fused.state_dict()) == ["conv.weight", "conv.bias"]


def test_the_input_as_an_operand(capsys):
    model = network(lambda self, x: self.conv(x) + x, conv=conv())
    check(model, X, {"conv": "v1 = add(v0, b0)"}, capsys)
    wrong = torch.randn(2, 3, 6, 1)  # the convolution's output is as wide, so that x does not grow it
    fused = epiconv.fuse(model)
    torch.testing.assert_close(fused(wrong), model(wrong))


class TestInPlace:
    def test_a_value_that_nobody_else_reads(self, capsys):
        def forward(self, x):
            y = self.conv(x)
            y += 1
            y.mul_(2)
            return y.relu_()

        # The result of mul_ is not used, y is.
        check(network(forward, conv=conv()), X, {"conv": "v1 = add_(v0, 1)"}, capsys)
        chained = network(lambda self, x: self.conv(x).add_(1).mul_(2).relu_(), conv=conv())
        check(chained, X, {"conv": "v1 = add_(v0, 1); v2 = mul_(v1, 2); v3 = relu_(v2)"}, capsys)

    def test_a_value_that_is_read_later(self, capsys):
        def forward(self, x):
            y = self.conv(x)
            z = F.relu(y, inplace=True)
            return z * 2 + self.other(y)

        check(network(forward, conv=conv(), other=conv()), X, {"other": "v1 = add(b0, v0)"}, capsys)

    def test_the_input_of_a_convolution_whose_chain_goes_on(self, capsys):
        def forward(self, x):
            x = x * 2
            y = self.conv(x)
            x.relu_()
            return torch.tanh(y) + x

        reasons = check(network(forward, conv=conv()), X, {}, capsys)
        assert "writes in place" in reasons["conv"]

    def test_an_operand_that_is_overwritten(self, capsys):
        def forward(self, x):
            r = x * 2
            y = self.conv(x) + r
            r.relu_()
            return torch.tanh(y) + r.sum()

        check(network(forward, conv=conv()), X, {"conv": "v1 = add(v0, b0)"}, capsys)

    def test_an_operand_as_the_target(self, capsys):
        def forward(self, x):
            r = x * 2
            r += self.conv(x)
            return r

        reasons = check(network(forward, conv=conv()), X, {}, capsys)
        assert "in place" in reasons["conv"]

    def test_what_cannot_share_memory_does_not_end_a_chain(self, capsys):
        def forward(self, x):
            y = self.conv(x)
            z = self.other(x).relu_()
            return torch.tanh(y) + z

        model = network(forward, conv=conv(), other=conv())
        expected = {"conv": "v1 = tanh(v0); v2 = add(v1, b0)", "other": "v1 = relu_(v0)"}
        check(model, X, expected, capsys)

    def test_augmented_assignment_is_seen_by_other_names(self, capsys):
        def forward(self, x):
            y = z = x * 1
            y += 1
            return F.relu(self.conv(z))

        check(network(forward, conv=conv()), X, {"conv": "v1 = relu(v0)"}, capsys)


class TestHooks:
    def test_on_a_convolution(self, capsys):
        model = nn.Sequential(conv(), nn.ReLU()).eval()
        model[0].register_forward_hook(lambda module, args, y: y + 1)
        assert "hooks" in check(model, X, {}, capsys)["0"]

    def test_on_an_activation(self, capsys):
        model = nn.Sequential(conv(), nn.ReLU()).eval()
        model[1].register_forward_hook(lambda module, args, y: y + 1)
        assert "hooks" in check(model, X, {}, capsys)["0"]

    def test_on_a_container(self, capsys):
        model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.Tanh()).eval()
        model[0].register_forward_hook(lambda module, args, y: y + 1)
        check(model, X, {"0.0": "v1 = relu(v0)"}, capsys)

    @pytest.mark.parametrize("name", ["0", "0.conv1", "0.bn1", "0.relu"])
    def test_registered_later(self, name):
        model, x = make("basic")
        fused = epiconv.fuse(model, x)
        seen = []
        handle = fused.get_submodule(name).register_forward_hook(lambda *args: seen.append(1))
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x))
            assert seen
            handle.remove()
            count = len(seen)
            torch.testing.assert_close(fused(x), model(x))
        assert len(seen) == count

    def test_of_all_modules(self):
        model, x = make("basic")
        fused = epiconv.fuse(model, x)
        seen = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *args: seen.append(module))
        try:
            fused(x)
        finally:
            handle.remove()
        assert fused[0].bn1 in seen

    def test_parametrizations(self, capsys):
        model = nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU()).eval()
        assert "parametrized" in check(model, X, {}, capsys)["0"]


class TestOperands:
    def test_one_that_grows_the_output(self, capsys):
        def forward(self, x):
            return torch.sigmoid(self.conv(F.adaptive_avg_pool2d(x, 1))) * x

        model = network(forward, conv=nn.Conv2d(3, 3, 1))
        reasons = check(model, X, {"conv": "v1 = sigmoid(v0)"}, capsys)
        assert "keeps the shape" in reasons["conv"]
        check(model, X, {"conv": "v1 = sigmoid(v0); v2 = mul(v1, b0)"}, capsys, example=False)

    def test_one_along_the_width(self, capsys):
        model = network(lambda self, x: self.conv(x) * self.scale, conv=conv())
        model.scale = nn.Parameter(torch.randn(6))
        check(model, X, {"conv": "v1 = mul(v0, b0)"}, capsys)
        check(model, X, {"conv": "v1 = mul(v0, b0)"}, capsys, example=False)
        fused = epiconv.fuse(model)
        with pytest.raises(RuntimeError, match="size of tensor"):  # torch's own
            fused(torch.randn(2, 3, 5, 5))

    def test_a_gate_for_each_channel_of_an_image(self, capsys):
        def forward(self, x):
            return self.conv(x) * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))

        model = network(forward, conv=conv(), gate=nn.Conv2d(3, 3, 1))
        check(model, X, {"conv": "v1 = mul(v0, b0)", "gate": "v1 = sigmoid(v0)"}, capsys)

    def test_a_number_of_the_model(self, capsys):
        model = network(lambda self, x: self.conv(x) / x.shape[2], conv=conv())
        assert "not a tensor" in check(model, X, {}, capsys)["conv"]
        check(model, X, {"conv": "v1 = div(v0, b0)"}, capsys, example=False)

    def test_prelu(self, capsys):
        model = nn.Sequential(conv(), nn.PReLU(3), conv(), nn.PReLU()).eval()
        check(model, X, {"0": "v1 = prelu(v0, b0)", "2": "v1 = prelu(v0, b0)"}, capsys)

    def test_an_image_without_a_batch(self):
        model = nn.Sequential(conv(), nn.GroupNorm(2, 2), nn.ReLU())
        model[0] = nn.Conv2d(3, 2, 3)
        fused = epiconv.fuse(model)
        x = torch.randn(3, 6, 6)
        with torch.no_grad(), pytest.raises(RuntimeError):
            model(x)
        with torch.no_grad(), pytest.raises(RuntimeError):
            fused(x)
        model[1] = nn.Identity()
        with torch.no_grad():
            torch.testing.assert_close(epiconv.fuse(model)(x), model(x))


class TestTracing:
    def test_training_decides(self, capsys):
        def forward(self, x):
            y = F.relu(self.conv(x))
            return (y, y) if self.training else y * 2

        model = network(forward, conv=conv())
        check(model, X, {"conv": "v1 = relu(v0); v2 = mul(v1, 2)"}, capsys)
        fused = epiconv.fuse(model, X).train()
        assert isinstance(fused(X), tuple)

    def test_a_submodule_whose_training_decides(self, capsys):
        class DropPath(nn.Module):
            def forward(self, x):
                return x * torch.rand(x.shape[0], 1, 1, 1).round() if self.training else x

        model = nn.Sequential(conv(), DropPath(), nn.ReLU()).eval()
        check(model, X, {"0": "v1 = relu(v0)"}, capsys)
        fused = epiconv.fuse(model, X).train()
        model.train()
        torch.manual_seed(5)
        expected = model(X)
        torch.manual_seed(5)
        torch.testing.assert_close(fused(X), expected)

    def test_an_optional_argument(self, capsys):
        def forward(self, x, mask=None):
            y = F.relu(self.conv(x))
            return y if mask is None else y * mask

        model = network(forward, conv=conv())
        check(model, X, {"conv": "v1 = relu(v0)"}, capsys)
        fused = epiconv.fuse(model, X)
        mask = torch.rand(6)
        torch.testing.assert_close(fused(X, mask), model(X, mask))
        torch.testing.assert_close(fused(x=X, mask=mask), model(X, mask))
        torch.testing.assert_close(fused(x=X), model(X))

    @pytest.mark.parametrize("what", ["counts", "noise", "constant"])
    def test_what_a_trace_would_lose(self, what, capsys):
        def forward(self, x):
            if what == "counts":
                self.calls += 1
            if what == "noise":
                x = x + torch.randn(1)
            if what == "constant":
                x = x * torch.arange(6)
            return self.tail(x)

        model = network(forward, tail=nn.Sequential(conv(), nn.ReLU()))
        model.calls = 0
        fused = epiconv.fuse(model, X)
        assert programs(epiconv.report(fused)) == {"tail.0": "v1 = relu(v0)"}
        assert model.calls == fused.calls == 0
        torch.manual_seed(2)
        expected = model(X)
        torch.manual_seed(2)
        torch.testing.assert_close(fused(X), expected)
        assert fused.calls == model.calls

    def test_control_flow_is_named(self, capsys):
        model, x = make("branching")
        reasons = {row.module: row.reason for row in epiconv.report(epiconv.fuse(model, x)).rows}
        assert "the model is not traced" in reasons["head"]
        assert "control flow" in reasons["head"]

    def test_a_functional_convolution(self, capsys):
        model = network(lambda self, x: F.relu(F.conv2d(x, self.weight)))
        model.weight = nn.Parameter(torch.randn(2, 3, 3, 3))
        (reason,) = check(model, X, {}, capsys).values()
        assert "write it as a module" in reason

    def test_a_subclass_of_a_convolution(self, capsys):
        class Same(nn.Conv2d):
            def __init__(self):
                super().__init__(3, 3, 3, padding=1)

        class Doubled(nn.Conv2d):
            def forward(self, x):
                return super().forward(x) * 2

        model = nn.Sequential(Same(), nn.ReLU(), Doubled(3, 3, 1), nn.ReLU()).eval()
        check(model, X, {"0": "v1 = relu(v0)"}, capsys)

    def test_output_size(self, capsys):
        up = nn.ConvTranspose2d(3, 3, 3, stride=2)
        model = network(lambda self, x: F.relu(self.up(x, [14, 14])), up=up)
        assert "output size" in check(model, X, {}, capsys)["up"]


def test_batch_norm_statistics_are_kept_and_followed():
    model, x = make("basic")
    fused = epiconv.fuse(model, x)
    site = fused._epiconv_root.sites["site_0"]
    with torch.no_grad():
        fused(x)
        (cache,) = site._affines
        kept = cache._kept
        fused(x)
        assert cache._kept is kept  # computed once
        addresses = [tensor.data_ptr() for tensor in kept]
        for each in (model, fused):
            each[0].bn1.running_var.mul_(3)
            each[0].bn1.bias.add_(1)
        torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)
        assert [tensor.data_ptr() for tensor in cache._kept] == addresses  # for captured graphs
        for each in (model, fused):
            each[0].bn1.weight = nn.Parameter(torch.full((6,), 0.25))
        torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)


def test_batch_norm_without_running_statistics(capsys):
    model = nn.Sequential(conv(), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()).eval()
    assert "running statistics" in check(model, X, {}, capsys)["0"]


def test_limits(capsys):
    def forward(self, x):
        y = self.conv(x)
        for _ in range(60):
            y = y * 1.01
        return y

    (program,) = programs(epiconv.report(epiconv.fuse(network(forward, conv=conv()), X))).values()
    assert program.count(";") == 47  # 48 statements; the rest follows as it was
    model = network(forward, conv=conv())
    torch.testing.assert_close(epiconv.fuse(model, X)(X), model(X))
    two = nn.Sequential(conv(), nn.GroupNorm(1, 3), nn.GroupNorm(3, 3)).eval()
    check(two, X, {"0": "v1 = group_norm(v0, 1, weight=b0, bias=b1)"}, capsys)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks(rank, capsys):
    kind, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    transposed, instance = getattr(nn, f"ConvTranspose{rank}d"), getattr(nn, f"InstanceNorm{rank}d")
    model = nn.Sequential(kind(3, 4, 3), norm(4), transposed(4, 4, 3, 2), instance(4), nn.ELU()).eval()
    expected = {"0": "v1 = mul(v0, b0); v2 = add(v1, b1)", "2": "v1 = group_norm(v0, 4); v2 = elu(v1)"}
    check(model, torch.randn(2, 3, *(5, 6, 7)[:rank]), expected, capsys)


def test_unused_submodules_keep_their_state():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = BasicBlock()
            self.block.unused = nn.Linear(2, 2)
            self.register_buffer("mark", torch.ones(3))

        def forward(self, x):
            return self.block(x)

    model = Model().eval()
    fused = epiconv.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert "block.unused.weight" in fused.state_dict()


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not a function"):
        epiconv.fuse(lambda x: x)
    with pytest.raises(TypeError, match="it is a tensor or a tuple"):
        epiconv.fuse(nn.ReLU(), [X])
    with pytest.raises(TypeError, match="as it was before"):
        epiconv.fuse(epiconv.fuse(nn.Sequential(conv(), nn.ReLU())))
    with pytest.raises(TypeError, match="as it was before"):
        epiconv.fuse(epiconv.fuse(nn.Sequential(conv())))  # of which nothing was fused
    with pytest.raises(TypeError, match=r"epiconv\.report\(epiconv\.fuse"):
        epiconv.report(nn.ReLU())
