"""Training steps: forward and backward pass with every gradient, `python -m epiconv.bench --training`."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from epiconv.bench.peers import EPICONV, PEERS, Case, Function, Unavailable, dtype_settings, make_case
from epiconv.bench.problems import Problem
from epiconv.bench.timing import WARM_UP_SECONDS, interleave, stopwatch_for

TRAINING_PEERS: Final = ("eager", "compile", EPICONV)
"""Those that compute gradients, in the order of the table."""

Step = Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class TrainingStep:
    """One peer's step of one case: the result, and the gradients of input, weight, bias and every operand.

    Attributes:
        problem, dtype, layout: which case.
        peer: who computes it.
        ms: of a step.
        peak_bytes: that a step allocates at most besides what is there before; None on the CPU.
        difference: the largest one of a gradient from eager's in that dtype, over eager's largest value.
    """

    problem: str
    dtype: str
    layout: str
    peer: str
    ms: float
    peak_bytes: int | None
    difference: float


def training_steps(
    problem: Problem,
    dtype_word: str,
    layout: str,
    device: torch.device,
    peers: Sequence[str],
    seconds: float,
) -> list[TrainingStep]:
    """Times the training steps of a case in turns.

    Args:
        problem: what is computed.
        dtype_word: of `peers.DTYPES`.
        layout: of `peers.LAYOUTS`.
        device: where.
        peers: names of `TRAINING_PEERS`; those that cannot run are left out.
        seconds: to measure for.

    Returns:
        A row for each peer.

    Raises:
        Unavailable: the layout does not exist for the problem's rank.

    Example:
        >>> training_steps(problem.reduced(), "fp32", "nchw", cpu, ["eager", "epiconv"], 1.0)[0].ms
    """
    with dtype_settings(dtype_word):
        case = make_case(problem, dtype_word, layout, device)
        inputs = _require_grad(case)
        gradient = torch.randn_like(PEERS["eager"].build(case)[0](*case.argument_sets[0]))
        expected = _step(PEERS["eager"].build(case)[0], case, inputs, gradient)()
        steps: dict[str, Step] = {}
        measured: dict[str, tuple[int | None, float]] = {}
        for name in peers:
            try:
                step = _step(PEERS[name].build(case)[0], case, inputs, gradient)
                difference = _difference(step(), expected)  # the first run, which compiles
                measured[name] = _peak_bytes(step, device), difference
            except (Unavailable, NotImplementedError):
                continue
            steps[name] = step
        warm_up = WARM_UP_SECONDS if device.type == "cuda" else 0.1
        timings = interleave(steps, stopwatch_for(device), seconds=seconds, warm_up=warm_up)
    return [
        TrainingStep(problem.id, dtype_word, layout, name, timing.seconds * 1e3, *measured[name])
        for name, timing in timings.items()
    ]


def _require_grad(case: Case) -> list[torch.Tensor]:
    """All tensors of a case, which want a gradient from now on."""
    given = [*case.argument_sets[0], case.weight, *([] if case.bias is None else [case.bias])]
    return [tensor.requires_grad_() for tensor in given if tensor.is_floating_point()]


def _step(function: Function, case: Case, inputs: Sequence[torch.Tensor], gradient: torch.Tensor) -> Step:
    def step() -> Sequence[torch.Tensor]:
        found: Sequence[torch.Tensor] = torch.autograd.grad(
            function(*case.argument_sets[0]), inputs, gradient, allow_unused=True, materialize_grads=True
        )
        return found

    return step


def _difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        scale = max(float(other.abs().max()), torch.finfo(other.dtype).tiny)
        worst = max(worst, float((one.double() - other.double()).abs().max()) / scale)
    return worst


def _peak_bytes(step: Step, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
