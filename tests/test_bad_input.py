"""What is refused, with a message that says what was given, what is allowed and what to do; and what is not.

Every case is given to the eager call, to the route of gradients and to `explain`.
"""

import pytest
import torch
import torch.nn.functional as F

import epiconv
from epiconv import ops

X = torch.zeros(2, 4, 8, 8)
WEIGHT = torch.zeros(6, 4, 3, 3)
BIAS = torch.zeros(6)
TRANSPOSED = torch.zeros(4, 6, 3, 3)


def refusal(error, match, *args, **kwargs):
    """The call is refused on every route, in the same words."""
    for call in (epiconv.fused_conv_epilogue, epiconv.explain):
        with torch.no_grad(), pytest.raises(error, match=match):
            call(*args, **kwargs)
    with_grad = [
        a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    ]
    with pytest.raises(error, match=match):
        epiconv.fused_conv_epilogue(*with_grad, **kwargs)


@pytest.mark.parametrize(
    ("x", "weight", "match"),
    [
        (torch.zeros(4, 4), torch.zeros(6, 4), "weight has 2 dimensions.*1 to 3 spatial"),
        (torch.zeros(*[1] * 6), torch.zeros(*[1] * 6), "weight has 6 dimensions"),
        (torch.zeros(8, 8), WEIGHT, r"input has 2 dimensions.*\(N, C, spatial…\) of 4.*or.*3"),
        (torch.zeros(1, 2, 4, 8, 8), WEIGHT, "input has 5 dimensions"),
    ],
)
def test_wrong_rank(x, weight, match):
    refusal(ValueError, match, x, weight)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"groups": 2}, "4 input channels per group.*2 per group"),
        ({"groups": 3}, "groups = 3 does not divide the C = 4"),
        ({"groups": 0}, "groups is 0.*at least 1"),
        ({"groups": -1}, "groups is -1"),
        ({"padding": -1}, "padding .* is negative.*slice the input"),
        ({"padding": (0, -2)}, "padding .* is negative in the width"),
        ({"stride": 0}, r"stride \(0, 0\).*at least 1"),
        ({"stride": (1, -1)}, "stride .* in the width"),
        ({"dilation": 0}, "dilation .* at least 1"),
        ({"dilation": 5}, "output height would be ≤ 0.*larger input, more padding or a smaller filter"),
        ({"output_padding": 1}, "only a transposed convolution takes output_padding"),
        (
            {"padding": 8, "padding_mode": "reflect"},
            "padding 8 is too large for padding_mode='reflect'.*at most 7",
        ),
        ({"padding": 9, "padding_mode": "circular"}, "padding 9 is too large.*at most 8"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"padding": "full"}, "'same' or 'valid'"),
        ({"stride": (1, 1, 1)}, "2 spatial dimensions take 1 or 2 entries"),
        ({"padding_mode": "mirror"}, "zeros, reflect, replicate, circular"),
        ({"precision": "fp8"}, "ieee, tf32, bf16, fp16"),
        ({"algorithm": "winograd"}, "auto, implicit_gemm, cudnn"),
        ({"memory_format": torch.channels_last_3d}, "channels_last_3d.*can be"),
        ({"memory_format": torch.preserve_format}, "None follows input and weight"),
    ],
    ids=str,
)
def test_bad_extents_and_words(words, match):
    refusal(ValueError, match, X, WEIGHT, BIAS, **words)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"output_padding": 2, "stride": 2}, "output_padding .* is 2.*smaller than either stride"),
        ({"output_padding": -1}, "output_padding .* is negative"),
        ({"padding": 6}, "output height would be .*use less padding"),
        ({"padding": "same"}, "is for convolutions"),
        ({"padding_mode": "reflect"}, "is for convolutions"),
        ({"groups": 3}, "does not divide"),
    ],
    ids=str,
)
def test_bad_transposed_convolutions(words, match):
    refusal(ValueError, match, X, TRANSPOSED, transposed=True, **words)


def test_channels_that_do_not_match():
    refusal(ValueError, "5 input channels.*input has C = 4", X, torch.zeros(6, 5, 3, 3))
    refusal(ValueError, r"weight has C = 5.*input has C = 4", X, torch.zeros(5, 6, 3, 3), transposed=True)
    refusal(ValueError, r"bias has shape \(5,\).*\(6,\)", X, WEIGHT, torch.zeros(5))
    refusal(ValueError, r"bias has shape \(6, 1, 1\)", X, WEIGHT, torch.zeros(6, 1, 1))
    refusal(ValueError, "groups = 4 does not divide the K = 6", X, torch.zeros(6, 1, 3, 3), groups=4)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"stride": 1.5}, "stride is 1.5"),
        ({"stride": "2"}, "stride is '2'"),
        ({"stride": True}, "stride is True"),
        ({"padding": None}, "padding is None"),
        ({"dilation": [1, 2.0]}, "dilation is 2.0"),
        ({"groups": [1]}, "groups is"),
        ({"stride": {1: 2}}, "stride is"),
        ({"dtype": torch.int32}, "dtype is torch.int32"),
        ({"dtype": torch.complex64}, "dtype is torch.complex64"),
    ],
    ids=str,
)
def test_arguments_of_a_wrong_type(words, match):
    refusal(TypeError, match, X, WEIGHT, **words)


