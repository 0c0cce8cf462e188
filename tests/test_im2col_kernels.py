"""Kernels compiled at run time for compute capability 9.0 whose input the copy engine brings: which problems
they take, and on a card their results.
"""

from dataclasses import replace

import fuzz_conv
import pytest
import torch
from card_convolutions import force, integers
from fuzz_problems import problem
from portable_problems import ORDINARY, TRANSPOSED
from test_compiled_kernels import CHAIN, DAG, EXACT_CHAIN, EXACT_DAG
from test_warpgroup_kernels import LAST, LINEAR

import epiconv
from epiconv import _core, ops

SAME = {"begin": 1, "end": 1}
RESIDUAL = "v1 = add(v0, b0); v2 = relu(v1)"

# Tiles and what is left of them, by the last of which filters fill no tile; stages of one step and of many;
# more tiles than teams; and so few that teams share them.
TILES = {
    "3x3": problem((9, 64, 14, 14), (128, 64, 3, 3), **SAME),
    "24 filters": problem((3, 48, 19, 21), (24, 48, 3, 3), **SAME),
    "144 filters": problem((5, 24, 17, 13), (144, 24, 1, 1)),
    "320 filters": problem((2, 72, 16, 15), (320, 72, 3, 3), **SAME),
    "one step": problem((7, 32, 28, 28), (96, 32, 1, 1)),
    "many tiles": problem((40, 16, 40, 41), (70, 16, 3, 3), stride=2, **SAME),
    "two teams": problem((30, 64, 56, 56), (256, 64, 1, 1)),
    "few tiles": problem((1, 512, 7, 7), (192, 512, 3, 3), **SAME),
    "dilated": problem((3, 64, 33, 33), (40, 64, 3, 3), dilation=2, begin=2, end=2),
    "3-d, stride 2": problem((2, 32, 9, 12, 11), (64, 32, 3, 3, 3), stride=2, **SAME),
    "1-d": problem((3, 64, 333), (50, 64, 5), dilation=3, begin=6, end=6),
    "groups": problem((2, 128, 9, 11), (96, 64, 3, 3), groups=2, **SAME),
}
# Images of all alignments, whose pixels lie side by side: of tiles' parts some lie in two images or more.
IMAGES = {
    "1x1 images": problem((70, 64, 1, 1), (40, 64, 1, 1)),
    "2x2 images": problem((70, 64, 2, 2), (72, 64, 3, 3), **SAME),
    "7x7 images": problem((37, 72, 7, 7), (160, 72, 1, 1)),
    "14x14 images": problem((9, 32, 14, 14), (144, 32, 1, 1)),
    "15x16 images": problem((5, 40, 15, 16), (130, 40, 3, 3), **SAME),
    "28x28 images": problem((6, 33, 28, 28), (64, 33, 3, 3), **SAME),
    "1x1, stride 2": problem((6, 96, 15, 14), (80, 96, 1, 1), stride=2),
    "1x1, strides 3 and 1": problem((2, 24, 31, 16), (40, 24, 1, 1), stride=(3, 1)),
    "2x2 of stride 2, transposed": problem((9, 64, 14, 13), (64, 96, 2, 2), transposed=True, stride=2),
    "4x4 of stride 2, transposed": problem((9, 72, 8, 8), (72, 130, 4, 4), transposed=True, stride=2, **SAME),
    "odd rows, transposed": problem((9, 64, 7, 7), (64, 40, 3, 3), transposed=True, stride=2),
    "odd planes, transposed": problem(
        (3, 32, 3, 6, 7), (32, 40, 3, 2, 2), transposed=True, stride=(1, 2, 2), begin=(1, 0, 0), end=(1, 0, 0)
    ),
    "1-d of stride 8, transposed": problem(
        (3, 64, 270), (64, 40, 16), transposed=True, stride=8, begin=4, end=4
    ),
    "1x1 beside pixels": problem((3, 32, 8, 8), (40, 32, 1, 1), stride=2, begin=0, end=2),
}
# Whose rows of pixels begin at multiples of 16 bytes, and that taps do not move along: read as they lie.
# Of the last two results rows do not begin so.
LINES = {
    "1x1 of 16x24": problem((40, 48, 16, 24), (250, 48, 1, 1)),
    "1x1 of 8x8": problem((61, 40, 8, 8), (96, 40, 1, 1)),
    "1x1 of few filters": problem((9, 136, 40, 32), (24, 136, 1, 1)),
    "1x1 of 320 filters": problem((5, 36, 32, 48), (320, 36, 1, 1)),
    "1x1 of a long gemm_k": problem((9, 1024, 16, 16), (192, 1024, 1, 1)),
    "3x1": problem((13, 72, 19, 64), (136, 72, 3, 1), begin=(1, 0), end=(1, 0)),
    "5x1, dilated": problem((6, 40, 33, 24), (64, 40, 5, 1), dilation=(3, 1), begin=(6, 0), end=(6, 0)),
    "3x3x1": problem((3, 64, 9, 12, 32), (96, 64, 3, 3, 1), begin=(1, 1, 0), end=(1, 1, 0)),
    "1x1 in groups": problem((18, 128, 24, 16), (96, 64, 1, 1), groups=2),
    "1-d": problem((15, 96, 344), (80, 96, 1)),
    "transposed, 3x1": problem((18, 64, 9, 64), (64, 48, 3, 1), transposed=True, begin=(1, 0), end=(1, 0)),
    "1x1 of a width of 64": problem((9, 64, 33, 64), (72, 64, 1, 1), end=(0, 3)),
    "3x1, wider": problem((10, 64, 11, 160), (72, 64, 3, 1), end=(2, 1)),
}
TILES |= {
    f"{name}, channels_last": replace(conv, **LAST) for name, conv in TILES.items() if len(conv.input) > 3
}

