"""Bandwidth of the one-pass epilogue against a copy, `python -m epiconv.bench --elementwise`."""

from dataclasses import dataclass

import torch

from epiconv import functional
from epiconv.bench.peers import make_case, to_layout
from epiconv.bench.problems import RECIPE_IDS, Problem
from epiconv.bench.selection import find_problem
from epiconv.bench.timing import interleave, stopwatch_for


@dataclass(frozen=True)
class Bandwidth:
    """The pass over one convolution output, in place, conv bias and program together.

    Attributes:
        problem, dtype, layout: whose output it is.
        shape: of the output.
        ms: time of the pass.
        gbps: GB/s, the output read once and written once (GroupNorm does it twice).
        copy_gbps: GB/s of a device-to-device copy of the same tensor, measured in turns with it.
    """

    problem: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    ms: float
    gbps: float
    copy_gbps: float

    @property
    def percent(self) -> float:
        """Of the copy's bandwidth."""
        return 100 * self.gbps / self.copy_gbps


def recipe_problems(device: torch.device) -> tuple[Problem, ...]:
    """The recipes' problems with different programs; reduced on a CPU."""
    problems = tuple(find_problem(problem_id) for problem_id in RECIPE_IDS)
    return problems if device.type == "cuda" else tuple(problem.reduced() for problem in problems)


def pass_bandwidth(
    problem: Problem, dtype_word: str, layout: str, device: torch.device, seconds: float
) -> Bandwidth:
    """Times `functional.epilogue_pass` over a problem's output, in turns with a copy into it.

    Args:
        problem: its output shape, program and operands.
        dtype_word: of `peers.DTYPES`.
        layout: of `peers.LAYOUTS`.
        device: where.
        seconds: to measure for.

    Example:
        >>> pass_bandwidth(find_problem("kb31"), "fp32", "nchw", torch.device("cuda"), 1.0).percent
    """
    case = make_case(problem, dtype_word, layout, device)
    epilogue = problem.program(*case.argument_sets[0][1:])
    source = to_layout(
        torch.randn(problem.output, device=device, dtype=case.dtype), layout, problem.spatial_rank
    )
    y = torch.empty_like(source)

    def copy() -> None:
        y.copy_(source)  # also gives the pass fresh values: its own results would grow from pass to pass

    def one_pass() -> None:
        functional.epilogue_pass(y, epilogue, case.bias)

    with torch.no_grad():
        timings = interleave({"copy": copy, "pass": one_pass}, stopwatch_for(device), seconds=seconds)
    moved = 2 * y.numel() * y.element_size()
    return Bandwidth(
        problem=problem.id,
        dtype=dtype_word,
        layout=layout,
        shape=problem.output,
        ms=timings["pass"].seconds * 1e3,
        gbps=moved / timings["pass"].seconds / 1e9,
        copy_gbps=moved / timings["copy"].seconds / 1e9,
    )
