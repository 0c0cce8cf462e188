"""Every kind of convolution that torch has goes to the path "implicit_gemm" as it was asked for."""

import pytest
import torch
import torch.nn.functional as F
from fake_conv_core import ran

import epiconv
from epiconv import ops
from epiconv.convolution import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
CASES = {  # input, weight, words with an entry per dimension
    "strided": ((2, 4, 8, 7), (6, 4, 3, 3), {"stride": (1, 2), "padding": (1, 0)}),
    "strides over pixels": ((2, 4, 18, 17), (6, 4, 2, 3), {"stride": (5, 7), "dilation": (1, 2)}),
    "1d": ((2, 4, 19), (6, 4, 3), {"stride": (2,), "padding": (3,), "dilation": (4,)}),
    "groups": ((2, 4, 8, 7), (6, 2, 3, 3), {"groups": 2, "dilation": (2, 1)}),
    "depthwise": ((2, 4, 8, 7), (8, 1, 3, 3), {"groups": 4, "stride": (2, 2), "padding": (1, 1)}),
    "3d": ((2, 4, 5, 6, 7), (6, 4, 3, 2, 1), {"padding": (2, 0, 1)}),
    "3d strided": (
        (2, 4, 5, 6, 7),
        (6, 2, 3, 3, 3),
        {"stride": (1, 2, 3), "dilation": (2, 1, 2), "groups": 2},
    ),
    "unbatched 3d": ((4, 5, 6, 7), (6, 4, 3, 2, 1), {"stride": (2, 1, 1)}),
    "transposed, far apart": ((2, 4, 8, 7), (4, 6, 3, 3), {"stride": (2, 5), "output_padding": (1, 4)}),
    "transposed, dilated": (
        (2, 4, 8, 7),
        (4, 6, 3, 2),
        {"dilation": (1, 2), "stride": (3, 1), "padding": (1, 1)},
    ),
    "transposed, groups": ((2, 4, 8, 7), (4, 3, 3, 3), {"groups": 2, "stride": (2, 2), "padding": (0, 2)}),
    "transposed 1d": ((2, 4, 19), (4, 3, 5), {"stride": (6,), "dilation": (3,), "groups": 2}),
    "transposed 3d": (
        (2, 4, 5, 4, 3),
        (4, 6, 3, 2, 3),
        {"stride": (1, 2, 5), "padding": (1, 1, 0), "dilation": (2, 1, 1), "output_padding": (0, 1, 2)},
    ),
    "unbatched transposed 3d": ((4, 5, 4, 3), (4, 1, 3, 2, 3), {"groups": 4, "stride": (2, 2, 2)}),
}


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_any_kind(case, is_channels_last, core):
    shape, taps, words = CASES[case]
    rank, transposed = len(taps) - 2, "transposed" in case
    x, weight = integers(*shape), integers(*taps)
    if is_channels_last and rank > 1:
        weight = weight.contiguous(memory_format=CHANNELS_LAST[rank + 2])
        x = x if len(shape) == rank + 1 else x.contiguous(memory_format=CHANNELS_LAST[rank + 2])
    filters = taps[1] * words.get("groups", 1) if transposed else taps[0]
    bias = integers(filters)
    y = (TRANSPOSED_CONVOLUTIONS if transposed else CONVOLUTIONS)[rank - 1](x, weight, bias, **words)
    residual = integers(*y.shape)
    epilogue = [ops.add(residual), ops.relu()]
    got = ran(core, x, weight, bias, transposed=transposed, epilogue=epilogue, **words)
    assert torch.equal(got, torch.relu(y + residual))
    plan = core.runs[-1][0]
    problem = plan.problem
    batch = () if len(shape) == rank + 2 else (1,)
    assert (problem.input, problem.weight, problem.bias) == ((*batch, *shape), taps, (filters,))
    ones, zeros = (1,) * rank, (0,) * rank
    assert problem.stride == words.get("stride", ones)
    assert problem.dilation == words.get("dilation", ones)
    assert problem.padding_begin == problem.padding_end == words.get("padding", zeros)
    assert problem.output_padding == words.get("output_padding", zeros)
    assert (problem.groups, problem.transposed) == (words.get("groups", 1), transposed)
    assert plan.input_strides[len(batch) :] == x.stride()
    assert plan.output_strides[len(batch) :] == got.stride()
    assert core.weight_strides == weight.stride()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_with_strides_and_groups(mode, core):
    for function, conv in ((torch.nn.Conv1d, (4, 6, 3)), (torch.nn.Conv3d, (4, 6, (3, 2, 1)))):
        module = function(*conv, stride=2, padding=1, groups=2, padding_mode=mode, bias=False)
        weight = integers(*module.weight.shape)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        x = integers(2, 4, *(5, 6, 7)[: weight.dim() - 2])
        assert torch.equal(ran(core, x, weight, stride=2, padding=1, groups=2, padding_mode=mode), module(x))
        assert core.runs[-1][0].padding_mode == mode
        assert core.runs[-1][0].input_strides == x.stride()  # nothing was padded before


