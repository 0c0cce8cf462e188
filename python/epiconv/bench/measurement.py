"""One case: its peers built, checked against float64, and timed in turns."""

import gc
from collections.abc import Callable, Iterable, Mapping

import torch

from epiconv.bench import accuracy, cold, timing
from epiconv.bench.ceilings import Ceilings
from epiconv.bench.peers import (
    BARE_CONVOLUTION,
    DTYPES,
    EPICONV,
    PEERS,
    Case,
    Function,
    Unavailable,
    dtype_settings,
    explain_case,
    make_case,
    math_name,
)
from epiconv.bench.predicted import predicted_us
from epiconv.bench.problems import Problem
from epiconv.bench.results import CaseResult, Check, Control, case_key, make_rows

Progress = Callable[[str, float], None]
Built = dict[str, tuple[Function, Case]]

_ROUGH_ROUNDS = 3


def measure_case(
    problem: Problem,
    dtype_word: str,
    layout: str,
    device: torch.device,
    peers: Iterable[str],
    ceilings: Ceilings,
    *,
    seconds: float,
    warm_up: float = timing.WARM_UP_SECONDS,
    with_cold: bool = False,
    kept: Mapping[str, Mapping[str, float]] | None = None,
    progress: Progress = lambda stage, fraction: None,
) -> CaseResult:
    """Builds, checks and times the peers of one case; frees all of it afterwards.

    Args:
        problem: what is computed.
        dtype_word: of `peers.DTYPES`.
        layout: of `peers.LAYOUTS`.
        device: where.
        peers: names of `peers.PEERS`.
        ceilings: of the device.
        seconds: to measure for, after warming up.
        warm_up: seconds of load before, at most; no more than are measured.
        with_cold: whether to time calls with a cold cache too, on CUDA.
        kept: milliseconds by case key and peer, from an earlier run; those peers are not timed again, save
            one as a control.
        progress: called with what is going on and the fraction done.

    Returns:
        The result; peers that cannot run are in `unavailable`.

    Raises:
        Unavailable: the layout does not exist for the problem's rank.

    Example:
        >>> measure_case(problem.reduced(), "fp32", "nchw", cpu, ["eager", "epiconv"], ceilings, seconds=1)
    """
    names = list(dict.fromkeys(peers))
    known = (kept or {}).get(case_key(problem, dtype_word, layout), {})
    kept_ms = {name: known[name] for name in names if name in known and not PEERS[name].own}
    control_name = next((name for name in ("eager", *kept_ms) if name in kept_ms), None)
    control_ms = kept_ms.pop(control_name) if control_name is not None else 0.0
    itemsize = DTYPES[dtype_word].itemsize
    input_sets = _input_sets(problem, itemsize, device)
    images = accuracy.sample_images(problem.input[0])
    try:
        with torch.no_grad(), dtype_settings(dtype_word):
            math = math_name(dtype_word, device)
            progress("inputs", 0.0)
            case = make_case(problem, dtype_word, layout, device, input_sets)
            unavailable: dict[str, str] = {}
            built = _build([name for name in names if name not in kept_ms], case, unavailable, progress)
            checks = _check(built, case, images, progress)
            plan: dict[str, str] | None = None
            if EPICONV in built:
                explained = explain_case(case)
                why = explained.why or dict(explained.refused).get("implicit_gemm", "")
                plan = {"path": str(explained.path), "kernel": str(explained.kernel), "why": str(why)}
            predictions = predicted_us(case, built)
            timings, graph_replay = _time(built, case, unavailable, seconds, min(warm_up, seconds), progress)
            timed = {name: built[name] for name in timings}
            cold_timings = _time_cold(timed, case.device, unavailable, progress) if with_cold else {}
            del built, timed, case
    finally:
        _release(device, compiled=any(name.startswith("compile") for name in names))
    control = None
    if control_name is not None and control_name in timings:
        control = Control(control_name, control_ms, timings[control_name].seconds * 1e3)
    floor, floor_by = ceilings.floor(problem, itemsize, math)
    return CaseResult(
        problem=problem.id,
        name=problem.name,
        op=problem.op,
        input=problem.input,
        output=problem.output,
        program=problem.program.text,
        network=problem.network,
        half=problem.half,
        dtype=dtype_word,
        layout=layout,
        math=math,
        flops=problem.flops,
        bytes=problem.bytes(itemsize),
        floor_ms=floor * 1e3,
        floor_by=floor_by,
        graph_replay=graph_replay,
        input_sets=input_sets,
        error_images=images,
        plan=plan,
        rows=make_rows(timings, kept_ms, checks, predictions, problem, itemsize, floor, cold_timings),
        unavailable=unavailable,
        control=control,
    )


def _input_sets(problem: Problem, itemsize: int, device: torch.device) -> int:
    """How many sets of inputs take turns: a layer's input was just written by the layer before, so that what
    fits the cache is found there; others come from memory."""
    if problem.network:
        return 1
    return timing.input_set_count(problem.bytes(itemsize), timing.l2_bytes(device))