# What these kernels do not take of those that others do, by the problem's name.
REFUSED = {
    "a phase meets no tap": ("1x1, stride 2",),
    "there are more phases than maps for the copy engine": ("stride (3, 4)", "stride 6, one tap"),
}


@pytest.fixture(autouse=True)
def kept(kept_files):
    """A compiler whose work is kept in a directory of its own."""


def plan_of(conv, capability=(9, 0), compile="always"):
    given = fuzz_conv.make(conv, torch.device("cpu"))
    return fuzz_conv.plan_of(conv, given, "sm90_im2col", capability, compile)


@pytest.mark.parametrize("math", ["tf32", "bf16", "fp16"])
def test_every_math_is_compiled(math, nvrtc):
    kernel = plan_of(replace(TILES["3x3"], math=math)).kernel
    assert kernel.startswith(f"fprop_sm90_{math}_turned_im2col_") and kernel.endswith("_f32_compiled")


@pytest.mark.parametrize("epilogue", [CHAIN, DAG], ids=["chain", "dag"])
@pytest.mark.parametrize("name", ["3x3", "24 filters, channels_last", "few tiles", "1-d"])
def test_every_epilogue_is_compiled(name, epilogue, nvrtc):
    program, operands = epilogue
    plan = plan_of(replace(TILES[name], program=program, operands=operands))
    assert plan.kernel.endswith("_f32_compiled")
    assert plan.why_kernel == "im2col kernels of sm_90a are asked for"


def test_what_is_copied_first(nvrtc):
    """NCHW, and what the products do not multiply as it is; the copy is part of the workspace."""
    in_place, turned = plan_of(TILES["3x3, channels_last"]), plan_of(TILES["3x3"])
    assert "_tf32_im2col_" in in_place.kernel and "_tf32_turned_im2col_" in turned.kernel
    size = 9 * 64 * 14 * 14 * 4
    assert turned.workspace_bytes - in_place.workspace_bytes >= size > in_place.workspace_bytes
    converted = plan_of(replace(TILES["3x3, channels_last"], math="bf16"))
    assert "_bf16_turned_im2col_" in converted.kernel and converted.workspace_bytes >= size // 2


@pytest.mark.parametrize("name", LINES)
def test_what_is_read_as_it_lies(name, nvrtc):
    types = {"dtype": "bfloat16", "math": "bf16", "output_dtype": "bfloat16"}
    for conv in (LINES[name], replace(LINES[name], **types)):
        plan = plan_of(conv)
        assert "_im2col_lines_" in plan.kernel
        assert "_shared_" in plan.kernel or plan.workspace_bytes == 0


@pytest.mark.parametrize(
    ("name", "part"),
    [("few tiles, channels_last", "_shared"), ("two teams, channels_last", "_2_"), ("3x3", "_1_")],
)
def test_who_multiplies(name, part, nvrtc):
    assert part in plan_of(TILES[name]).kernel