@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_no_tensors(name):
    given = {"input": X, "weight": WEIGHT, "bias": BIAS, name: [1.0]}
    refusal(TypeError, f"{name} is a list, not a tensor", **given)
    if name != "bias":
        refusal(TypeError, f"{name} is a NoneType, not a tensor", **{**given, name: None})


@pytest.mark.parametrize(
    ("operand", "match"),
    [
        (
            torch.zeros(5, 1, 1),
            r"b0 of shape \(5, 1, 1\) does not broadcast against the output \(2, 6, 6, 5\)",
        ),
        (torch.zeros(6), r"does not broadcast.*A plain \(K,\).*b.view\(-1, 1, 1\)"),
        (torch.zeros(3, 1, 1, 1), "does not broadcast"),
        (torch.zeros(1, 1, 6, 6, 5), "would grow the output"),
        (torch.zeros(2, 2, 6, 6, 5), "would grow the output"),
    ],
)
def test_operands_that_do_not_fit(operand, match):
    x = torch.zeros(2, 4, 8, 7)
    refusal(ValueError, match, x, WEIGHT, epilogue=[ops.add(operand)])


def test_operand_that_would_grow_a_dimension_of_one():
    refusal(ValueError, "would grow", X[:1], WEIGHT, epilogue=[ops.add(torch.zeros(3, 6, 6, 6))])
    # Unbatched: the batch dimension is not there to be broadcast.
    refusal(ValueError, "would grow", X[0], WEIGHT, epilogue=[ops.add(torch.zeros(1, 6, 6, 6))])


def test_channel_operands():
    refusal(ValueError, r"its shape is \(6,\)", X, WEIGHT, epilogue=[ops.prelu(torch.zeros(5))])
    refusal(ValueError, r"its shape is \(6,\)", X, WEIGHT, epilogue=[ops.prelu(torch.zeros(6, 1, 1))])
    refusal(ValueError, r"its shape is \(6,\)", X, WEIGHT, epilogue=[ops.group_norm(2, torch.zeros(1))])
    refusal(ValueError, "num_groups=4 over 6 channels", X, WEIGHT, epilogue=[ops.group_norm(4)])


@pytest.mark.parametrize("name", ["weight", "bias", "operand b0"])
def test_mixed_devices(name):
    given = {"weight": WEIGHT, "bias": BIAS, "operand b0": torch.zeros(6, 1, 1)}
    given[name] = given[name].to("meta")
    match = f"{name} is on meta, but input is on cpu"
    refusal(ValueError, match, X, given["weight"], given["bias"], epilogue=[ops.add(given["operand b0"])])


def test_0d_operand_on_the_cpu_goes_with_any_device():
    x, weight = X.to("meta"), WEIGHT.to("meta")
    y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.add(torch.tensor(1.0))])
    assert (y.device.type, tuple(y.shape)) == ("meta", (2, 6, 6, 6))
    refusal(ValueError, "is on cpu, but input is on meta", x, weight, epilogue=[ops.add(torch.zeros(1))])


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_dtypes(dtype):
    refusal(TypeError, f"input is {dtype}, but it is one of torch.float32", X.to(dtype), WEIGHT.to(dtype))
    refusal(TypeError, f"weight is {dtype}", X, WEIGHT.to(dtype))
    refusal(TypeError, f"bias is {dtype}", X, WEIGHT, BIAS.to(dtype))


def test_mixed_dtypes():
    refusal(TypeError, "weight is torch.float64, but input is torch.float32", X, WEIGHT.double())
    refusal(TypeError, "bias is torch.bfloat16, but input is torch.float32", X, WEIGHT, BIAS.bfloat16())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e5m2], ids=str)
def test_operand_dtypes(dtype):
    operand = torch.zeros(6, 1, 1).to(dtype)
    refusal(TypeError, f"operand b0 is {dtype}", X, WEIGHT, epilogue=[ops.add(operand)])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors():
    if not hasattr(torch, "quantize_per_tensor"):
        pytest.skip("this torch has no quantised tensors")
    quantised = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    for call in (epiconv.fused_conv_epilogue, epiconv.explain):
        with pytest.raises(TypeError, match=r"input is torch.quint8.*dequantize it"):
            call(quantised, WEIGHT)


