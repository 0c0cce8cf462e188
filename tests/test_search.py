"""What is fastest, as measured: when it is measured, what runs then, and what `explain` says of it. With a
stand-in for kernels and card; on a card with those that there are.
"""

import fake_conv_core
import pytest
import torch
import torch.nn.functional as F
from card_convolutions import integers

import epiconv
from epiconv import compiler, implicit_gemm, ops, search

X, WEIGHT = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3)
TIMES = {"sm90": 0.03, "sm90_compiled": 0.01, "sm90_im2col": 0.025, "sm80": 0.02, search.TORCH: 0.04}


@pytest.fixture
def forget(monkeypatch):
    """Nothing has been measured."""
    monkeypatch.setattr(search, "_found", {})


@pytest.fixture
def core(monkeypatch, forget):
    """The stand-in, on which everything is compiled and may be measured."""
    monkeypatch.setattr(compiler, "is_wanted", lambda: True)
    monkeypatch.setattr(compiler, "prepare", lambda: None)
    monkeypatch.setattr(search, "is_possible", lambda device: True)
    return fake_conv_core.install(monkeypatch)


@pytest.fixture
def measured(core, monkeypatch):
    """Calls of `measure`, which answers with `TIMES`, or with `times` of the calls' list."""

    class Calls(list):
        times = TIMES

    calls = Calls()

    def measure(ways, device):
        for way in ways.values():
            way()
        calls.append(tuple(ways))
        return {name: calls.times[name] for name in ways}

    monkeypatch.setattr(search, "measure", measure)
    return calls


def call(**arguments):
    return epiconv.fused_conv_epilogue(X, WEIGHT, epilogue=[ops.relu()], **arguments)


def explained(**arguments):
    return epiconv.explain(X, WEIGHT, epilogue=[ops.relu()], **arguments)


def test_the_fastest_runs(core, measured):
    result = call()
    assert core.runs[-1][0].family == "sm90_compiled"
    assert {plan.compile for plan, _, _ in core.runs} == {"always"}
    torch.testing.assert_close(result, F.conv2d(X, WEIGHT).relu(), rtol=0.01, atol=0.05)
    assert measured == [(search.TORCH, "sm90", "sm90_compiled", "sm90_im2col", "sm80")]


def test_it_is_measured_once_for_a_form(core, measured):
    call()
    call()
    assert len(measured) == 1
    call(padding=1)
    assert len(measured) == 2
    runs = len(core.runs)
    call()
    assert len(measured) == 2 and len(core.runs) == runs + 1


def test_modules_share_what_was_measured(core, measured):
    call()
    module = epiconv.nn.FusedConv2d(8, 4, 3, bias=False, epilogue=[ops.relu()])
    with torch.no_grad():
        module(X)
    assert len(measured) == 1 and core.runs[-1][0].family == "sm90_compiled"


def test_what_is_said_of_it(core, measured):
    before = explained()
    assert before.why.startswith("to be measured beside other ways by the first call; ")
    assert not measured
    call()
    after = explained()
    assert after.path == "implicit_gemm"
    assert after.why.startswith(
        "the fastest as measured: sm90_compiled 0.0100 ms, sm80 0.0200 ms, sm90_im2col 0.0250 ms, "
        "sm90 0.0300 ms, cudnn+epilogue 0.0400 ms; "
    )


def test_what_is_predicted_to_be_far_slower_is_not_measured(core, measured):
    core.predicted_us = {"sm90": 30.0, "sm90_compiled": 10.0, "sm90_im2col": 20.1, search.TORCH: 99.0}
    call()
    assert measured == [(search.TORCH, "sm90_compiled", "sm80")]  # nothing is known of the last
    assert explained().why.startswith(
        "the fastest as measured: sm90_compiled 0.0100 ms, sm80 0.0200 ms, cudnn+epilogue 0.0400 ms; "
        "predicted to be far slower: sm90_im2col, sm90; "
    )
    assert search.not_worth_measuring({}) == []


def test_torchs_convolution_may_be_fastest(core, measured):
    measured.times = TIMES | {search.TORCH: 0.001}
    call()
    runs = len(core.runs)
    result = call()
    assert len(core.runs) == runs
    assert torch.equal(result, F.conv2d(X, WEIGHT).relu())
    plan = explained()
    assert plan.path == "cpu"  # of the stand-in's tensors
    reasons = dict(plan.refused)
    assert reasons["implicit_gemm"].startswith("the fastest as measured: cudnn+epilogue 0.0010 ms, ")


