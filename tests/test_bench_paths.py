"""The benchmark's peers that make one path of this library run, and its rule of how exact a peer is."""

import pytest
import torch

import epiconv
from epiconv.bench import accuracy, ceilings, report, results
from epiconv.bench.measurement import measure_case
from epiconv.bench.peers import FORCED_PATHS, PEERS, Unavailable, make_case
from epiconv.bench.problems import Problem, parse_problem

CPU = torch.device("cpu")
SMALL = parse_problem(
    "2x8x9x9", 6, "3", epilogue="v1 = relu(v0); v2 = add(v1, b0)", operands=["6x1x1"], stride=2
)


def quick(problem: Problem, peers: list[str], **options) -> results.CaseResult:
    card = ceilings.Ceilings(1e10, "made up")
    return measure_case(problem, "fp32", "nchw", CPU, peers, card, seconds=0.0, warm_up=0.0, **options)


def test_paths_say_why_they_cannot_run():
    result = quick(SMALL, ["eager", *FORCED_PATHS, "epiconv"])
    assert result.unavailable["epiconv_cudnn"] == "the tensors are on cpu"
    for name in ("epiconv_sm90", "epiconv_sm80"):
        assert "the tensors are on cpu" in result.unavailable[name]
    assert result.best_path is None and result.ok


@pytest.mark.parametrize("family", ["sm90", "sm80"])
def test_a_path_runs_kernels_of_its_family_and_no_other_call_does(family, core, setting):
    setting("ieee")
    case = make_case(SMALL, "fp32", "nchw", CPU, input_sets=2)
    x, bias = case.argument_sets[1]
    with torch.no_grad():
        forced, own_case = PEERS[f"epiconv_{family}"].build(case)
        plain, _ = PEERS["epiconv"].build(case)
        results = [function(x, bias) for function in (plain, forced, plain, forced)]
        expected = PEERS["eager"].build(case)[0](x, bias)
    assert own_case is case
    assert [plan.family for plan, _, _ in core.runs] == ["any", family, "any", family]
    assert [plan.compile for plan in core.plans if plan.family == family] == ["never"]
    assert epiconv.implicit_gemm.FAMILY == "any"
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_a_path_that_the_core_refuses_says_so(core):
    core.refuse = lambda plan: "rows of 36 bytes" if plan.family == "sm90" else ""
    case = make_case(SMALL, "fp32", "nchw", CPU)
    with pytest.raises(Unavailable, match="rows of 36 bytes"):
        PEERS["epiconv_sm90"].build(case)
    with torch.no_grad():
        PEERS["epiconv_sm80"].build(case)[0](*case.argument_sets[0])
    assert [plan.family for plan, _, _ in core.runs] == ["sm80"]


def test_the_best_path_of_a_case(core, setting):
    setting("ieee")
    core.refuse = lambda plan: "not for it" if plan.family.startswith("sm90") else ""
    result = quick(SMALL, ["eager", *FORCED_PATHS, "epiconv"])
    assert set(FORCED_PATHS) - set(result.unavailable) == {"epiconv_sm80"}
    best, own = result.row("epiconv_sm80"), result.row("epiconv")
    assert result.best_path == best and best.check.ok and best.check.batch_difference is None
    assert result.as_json()["best_path"] == {
        "peer": "epiconv_sm80", "ms": best.ms, "ratio": pytest.approx(best.ms / own.ms),
    }  # fmt: skip
    assert result.best_peer.peer == "eager"  # paths do not compete


def test_times_of_this_library_are_not_kept(core):
    first = quick(SMALL, ["eager", "convolution", "implicit_gemm", "epiconv_sm80", "epiconv"])
    key = results.case_key(SMALL, "fp32", "nchw")
    kept = report.kept_times([(key, first)], CPU)["ms"]
    assert list(kept[key]) == ["eager", "convolution"]
    kept[key]["epiconv_sm80"] = 1e6  # of an older file
    second = quick(SMALL, ["eager", "convolution", "epiconv_sm80", "epiconv"], kept=kept)
    assert [row.peer for row in second.rows if row.reused] == ["convolution"]


def test_tf32_counts_only_where_a_card_may_use_it(setting):
    setting("tf32")
    assert not accuracy.multiplies_tf32(torch.zeros(1))

    def unwanted():
        raise AssertionError("computed for nothing")

    assert accuracy.plain_error(0.25, torch.zeros(1), unwanted, torch.ones(1)) == 0.25


def test_plain_error_is_the_larger_of_eager_s_and_tf32_s(monkeypatch):
    monkeypatch.setattr(accuracy, "multiplies_tf32", lambda x: True)
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for eager_error, larger in ((0.1, 0.25), (0.5, 0.5)):
        given = accuracy.plain_error(eager_error, torch.zeros(1), lambda: expected + 0.5, expected)
        assert given == larger


def test_case_in_tf32_is_rounded_before_it_is_multiplied():
    case = make_case(SMALL, "fp32", "nchw", CPU)
    x, bias = case.argument_sets[0]
    x[:], bias[:], case.weight[:], case.bias[:] = 1 + 2.0**-12, 0.0, 1 + 2.0**-10, 0.0
    exact, rounded = case.float64_result((0,)), case.float64_result((0,), "tf32")
    assert torch.equal(exact, torch.full_like(exact, 72 * (1 + 2.0**-12) * (1 + 2.0**-10)))
    assert torch.equal(rounded, torch.full_like(exact, 72 * (1 + 2.0**-10)))


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_right_beside_an_eager_that_does_not_use_it(allowed, core, setting, monkeypatch):
    setting("tf32")  # the stand-in multiplies so, torch's convolution on a CPU does not
    monkeypatch.setattr(accuracy, "multiplies_tf32", lambda x: allowed)
    result = quick(SMALL, ["eager", "epiconv"])
    check = result.row("epiconv").check
    assert result.row("eager").check.max_error < 1e-6
    assert 1e-5 < check.max_error < 1e-3
    assert check.ok == result.ok == allowed
