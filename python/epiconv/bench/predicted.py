"""What this library's paths are predicted to take, to stand beside what they took."""

from collections.abc import Iterable
from typing import Any, Final

from epiconv.bench.peers import EPICONV, Case, explain_case

_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    EPICONV: {},
    "epiconv_bf16": {"precision": "bf16"},
    "implicit_gemm": {"algorithm": "implicit_gemm"},
    "epiconv_cudnn": {"algorithm": "cudnn"},
}
"""Of `epiconv.explain`, by the peers whose path it tells."""

_FAMILY_PREFIX: Final = "epiconv_"  # of peers that one family of kernels computes


def predicted_us(case: Case, peers: Iterable[str]) -> dict[str, float]:
    """Microseconds by the model of `docs/planner.md`, of those of the peers that it predicts.

    Args:
        case: the problem with its tensors.
        peers: names of peers that run; those that are not this library have no prediction.

    Example:
        >>> predicted_us(case, ["eager", "epiconv"])
        {'epiconv': 28.4}
    """
    found: dict[str, float] = {}
    ways: dict[str, float] = {}
    for peer in peers:
        if peer in _OPTIONS:
            ms = explain_case(case, **_OPTIONS[peer]).predicted_ms
        elif peer.startswith(_FAMILY_PREFIX):
            ways = ways or dict(explain_case(case).ways)
            ms = ways.get(peer.removeprefix(_FAMILY_PREFIX))
        else:
            continue
        if ms is not None:
            found[peer] = ms * 1e3
    return found