def test_what_is_predicted(nvrtc):
    """More images take longer, and about as much longer where there are many; a copy of the input, too."""

    def predicted(batch, layout="channels_last", channels=256):
        conv = problem((batch, channels, 28, 28), (256, channels, 3, 3), **SAME)
        return plan_of(replace(conv, input_layout=layout, output_layout=layout)).predicted.us

    one, some, many = predicted(1), predicted(64), predicted(256)
    assert 3 < one < some < many
    assert 3.5 < many / some < 4.1
    # Products alone at the card's rate of TF32, which is 494.7 TFLOP/s, and at half of it.
    flops = 2 * 256 * 28 * 28 * 256 * 256 * 9
    assert flops / 494.7e6 < many < 2 * flops / 494.7e6
    assert predicted(64, "contiguous") > some + 10


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
    "other padding": (((9, 0), "always"), {"mode": "reflect"}, "the copy engine pads with zeros only"),
    "a norm": (
        ((9, 0), "always"),
        {"program": "v1 = group_norm(v0, 8)"},
        "a GroupNorm's statistics are of tiles of one image",
    ),
    "narrow groups": (
        ((9, 0), "always"),
        {"groups": 4, "weight": (128, 16, 3, 3)},
        "a group's channels do not fill rows of 128 bytes",
    ),
    "a long stride": (
        ((9, 0), "always"),
        {"stride": (9, 1)},
        "strides of more than 8 are too large for the copy engine",
    ),
    "far taps": (
        ((9, 0), "always"),
        {"dilation": (1, 140), "begin": (0, 140), "end": (0, 140)},
        "the copy engine moves boxes no farther beside the input than its padding and taps ask for",
    ),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_is_not_taken(case, nvrtc):
    asked, change, reason = NOT_TAKEN[case]
    if _core.why_no_conv_kernels(*asked[0]):
        pytest.skip("this build has no kernels for the card")
    assert plan_of(replace(TILES["3x3"], **change), *asked) == reason


@pytest.mark.parametrize("reason", REFUSED)
def test_phases_that_are_not_taken(reason, nvrtc):
    for name in REFUSED[reason]:
        assert plan_of(TRANSPOSED[name]) == reason


# ---- On a card


def check(conv, card):
    assert fuzz_conv.check(replace(conv, family="sm90_im2col"), card) == (True, "")


TAKEN = {
    name: conv
    for name, conv in (ORDINARY | TRANSPOSED | LINEAR).items()
    if conv.groups == 1 and conv.mode == "zeros" and 0 not in conv.output + conv.input
}


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", [EXACT_CHAIN, EXACT_DAG], ids=["chain", "dag"])
@pytest.mark.parametrize("name", [*list(TAKEN)[::3], *list(LINEAR)[1::3]])
def test_results(name, epilogue, hopper):
    program, operands = epilogue
    conv = replace(TAKEN[name], program=program, operands=operands, family="sm90_im2col")
    ran, finding = fuzz_conv.check(conv, hopper)
    assert finding == "" if ran else "copy engine" in finding or finding in REFUSED


@pytest.mark.gpu
@pytest.mark.parametrize("math", ["tf32", "bf16"])
@pytest.mark.parametrize("name", TILES)
def test_results_of_tiles(name, math, hopper):
    """With a residual like the output, and one of another layout."""
    program = "v1 = add(v0, b0); v2 = relu(v1); v3 = sub(v2, b1)"
    layouts = (TILES[name].output_layout, "sliced")
    operands = tuple(("full", "float32", layout) for layout in layouts)
    check(replace(TILES[name], math=math, program=program, operands=operands), hopper)


