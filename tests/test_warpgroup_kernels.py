"""Kernels compiled at run time for compute capability 9.0, with products of warpgroups: which problems they
take, and on a card their results.
"""

from dataclasses import replace

import fuzz_conv
import pytest
import torch
from card_convolutions import force, integers
from fuzz_problems import problem
from portable_problems import ORDINARY, TRANSPOSED
from test_compiled_kernels import CHAIN, DAG, EXACT_CHAIN, EXACT_DAG

import epiconv
from epiconv import _core, ops

SAME = {"begin": 1, "end": 1}
LAST = dict.fromkeys(("input_layout", "weight_layout", "output_layout"), "channels_last")

# Tiles of positions that follow each other through rows and images, which end within words and tiles.
LINEAR = {
    "7x7": problem((9, 32, 7, 7), (96, 32, 3, 3), **SAME),
    "odd rows": problem((5, 16, 19, 21), (40, 16, 3, 3), **SAME),
    "13x13, stride 2": problem((4, 64, 26, 26), (72, 64, 3, 3), stride=2, **SAME),
    "dilated": problem((3, 16, 33, 33), (33, 16, 3, 3), dilation=2, begin=2, end=2),
    "1x1": problem((6, 80, 11, 13), (70, 80, 1, 1)),
    "1x1 of a long gemm_k": problem((2, 1024, 7, 7), (64, 1024, 1, 1)),
    "small volumes": problem((4, 16, 3, 5, 7), (24, 16, 3, 3, 3), **SAME),
    "1-d": problem((3, 24, 333), (50, 24, 5), begin=2, end=2),
}
LINEAR |= {
    f"{name}, channels_last": replace(conv, **LAST) for name, conv in LINEAR.items() if len(conv.input) > 3
}
EVERY = ORDINARY | TRANSPOSED | LINEAR


@pytest.fixture(autouse=True)
def kept(kept_files):
    """A compiler whose work is kept in a directory of its own."""


def plan_of(conv, capability=(9, 0), compile="always"):
    given = fuzz_conv.make(conv, torch.device("cpu"))
    return fuzz_conv.plan_of(conv, given, "sm90_compiled", capability, compile)


@pytest.mark.parametrize("math", ["tf32", "bf16", "fp16"])
def test_every_math_is_compiled(math, nvrtc):
    kernel = plan_of(replace(ORDINARY["3x3"], math=math)).kernel
    assert kernel.startswith(f"fprop_sm90_{math}_") and kernel.endswith("_f32_compiled")


@pytest.mark.parametrize("epilogue", [CHAIN, DAG], ids=["chain", "dag"])
@pytest.mark.parametrize(
    "name", ["3x3", "1-d", "3-d", "no images", *list(TRANSPOSED)[::30], *list(LINEAR)[::5]]
)
def test_every_convolution_is_compiled(name, epilogue, nvrtc):
    program, operands = epilogue
    conv = replace(EVERY[name], program=program, operands=operands)
    plan = plan_of(conv)
    assert plan.kernel.endswith("_f32_compiled" if 0 not in conv.output else "none")
    assert plan.why_kernel == "compiled kernels of sm_90a are asked for" or 0 in conv.output


@pytest.mark.parametrize(
    "name", ["7x7", "7x7, channels_last", "odd rows, channels_last", "1x1, channels_last"]
)
def test_linear_tiles(name, nvrtc):
    assert "_linear_" in plan_of(LINEAR[name]).kernel


NOT_TAKEN = {
    "another card": (((8, 0), "always"), {}, "compute capability 9.0 only"),
    "a newer card": (((10, 0), "always"), {}, "compute capability 9.0 only"),
    "not to be compiled": (
        ((9, 0), "never"),
        {},
        "nothing is to be compiled",
    ),
    "float32 products": (((9, 0), "always"), {"math": "ieee"}, "warpgroups have no products of float32"),
    "a late number": (
        ((9, 0), "always"),
        {"program": "v1 = mul(v0, b0)", "operands": (("number", "float32", "contiguous"),)},
        "an operand is a number known only when it runs",
    ),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_is_not_taken(case, nvrtc):
    asked, change, reason = NOT_TAKEN[case]
    if _core.why_no_conv_kernels(*asked[0]):
        pytest.skip("this build has no kernels for the card")
    assert plan_of(replace(ORDINARY["3x3"], **change), *asked) == reason


# ---- On a card


def check(conv, card):
    assert fuzz_conv.check(replace(conv, family="sm90_compiled"), card) == (True, "")


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", [EXACT_CHAIN, EXACT_DAG], ids=["chain", "dag"])
@pytest.mark.parametrize("name", [*list(ORDINARY)[1::3], *list(TRANSPOSED)[1::4]])
def test_results(name, epilogue, hopper):
    program, operands = epilogue
    check(replace(EVERY[name], program=program, operands=operands), hopper)


@pytest.mark.gpu
@pytest.mark.parametrize("math", ["tf32", "bf16"])
@pytest.mark.parametrize("name", LINEAR)
def test_results_of_linear_tiles(name, math, hopper):
    """With a residual like the output, and one of another layout."""
    program = "v1 = add(v0, b0); v2 = relu(v1); v3 = sub(v2, b1)"
    layouts = (LINEAR[name].output_layout, "sliced")
    operands = tuple(("full", "float32", layout) for layout in layouts)
    check(replace(LINEAR[name], math=math, program=program, operands=operands), hopper)


@pytest.mark.gpu
def test_the_same_bits_each_time(hopper, monkeypatch):
    """Also where gemm_k is split."""
    force(monkeypatch, "sm90_compiled")
    monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: True)
    x, weight = torch.randn(2, 512, 9, 9, device=hopper), torch.randn(64, 512, 3, 3, device=hopper)

    def fused():
        return epiconv.fused_conv_epilogue(
            x, weight, epilogue=[ops.gelu()], precision="tf32", algorithm="implicit_gemm"
        )

    assert (
        "_split"
        in epiconv.explain(
            x, weight, epilogue=[ops.gelu()], precision="tf32", algorithm="implicit_gemm"
        ).kernel
    )
    first = fused()
    assert all(torch.equal(fused(), first) for _ in range(20))


@pytest.mark.gpu
def test_in_a_graph(hopper, monkeypatch):
    force(monkeypatch, "sm90_compiled")
    monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: True)
    x, weight = integers(4, 16, 14, 14, device=hopper), integers(32, 16, 3, 3, device=hopper)
    arguments = {"padding": 1, "epilogue": [ops.relu()], "precision": "tf32", "algorithm": "implicit_gemm"}
    epiconv.fused_conv_epilogue(x, weight, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = epiconv.fused_conv_epilogue(x, weight, **arguments)
    for _ in range(2):
        x.copy_(integers(4, 16, 14, 14, device=hopper))
        graph.replay()
        expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1).relu()
        assert torch.equal(result, expected.float())