def _reason(error: Exception) -> str:
    """The first line of an error, short enough for a table."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text[:200] if isinstance(error, Unavailable) else f"{type(error).__name__}: {text}"[:200]


def _build(names: Iterable[str], case: Case, unavailable: dict[str, str], progress: Progress) -> Built:
    """Prepares the peers and runs each once, which is when torch.compile compiles."""
    built: Built = {}
    for name in names:
        progress(f"{name}: first run", 0.0)
        try:
            function, own_case = PEERS[name].build(case)
            function(*own_case.argument_sets[0])
        except Exception as error:  # whatever a peer fails with, the others go on
            unavailable[name] = _reason(error)
        else:
            built[name] = (function, own_case)
    return built


def _check(built: Built, case: Case, images: tuple[int, ...], progress: Progress) -> dict[str, Check]:
    """Compares every peer with float64 on some images, and epiconv with eager on all of them."""
    progress("float64", 0.0)
    expected = case.float64_result(images)
    eager_function, eager_case = PEERS["eager"].build(case)
    eager = eager_function(*eager_case.argument_sets[0])
    eager_error = accuracy.max_error(eager[list(images)], expected)
    plain_error = accuracy.plain_error(
        eager_error, case.argument_sets[0][0], lambda: case.float64_result(images, "tf32"), expected
    )
    checks: dict[str, Check] = {}
    for name, (function, own_case) in built.items():
        if name == BARE_CONVOLUTION:
            continue
        progress(f"{name}: error", 0.0)
        result = function(*own_case.argument_sets[0])
        error = accuracy.max_error(result[list(images)], expected)
        ok = accuracy.is_accurate(error, plain_error, case.dtype)
        difference = None
        if name == EPICONV:
            difference = accuracy.max_difference(result, eager)
            ok = ok and accuracy.agrees_with_eager(difference, error, plain_error, case.dtype)
        checks[name] = Check(error, difference, ok)
        del result
    return checks


def _time(
    built: Built, case: Case, unavailable: dict[str, str], seconds: float, warm_up: float, progress: Progress
) -> tuple[dict[str, timing.Timing], bool]:
    """Times the peers in turns; as CUDA graphs, all of them, when one is so fast that launching shows."""
    stopwatch = timing.stopwatch_for(case.device)
    calls: Mapping[str, Callable[[], object]] = _rotations(built)
    runs = len(case.argument_sets)
    graph_replay = False
    if case.device.type == "cuda" and calls:
        progress("rough times", 0.0)
        rough = timing.rough_seconds(calls, stopwatch, _ROUGH_ROUNDS)
        fastest = min(rough.values()) / runs
        if fastest < timing.SMALL_PROBLEM_SECONDS:
            graph_replay = True
            repeats = timing.graph_repeats(fastest, runs)
            runs *= repeats
            calls = _capture(_rotations(built, repeats=repeats), case.device, unavailable, progress)
    timings = timing.interleave(
        calls,
        stopwatch,
        seconds=seconds,
        runs=runs,
        warm_up=warm_up if case.device.type == "cuda" else min(warm_up, 0.1),
        progress=lambda fraction: progress("timing", fraction),
    )
    return timings, graph_replay


def _time_cold(
    built: Built, device: torch.device, unavailable: dict[str, str], progress: Progress
) -> dict[str, timing.Timing]:
    """Times the peers with a cold cache, as CUDA graphs of one call."""
    reasons: dict[str, str] = {}
    calls = _capture(_rotations(built, sets=1), device, reasons, progress)
    unavailable.update({f"{name}, cold": reason for name, reason in reasons.items()})
    progress("timing with a cold cache", 0.0)
    return cold.cold_times(calls, timing.stopwatch_for(device), cold.l2_flush(device))


def _rotations(built: Built, sets: int | None = None, repeats: int = 1) -> dict[str, timing.Rotation]:
    """Calls of the peers with the first `sets` sets of their arguments, or with all of them."""
    return {
        name: timing.Rotation(function, case.argument_sets[:sets], repeats)
        for name, (function, case) in built.items()
    }


def _capture(
    calls: Mapping[str, timing.Rotation],
    device: torch.device,
    unavailable: dict[str, str],
    progress: Progress,
) -> dict[str, Callable[[], object]]:
    """CUDA graphs of the calls that can be captured."""
    captured: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        progress(f"{name}: CUDA graph", 0.0)
        try:
            captured[name] = timing.CapturedCall(call, device)
        except Exception as error:  # a peer that waits for the device, or calls a library that does
            unavailable[name] = f"cannot be captured as a CUDA graph: {_reason(error)}"
    return captured


def _release(device: torch.device, compiled: bool) -> None:
    """Gives memory back between cases: garbage, cached blocks, and compiled code, which torch limits."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