@pytest.mark.gpu
@pytest.mark.parametrize("residual", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", [name for name in TILES if "channels_last" in name])
def test_results_of_16_bits(name, residual, hopper):
    """Slices of half as many bytes; a residual of another type is no slice."""
    operands = (("full", residual, "channels_last"),)
    types = {"dtype": "bfloat16", "math": "bf16", "output_dtype": "bfloat16"}
    check(replace(TILES[name], program=RESIDUAL, operands=operands, **types), hopper)


@pytest.mark.gpu
@pytest.mark.parametrize("math", ["tf32", "bf16", "narrow"])
@pytest.mark.parametrize("name", [*IMAGES, *LINES])
def test_images_side_by_side(name, math, hopper):
    """With a residual that lies like the output, which comes and goes slice by slice."""
    types = {"math": math.replace("narrow", "bf16")}
    if math == "narrow":
        types |= {"dtype": "bfloat16", "output_dtype": "bfloat16"}
    operands = (("full", types.get("dtype", "float32"), "contiguous"),)
    check(replace((IMAGES | LINES)[name], program=RESIDUAL, operands=operands, **types), hopper)


@pytest.mark.gpu
@pytest.mark.parametrize("residual", ["int32", "float64"])
@pytest.mark.parametrize("name", ["3x3", "many tiles", "24 filters, channels_last"])
def test_a_residual_of_another_kind(name, residual, hopper):
    operands = (("full", residual, TILES[name].output_layout),)
    check(replace(TILES[name], program=RESIDUAL, operands=operands), hopper)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sm90_im2col", "sm90_compiled"])
@pytest.mark.parametrize("name", ["7x7", "odd rows", "7x7, channels_last"])
def test_a_number_of_each_image(name, family, hopper):
    """Also where words of pixels begin in one image and end in the next."""
    operands = (("image", "float32", "contiguous"), ("plane", "float32", "contiguous"))
    program = "v1 = add(v0, b0); v2 = mul(v1, 2.0); v3 = add(v2, b1)"
    conv = replace(LINEAR[name], program=program, operands=operands, family=family)
    assert fuzz_conv.check(conv, hopper) == (True, "")


@pytest.mark.gpu
def test_a_residual_at_an_odd_address(hopper, monkeypatch):
    """It is read where it is, and nothing is written beside the result."""
    force(monkeypatch, "sm90_im2col")
    monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: True)
    last = {"memory_format": torch.channels_last}
    x = integers(4, 64, 14, 14, device=hopper).contiguous(**last)
    weight, memory = integers(64, 64, 3, 3, device=hopper), integers(1 + 4 * 14 * 14 * 64, device=hopper)
    odd = memory[1:].view(4, 14, 14, 64).permute(0, 3, 1, 2)
    even = odd.clone(**last)
    results = [
        epiconv.fused_conv_epilogue(
            x, weight, padding=1, epilogue=[ops.add(residual)], precision="tf32", algorithm="implicit_gemm"
        )
        for residual in (odd, even)
    ]
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1) + even
    for result in results:
        assert torch.equal(result.double(), expected)


def fused(x, weight):
    return epiconv.fused_conv_epilogue(
        x, weight, epilogue=[ops.gelu()], precision="tf32", algorithm="implicit_gemm"
    )


@pytest.mark.gpu
def test_the_same_bits_each_time(hopper, monkeypatch):
    """Also where teams share tiles."""
    force(monkeypatch, "sm90_im2col")
    monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: True)
    x, weight = torch.randn(1, 512, 9, 9, device=hopper), torch.randn(192, 512, 3, 3, device=hopper)
    plan = epiconv.explain(x, weight, epilogue=[ops.gelu()], precision="tf32", algorithm="implicit_gemm")
    assert "_shared" in plan.kernel
    first = fused(x, weight)
    assert all(torch.equal(fused(x, weight), first) for _ in range(20))


@pytest.mark.gpu
def test_in_a_graph_behind_each_other(hopper, monkeypatch):
    """Launches overlap, and each sees what the one before it has written."""
    force(monkeypatch, "sm90_im2col")
    monkeypatch.setattr(epiconv.compiler, "is_wanted", lambda: True)
    x, weight = integers(4, 64, 14, 14, device=hopper), integers(64, 64, 1, 1, device=hopper).sign()
    arguments = {"epilogue": [ops.clamp(-2.0, 2.0)], "precision": "tf32", "algorithm": "implicit_gemm"}

    def chain():
        y = x
        for _ in range(6):
            y = epiconv.fused_conv_epilogue(y, weight, **arguments)
        return y

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = chain()
    for _ in range(3):
        x.copy_(integers(4, 64, 14, 14, device=hopper))
        graph.replay()
        expected = x.double()
        for _ in range(6):
            expected = torch.nn.functional.conv2d(expected, weight.double()).clamp(-2.0, 2.0)
        assert torch.equal(result.double(), expected)