def test_families_that_do_not_take_it(core, measured):
    core.refuse = lambda plan: "" if plan.family == "sm80" else "a reason"
    call()
    assert measured == [(search.TORCH, "sm80")]
    assert core.runs[-1][0].family == "sm80"


@pytest.mark.parametrize("without", ["possible", "wanted", "any family", "auto"])
def test_when_nothing_is_measured(without, core, measured, monkeypatch):
    if without == "possible":
        monkeypatch.setattr(search, "is_possible", lambda device: False)
    if without == "wanted":
        monkeypatch.setattr(compiler, "is_wanted", lambda: False)
    if without == "any family":
        monkeypatch.setattr(implicit_gemm, "FAMILY", "sm80")
    call(algorithm="implicit_gemm" if without == "auto" else "auto")
    assert not measured and len(core.runs) == 1
    assert "measured" not in explained().why or without == "auto"


def test_during_a_capture_rules_decide_and_are_not_kept(core, measured, monkeypatch):
    monkeypatch.setattr(search, "is_possible", lambda device: not core.capturing)
    core.capturing = True
    call()
    assert not measured and core.runs[-1][0].family == "any"
    core.capturing = False
    call()
    assert len(measured) == 1 and core.runs[-1][0].family == "sm90_compiled"


def test_the_setting_of_each_call(core, measured, monkeypatch):
    """Also for a form that rules leave to torch."""
    core.why_slower = "a reason"
    wanted = [False]
    monkeypatch.setattr(compiler, "is_wanted", lambda: wanted[0])
    for benchmark, runs in ((False, 0), (True, 5), (False, 5), (True, 6)):
        wanted[0] = benchmark
        call()
        assert len(core.runs) == runs
    assert len(measured) == 1


def test_settings_that_forbid_it(monkeypatch):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(search.packed_weights, "capturing", lambda: False)
    assert search.is_possible(card) and not search.is_possible(torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    assert not search.is_possible(card)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(search.packed_weights, "capturing", lambda: True)
    assert not search.is_possible(card)


def test_what_is_kept_is_bounded(forget, monkeypatch):
    monkeypatch.setattr(search, "_MOST_KEPT", 3)
    for key in range(5):
        search.remember(key, {"sm80": float(key), search.TORCH: 2.5})
    assert [search.remembered(key) is None for key in range(5)] == [True, True, False, False, False]
    assert search.remembered(2).fastest == "sm80" and search.remembered(3).fastest == search.TORCH


@pytest.mark.gpu
def test_on_a_card(card, forget, monkeypatch, tmp_path):
    """What was measured to be fastest runs, and is right, whichever it is."""
    monkeypatch.setenv("EPICONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "is_wanted", lambda: True)
    x, weight = integers(8, 16, 33, 33, device=card), integers(24, 16, 3, 3, device=card)
    bias = integers(24, device=card)

    def fused():
        return epiconv.fused_conv_epilogue(x, weight, bias, padding=1, epilogue=[ops.relu()])

    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu().float()
    assert torch.equal(fused(), expected) and torch.equal(fused(), expected)
    (found,) = search._found.values()
    assert search.TORCH in found.milliseconds and "sm80" in found.milliseconds
    assert all(0 < ms < 50 for ms in found.milliseconds.values())
    assert found.milliseconds[found.fastest] == min(found.milliseconds.values())
    plan = epiconv.explain(x, weight, bias, padding=1, epilogue=[ops.relu()])
    assert plan.path == ("cudnn+epilogue" if found.fastest == search.TORCH else "implicit_gemm")
    assert "the fastest as measured: " in plan.why + dict(plan.refused).get("implicit_gemm", "")


@pytest.mark.gpu
def test_a_graph_captured_first_is_not_measured(card, forget, monkeypatch):
    monkeypatch.setattr(compiler, "is_wanted", lambda: True)
    x, weight = integers(2, 8, 20, 20, device=card), integers(8, 8, 3, 3, device=card)
    stream = torch.cuda.Stream(card)
    F.conv2d(x, weight)  # cuDNN's own search
    torch.cuda.synchronize(card)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.relu()])
    assert not search._found
    graph.replay()
    assert torch.equal(result, F.conv2d(x.double(), weight.double()).relu().float())