def test_sparse_tensors():
    for call in (epiconv.fused_conv_epilogue, epiconv.explain):
        with pytest.raises(TypeError, match=r"input is torch.sparse_coo.*to_dense\(\)"):
            call(X.to_sparse(), WEIGHT)
        with pytest.raises(TypeError, match=r"weight is torch.sparse_coo"):
            call(X, WEIGHT.to_sparse())
        with pytest.raises(TypeError, match=r"operand b0 is torch.sparse_coo"):
            call(X, WEIGHT, epilogue=[ops.add(torch.zeros(6, 6, 6).to_sparse())])


def test_precision_is_for_float32():
    refusal(
        TypeError, "precision='tf32' is for float32 tensors", X.double(), WEIGHT.double(), precision="tf32"
    )
    refusal(TypeError, "precision='ieee'", X.bfloat16(), WEIGHT.bfloat16(), precision="ieee")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="under autocast"):
        epiconv.fused_conv_epilogue(X, WEIGHT, precision="ieee")


def test_algorithms_that_cannot_run():
    refusal(
        NotImplementedError,
        "'implicit_gemm' cannot run: the tensors are on cpu; leave 'auto'",
        X,
        WEIGHT,
        algorithm="implicit_gemm",
    )
    refusal(ValueError, "algorithm='cudnn' cannot run: the tensors are on cpu", X, WEIGHT, algorithm="cudnn")


@pytest.mark.gpu
def test_cudnn_that_has_been_disabled(cuda):
    x, weight = X.to(cuda), WEIGHT.to(cuda)
    epiconv.fused_conv_epilogue(x, weight, algorithm="cudnn")
    with torch.backends.cudnn.flags(enabled=False):
        refusal(ValueError, "cudnn.enabled is False", x, weight, algorithm="cudnn")
        epiconv.fused_conv_epilogue(x, weight)


@pytest.mark.parametrize(
    ("epilogue", "match"),
    [
        (torch.relu, "trace it once, outside forward"),
        (torch.nn.ReLU(), "trace it once"),
        (ops.relu(), "goes into a list"),
        (ops.relu, "not called"),
        ([ops.relu], "call it"),
        ([torch.relu], "not an operation of epiconv.ops"),
        (epiconv.Program("v1 = add(v0, b0)"), "needs 1 operand"),
        ("relu", "str"),
        ([ops.lt(0.0)], "torch.bool, which is not floating"),
    ],
)
def test_no_epilogue(epilogue, match):
    refusal(TypeError, match, X, WEIGHT, epilogue=epilogue)


def test_unknown_operations_and_too_many_live_values():
    with pytest.raises(AttributeError, match="no operation 'rellu'; did you mean relu"):
        getattr(ops, "rellu")  # noqa: B009
    with pytest.raises(ValueError, match="rellu"):
        epiconv.Program("v1 = rellu(v0)")
    with pytest.raises(Exception, match="fft"):
        epiconv.trace(lambda y: torch.fft.fft(y).real)
    names = [f"v{i} = add(v0, {float(i)})" for i in range(1, 7)]
    sums = [f"v{7 + i} = mul(v{6 + i}, v{i + 1})" for i in range(5)]
    with pytest.raises(ValueError, match="live"):
        epiconv.Program("; ".join(names + sums))


def test_the_same_bad_call_is_refused_again():
    for _ in range(2):
        refusal(ValueError, "groups = 3", X, WEIGHT, groups=3)
    epiconv.fused_conv_epilogue(X, WEIGHT, BIAS)
    refusal(ValueError, r"bias has shape \(12,\)", X, WEIGHT, torch.zeros(12))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_refusals_under_compile(backend):
    compiled = torch.compile(epiconv.fused_conv_epilogue, backend=backend)
    with pytest.raises(Exception, match="groups = 3 does not divide"):
        compiled(X, WEIGHT, groups=3)
    with pytest.raises(Exception, match=r"b.view\(-1, 1, 1\)"):
        compiled(torch.zeros(2, 4, 8, 7), WEIGHT, epilogue=[ops.add(torch.zeros(6))])
    torch.compiler.reset()


def test_unusual_but_allowed():
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
    for case in (x[:0], x[:, :, ::2, 1::2], x[:1].expand(3, -1, -1, -1), x.transpose(2, 3), x[0]):
        torch.testing.assert_close(
            epiconv.fused_conv_epilogue(case, weight, epilogue=[ops.relu()]), F.conv2d(case, weight).relu()
        )
    no_channels = epiconv.fused_conv_epilogue(x[:, :0], weight[:, :0], BIAS, epilogue=[ops.relu()])
    assert no_channels.shape == F.conv2d(x[:, :0], weight[:, :0], BIAS).shape
