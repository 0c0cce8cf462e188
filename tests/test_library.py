"""The registered operator: schema, fake kernels, autograd, autocast, transforms, and `torch.compile`."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import epiconv
from epiconv import ops

OPERATOR = torch.ops.epiconv.fused_conv_epilogue.default


@pytest.fixture(autouse=True)
def forget_compiled_code():
    yield
    torch.compiler.reset()


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def arguments(x, weight, bias=None, operands=(), program="", **words):
    """Of the operator, in its order."""
    rank = weight.dim() - 2
    given = {
        "stride": [1] * rank,
        "padding_begin": [0] * rank,
        "padding_end": [0] * rank,
        "dilation": [1] * rank,
        "groups": 1,
        "transposed": False,
        "output_padding": [0] * rank,
        "padding_mode": "zeros",
        "precision": None,
        "algorithm": "auto",
        "channels_last": False,
        "dtype": None,
        **words,
    }
    return (x, weight, bias, list(operands), program, *given.values())


X, WEIGHT, BIAS = torch.randn(2, 4, 7, 6), torch.randn(6, 4, 3, 3), torch.randn(6)
SCALE, RESIDUAL = torch.randn(6, 1, 1), torch.randn(2, 6, 5, 4)
CHAIN = "v1 = add(v0, b0); v2 = gelu(v1); v3 = mul(v2, b1)"

OPCHECKS = {
    "chain": arguments(X, WEIGHT, BIAS, [SCALE, RESIDUAL], CHAIN),
    "gradients": arguments(X, WEIGHT.clone().requires_grad_(), BIAS, [SCALE, RESIDUAL], CHAIN),
    "channels_last": arguments(X, WEIGHT, BIAS, [SCALE, RESIDUAL], CHAIN, channels_last=True),
    "dtype": arguments(
        X.bfloat16(), WEIGHT.bfloat16(), None, [SCALE], "v1 = mul(v0, b0)", dtype=torch.float64
    ),
    "unbatched": arguments(X[0], WEIGHT, BIAS, [], "v1 = group_norm(v0, 3)", channels_last=True),
    "number": arguments(X, WEIGHT, None, [torch.tensor(0.5, dtype=torch.float64)], "v1 = minimum(v0, b0)"),
    "reflect": arguments(X, WEIGHT, None, [], "v1 = relu(v0)", padding_mode="reflect", padding_end=[1, 2]),
    "precision": arguments(X, WEIGHT, None, [], "v1 = relu(v0)", precision="bf16"),
    "transposed": arguments(X, torch.randn(4, 6, 3, 3), BIAS, [], "v1 = relu(v0)", transposed=True),
    "1d": arguments(X[0], torch.randn(6, 7, 3), None, [], "v1 = relu(v0)"),
}


@pytest.mark.parametrize("case", OPCHECKS)
def test_opcheck(case):
    torch.library.opcheck(OPERATOR, OPCHECKS[case])


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["chain", "gradients", "channels_last", "unbatched", "number"])
def test_opcheck_on_the_card(case, cuda):
    given = [a.to(cuda) if isinstance(a, torch.Tensor) else a for a in OPCHECKS[case]]
    given[3] = [a if a.dim() == 0 else a.to(cuda) for a in given[3]]
    given[1] = given[1].detach().requires_grad_(OPCHECKS[case][1].requires_grad)
    torch.library.opcheck(OPERATOR, tuple(given))


class Recorder(TorchDispatchMode):
    """Notes the operators that reach the kernels."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def fused(x, weight, bias, scale):
    return epiconv.fused_conv_epilogue(
        x, weight, bias, padding=1, epilogue=[ops.minimum(0.5), ops.mul(scale)]
    )


def plain(x, weight, bias, scale):
    return torch.clamp(F.conv2d(x, weight, bias, padding=1), max=0.5) * scale


def test_a_mode_sees_one_operator():
    with Recorder() as recorder:
        got = fused(X, WEIGHT, BIAS, SCALE)
    assert recorder.seen == [OPERATOR]
    assert torch.equal(got, fused(X, WEIGHT, BIAS, SCALE))


