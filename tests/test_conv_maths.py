"""What the path "implicit_gemm" multiplies, and of which family its kernels are."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fake_conv_core import at_offset, ran
from python_process import run_python

import epiconv
from epiconv import implicit_gemm, plan


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


X, WEIGHT = integers(2, 4, 8, 7), integers(6, 4, 3, 3)
MORE = 1 + 2.0**-12  # which float32 keeps, and nothing else
COARSE = F.conv2d(X, WEIGHT)
EXPECTED = {"ieee": COARSE * MORE, "tf32": COARSE, "bf16": COARSE, "fp16": COARSE}
FINE = X * MORE


@pytest.mark.parametrize("algorithm", ["auto", "implicit_gemm"])
def test_torch_s_setting_is_read_in_each_call(algorithm, core, setting):
    for value, math in (("tf32", "tf32"), ("ieee", "ieee"), ("tf32", "tf32"), ("none", "ieee")):
        setting(value)
        assert torch.equal(ran(core, FINE, WEIGHT, algorithm=algorithm), EXPECTED[math])
        assert core.runs[-1][0].math == math
    assert len(core.packs) == 2  # one for each math


def test_each_math_and_alignment_is_planned_once(core, setting):
    unaligned = at_offset(FINE, 8)
    for _ in range(3):
        for math in ("ieee", "tf32"):
            setting(math)
            for x in (FINE, unaligned):
                assert torch.equal(epiconv.fused_conv_epilogue(x, WEIGHT), EXPECTED[math])
    planned = sorted((plan.math, plan.input_alignment) for plan in core.plans)
    assert planned == [("ieee", 8), ("ieee", 16), ("tf32", 8), ("tf32", 16)]
    assert len(core.packs) == 2


@pytest.mark.parametrize("precision", EXPECTED)
def test_a_precision_counts_more_than_the_setting(precision, core, setting):
    for value in ("tf32", "ieee"):
        setting(value)
        assert torch.equal(ran(core, FINE, WEIGHT, precision=precision), EXPECTED[precision])
        assert core.runs[-1][0].math == precision
        explained = epiconv.explain(FINE, WEIGHT, precision=precision)
        assert explained.math == {"ieee": "fp32"}.get(precision, precision)
    assert len(core.packs) == 1


def test_the_setting_is_for_float32(core, setting):
    for value in ("tf32", "ieee"):
        setting(value)
        assert torch.equal(ran(core, X.half(), WEIGHT.half()).float(), COARSE)
        assert core.runs[-1][0].math == "fp16"


def test_what_is_explained_follows_the_setting_on_a_card(setting):
    on_a_card = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    for value, math in (("tf32", "tf32"), ("ieee", "fp32"), ("none", "fp32")):
        setting(value)
        assert plan._math(on_a_card, None) == math


@pytest.mark.parametrize("refused", ["ieee", "tf32"])
def test_a_math_that_is_refused(refused, core, setting):
    """It says nothing about the other one, whichever of them is planned first."""
    core.refuse = lambda plan: f"no kernel multiplies {plan.math}" if plan.math == refused else ""
    other = "tf32" if refused == "ieee" else "ieee"
    for _ in range(2):
        setting(refused)
        runs = len(core.runs)
        assert torch.equal(epiconv.fused_conv_epilogue(X, WEIGHT), COARSE)
        assert len(core.runs) == runs
        explained = epiconv.explain(X, WEIGHT)
        assert explained.path == "cpu"
        assert dict(explained.refused)["implicit_gemm"] == f"no kernel multiplies {refused}"
        for function in (epiconv.fused_conv_epilogue, epiconv.explain):
            with pytest.raises(NotImplementedError, match=f"cannot run: no kernel multiplies {refused}; "):
                function(X, WEIGHT, algorithm="implicit_gemm")
        setting(other)
        for algorithm in ("auto", "implicit_gemm"):
            assert torch.equal(ran(core, FINE, WEIGHT, algorithm=algorithm), EXPECTED[other])


@pytest.mark.parametrize("family", ["any", "sm80", "sm90", "sm90_compiled", "sm90_im2col"])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
def test_the_core_is_told_the_card_and_the_family(capability, family, core, monkeypatch):
    monkeypatch.setattr(implicit_gemm, "FAMILY", family)
    core.capability = capability
    ran(core, X, WEIGHT)
    made = core.runs[-1][0]
    assert (made.capability, made.family) == (capability, family)


READ_AGAIN = """
import importlib, os
from epiconv import implicit_gemm
print(implicit_gemm.FAMILY)
for word in ("any", "sm80", "sm90", "sm90_compiled", "sm90_im2col"):
    os.environ["EPICONV_KERNELS"] = word
    print(implicit_gemm.FAMILY, importlib.reload(implicit_gemm).FAMILY)
"""


def test_the_family_is_read_when_the_module_is_imported():
    done = run_python(READ_AGAIN)
    words = ["any", "any", "sm80", "sm90", "sm90_compiled", "sm90_im2col"]
    before_and_after = [f"{before} {after}" for before, after in pairwise(words)]
    assert done.stdout.splitlines() == ["any", *before_and_after], done.stderr


@pytest.mark.parametrize("word", ["sm70", "", "SM80"])
def test_a_family_that_is_not_there(word):
    done = run_python("import epiconv", EPICONV_KERNELS=word)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    known = "any, sm80, sm90, sm90_compiled, sm90_im2col"
    assert last == f"ValueError: EPICONV_KERNELS is {word!r}, but it is one of {known}"