def test_same_padding_of_three_dimensions(core):
    x, weight = integers(2, 4, 5, 6, 7), integers(6, 4, 2, 3, 4)
    assert torch.equal(ran(core, x, weight, padding="same"), F.conv3d(x, weight, padding="same"))
    problem = core.runs[-1][0].problem
    assert (problem.padding_begin, problem.padding_end) == ((0, 1, 1), (1, 1, 2))


def test_the_compiler_lets_them_pass(core):
    x, weight = integers(2, 4, 9, 8), integers(6, 2, 3, 3)

    def function(x, weight):
        return epiconv.fused_conv_epilogue(x, weight, stride=2, groups=2, algorithm="implicit_gemm")

    try:
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(x, weight)
    finally:
        torch.compiler.reset()
    assert torch.equal(got, F.conv2d(x, weight, stride=2, groups=2))
    assert len(core.runs) == 1


EMPTY = {  # input, weight, words
    "no images": ((0, 4, 8, 7), (6, 4, 3, 3), {}),
    "no channels": ((2, 0, 8, 7), (6, 0, 3, 3), {"padding": 1}),
    "unbatched, no channels": ((0, 8, 7), (6, 0, 3, 3), {}),
    "strided 3d": ((0, 4, 5, 6, 7), (6, 2, 3, 3, 3), {"stride": 2, "groups": 2}),
    "transposed": ((0, 4, 8, 7), (4, 6, 3, 3), {"stride": 2, "output_padding": 1}),
}


@pytest.mark.parametrize("algorithm", ["auto", "implicit_gemm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", EMPTY)
def test_empty_results(case, dtype, algorithm, core):
    core.workspace_bytes = 1000  # of plans that do something
    shape, taps, words = EMPTY[case]
    x, weight, bias = torch.empty(shape, dtype=dtype), integers(*taps).to(dtype), integers(6).to(dtype)
    assert x.data_ptr() == 0
    transposed = case == "transposed"
    function = (TRANSPOSED_CONVOLUTIONS if transposed else CONVOLUTIONS)[len(taps) - 3]
    expected = function(x, weight, bias, **words)
    layout = CHANNELS_LAST[len(taps)]
    words = {"transposed": transposed, "algorithm": algorithm, "memory_format": layout, **words}
    epilogue = [ops.relu(), ops.mul(torch.ones(expected.shape))]
    got = ran(core, x, weight, bias, epilogue=epilogue, dtype=torch.float16, **words)
    assert (got.shape, got.dtype) == (expected.shape, torch.float16)
    batched = got if len(shape) == len(taps) else got.unsqueeze(0)
    assert batched.stride() == torch.empty(batched.shape, memory_format=layout).stride()
    assert core.runs[-1][0].input_alignment == 16
    plan = epiconv.explain(x, weight, bias, **words)
    assert (plan.kernel, plan.why, plan.packing) == ("none", "the output has no elements", "")
    assert plan.bytes_moved == plan.least_bytes == 0


def test_a_module_of_empty_and_other_inputs(core):
    module = epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.relu()])
    with torch.no_grad():
        module.weight.copy_(integers(6, 4, 3, 3))
        module.bias.copy_(integers(6))
        x = integers(2, 4, 8, 7)
        for given in (x[:0], x, x[:0]):
            assert torch.equal(module(given), F.conv2d(given, module.weight, module.bias).relu())
    assert [plan.kernel for plan, _, _ in core.runs] == ["none", "fprop_fake_tf32_tma", "none"]