def test_a_mode_sees_the_operators_of_training():
    weight = WEIGHT.clone().requires_grad_()
    with Recorder() as recorder:
        got = fused(X, weight, BIAS, SCALE)
    assert recorder.seen == [torch.ops.epiconv.fused_conv_epilogue_training.default]
    close(got, plain(X, WEIGHT, BIAS, SCALE))
    with Recorder() as recorder:
        got.sum().backward()
    ours = [f for f in recorder.seen if f.namespace == "epiconv"]
    assert ours == [torch.ops.epiconv.epilogue_backward.default]
    assert torch.ops.aten.convolution_backward.default in recorder.seen


@pytest.mark.gpu
def test_a_mode_sees_plain_operations_where_gradients_are_wanted_on_the_card(cuda):
    with Recorder() as recorder:
        got = fused(X.to(cuda), WEIGHT.to(cuda).requires_grad_(), BIAS.to(cuda), SCALE.to(cuda))
    assert not [f for f in recorder.seen if f.namespace == "epiconv"]
    assert torch.ops.aten.convolution.default in recorder.seen
    close(got.cpu(), plain(X, WEIGHT, BIAS, SCALE))


def test_a_subclass_goes_by_the_operator():
    class Tagged(torch.Tensor):
        pass

    got = fused(X.as_subclass(Tagged), WEIGHT, BIAS, SCALE)
    assert type(got) is Tagged
    assert torch.equal(got.as_subclass(torch.Tensor), fused(X, WEIGHT, BIAS, SCALE))


def test_default_device_mode():
    with torch.device("cpu"):
        close(fused(X, WEIGHT, BIAS, SCALE), plain(X, WEIGHT, BIAS, SCALE))


PROGRAM = epiconv.Program("v1 = minimum(v0, 0.5); v2 = mul(v1, b0)")


def fused_program(x, weight, bias, scale):
    return epiconv.fused_conv_epilogue(x, weight, bias, padding=1, epilogue=PROGRAM(scale))


@pytest.mark.parametrize("function", [fused, fused_program])
def test_compiled_graphs_hold_the_operator(function):
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(X, WEIGHT, BIAS, SCALE), function(X, WEIGHT, BIAS, SCALE))
    targets = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert len([t for t in targets if "epiconv" in str(t)]) == 1
    assert not [t for t in targets if "conv2d" in str(t)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_results_and_gradients(backend):
    def function(x, weight, bias, scale):  # with work before and behind, to be fused by the compiler
        return fused(x * 2.0, weight, bias, scale).sum(1) + 1.0

    def expected(x, weight, bias, scale):
        return plain(x * 2.0, weight, bias, scale).sum(1) + 1.0

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = X.to(memory_format=layout)
        with torch.no_grad():
            close(compiled(x, WEIGHT, BIAS, SCALE), expected(x, WEIGHT, BIAS, SCALE))
    with_grad = [t.clone().requires_grad_() for t in (X, WEIGHT, BIAS, SCALE)]
    gradients = torch.autograd.grad(compiled(*with_grad).sum(), with_grad)
    for got, wanted in zip(
        gradients, torch.autograd.grad(expected(*with_grad).sum(), with_grad), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [None, torch.contiguous_format, torch.channels_last], ids=str)
def test_compiled_results_keep_their_strides(wanted):
    def function(x, weight):
        return epiconv.fused_conv_epilogue(x, weight, memory_format=wanted, epilogue=[ops.relu()])

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for x in (X, X.to(memory_format=torch.channels_last), X[:, :, :, :1].expand(-1, -1, -1, 6), X[:0]):
        got = compiled(x, WEIGHT)
        assert got.stride() == function(x, WEIGHT).stride()
        close(got, function(x, WEIGHT))


def test_dynamic_shapes():
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, width in ((2, 6), (3, 9), (5, 7)):
        x = torch.randn(n, 4, 7, width)
        close(compiled(x, WEIGHT, BIAS, SCALE), plain(x, WEIGHT, BIAS, SCALE))


def test_dynamic_shapes_without_recompiling():
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch._dynamo.mark_dynamic(first := torch.randn(2, 4, 7, 6), 0)
    close(compiled(first, WEIGHT, BIAS, SCALE), plain(first, WEIGHT, BIAS, SCALE))
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (3, 8):
            x = torch.randn(n, 4, 7, 6)
            close(compiled(x, WEIGHT, BIAS, SCALE), plain(x, WEIGHT, BIAS, SCALE))


def test_other_arguments_under_compile():
    def function(x, weight, residual):
        epilogue = [ops.add(residual), ops.cast(torch.bfloat16), ops.silu()]
        words = {"stride": [2, 1], "padding": "valid", "padding_mode": "circular", "dtype": torch.float64}
        return epiconv.fused_conv_epilogue(x, weight, epilogue=epilogue, precision="tf32", **words)

    residual = torch.randn(2, 6, 3, 4)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(X, WEIGHT, residual), function(X, WEIGHT, residual))


