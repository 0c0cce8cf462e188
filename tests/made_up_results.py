"""Results of the benchmark as if something had been measured."""

from epiconv.bench.ceilings import Ceilings
from epiconv.bench.results import CaseResult, Check, Row
from epiconv.bench.saved import Measured

CARD = Ceilings(4e12, "made up", {"tf32": 400e12, "bf16": 800e12})


def made_up(
    problem: str, ms: dict[str, float], half: str = "tuning", cold_ms: dict[str, float] | None = None,
    predicted_us: float | None = None, **words,
) -> CaseResult:  # fmt: skip
    """A result with these times, and a prediction for the library's."""
    rows = tuple(
        Row(
            peer=peer, ms=time, low_ms=time, high_ms=time, rounds=7, tflops=1.0, gbps=1.0, floor_percent=50.0,
            best_peer_ratio=None, check=Check(1e-7, None, True), reused=False,
            cold_ms=(cold_ms or {}).get(peer), predicted_us=predicted_us if peer == "epiconv" else None,
        )
        for peer, time in ms.items()
    )  # fmt: skip
    plan = {"path": "implicit_gemm", "kernel": "fprop_made_up", "why": ""} if "epiconv" in ms else None
    given = {
        "dtype": "fp32", "layout": "nchw", "plan": plan, "unavailable": {}, "name": "made up", "op": "conv2d",
        "input": (1, 1, 1, 1), "output": (1, 1, 1, 1), "program": "", "network": "net" if half else "",
        "math": "tf32", "flops": 1, "bytes": 1, "floor_ms": 1.0, "floor_by": "bytes", "graph_replay": False,
        "input_sets": 1, "error_images": (0,),
    }  # fmt: skip
    return CaseResult(problem=problem, half=half, rows=rows, **given | words)


def measured(*results: CaseResult) -> Measured:
    """These results on a card that there is not."""
    return Measured({"device": "made-up card", "torch": "3.0", "cuda": None}, CARD, results)