def test_autocast_under_compile():
    def function(x, weight, bias, scale):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.relu()])

    got = torch.compile(function, fullgraph=True, backend="aot_eager")(X, WEIGHT, BIAS, SCALE)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, function(X, WEIGHT, BIAS, SCALE))


def test_export():
    module = epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.relu()])
    exported = torch.export.export(module, (X,))
    with torch.no_grad():
        assert torch.equal(exported.module()(X), module(X))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile with")
def test_aot_inductor(tmp_path):
    """Compiled ahead of time for any batch, and loaded again; an empty list of operands comes as None."""
    norm = torch.nn.GroupNorm(3, 6)
    torch.nn.init.normal_(norm.bias)
    model = torch.nn.Sequential(
        epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.relu()]),
        torch.nn.Tanh(),
        epiconv.nn.FusedConvTranspose2d.from_module(torch.nn.ConvTranspose2d(6, 6, 2, stride=2), norm),
    ).eval()
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        exported = torch.export.export(model, (X,), dynamic_shapes=(batch,), strict=False)
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for x in (X, torch.randn(5, *X.shape[1:])):
            close(loaded(x), model(x))


def test_float64_from_float32_tensors():
    """Intermediates are float64 where the result is, also where plain torch operations run."""
    epilogue = [ops.mul(1.0 / 3.0), ops.gelu()]

    def function(x):
        return epiconv.fused_conv_epilogue(x, WEIGHT.float(), epilogue=epilogue, dtype=torch.float64)

    x = X.float()
    expected = torch.stack([function(x), function(2.0 * x)])
    got = torch.vmap(function)(torch.stack([x, 2.0 * x]))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_vmap():
    xs, scales = torch.randn(3, 2, 4, 7, 6), torch.randn(3, 6, 1, 1)

    def over(function):
        return torch.vmap(lambda x, scale: function(x, WEIGHT, BIAS, scale))(xs, scales)

    close(over(fused), over(plain))

    def over_weights(function):
        return torch.vmap(lambda weight: function(X, weight, BIAS, SCALE), out_dims=1)(
            torch.randn(3, 6, 4, 3, 3).abs()
        )

    torch.manual_seed(0)
    got = over_weights(fused)
    torch.manual_seed(0)
    close(got, over_weights(plain))


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda w: f(X, w, BIAS, SCALE).sum())(WEIGHT),
    "jvp": lambda f: torch.func.jvp(lambda x: f(x, WEIGHT, BIAS, SCALE), (X,), (X,))[1],
    "jacrev": lambda f: torch.func.jacrev(lambda b: f(X, WEIGHT, b, SCALE).sum((0, 2, 3)))(BIAS),
    "jacfwd": lambda f: torch.func.jacfwd(lambda b: f(X, WEIGHT, b, SCALE).sum((0, 2, 3)))(BIAS),
    "hessian": lambda f: torch.func.hessian(lambda s: f(X, WEIGHT, BIAS, s).pow(2).sum())(SCALE),
    "per sample": lambda f: torch.vmap(torch.func.grad(lambda w, x: f(x, w, BIAS, SCALE).sum()), (None, 0))(
        WEIGHT, X
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    torch.testing.assert_close(TRANSFORMS[name](fused), TRANSFORMS[name](plain), rtol=1e-4, atol=1e-4)


def test_forward_mode():
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        got = torch.autograd.forward_ad.unpack_dual(fused(x, WEIGHT, BIAS, SCALE))
        expected = torch.autograd.forward_ad.unpack_dual(plain(x, WEIGHT, BIAS, SCALE))
    close(got.tangent, expected.tangent)
    close(got.primal, expected.primal)


def test_second_derivatives():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x, weight):
        return epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.tanh(), ops.mul(2.0)])

    assert torch.autograd.gradgradcheck(function, [x, weight])
