"""What many cases come to: means over layers, and the cases that should be faster."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from epiconv.bench.results import CaseResult

SLOWER_THAN_PEER: Final = 1.05
"""How many times the best peer's time a layer may take before it is listed."""

ALL_DTYPES: Final = "all"
"""Stands for the dtypes together, where there are several."""

SLOWER_THAN_PATH: Final = 1.10
"""How many times the best path's time the path that was chosen may take; more is a bug of the choice."""


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """The geometric mean of those that are not None, or None where there are none.

    Args:
        ratios: above 0.

    Example:
        >>> geometric_mean([1.0, 4.0, None])
        2.0
    """
    logarithms = [math.log(ratio) for ratio in ratios if ratio is not None]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


@dataclass(frozen=True)
class LayerMeans:
    """The layers of one half in one layout and dtype.

    Attributes:
        layout, dtype, half: which; dtype may be `ALL_DTYPES`.
        layers: how many ran, counted in each dtype.
        bare: geometric mean of the bare convolution's time / epiconv's; None where it did not run.
        peer: geometric mean of the best peer's time / epiconv's; None where there is no peer.
        slow: how many are `slow_layers`.
        cold_bare, cold_peer: as bare and peer, with a cold cache; None where that was not measured.
        repacking: geometric mean of `CaseResult.repacking_ratio`, or None.
    """

    layout: str
    dtype: str
    half: str
    layers: int
    bare: float | None
    peer: float | None
    slow: int
    cold_bare: float | None
    cold_peer: float | None
    repacking: float | None


def layer_means(results: Iterable[CaseResult]) -> tuple[LayerMeans, ...]:
    """The means over layers, for each layout, dtype and half, and for all dtypes together if there are
    several.

    Args:
        results: those that are no layers, and where epiconv did not run, do not count.

    Example:
        >>> layer_means(results)[0].bare
    """
    counted = [result for result in results if result.half and result.epiconv is not None]
    groups: dict[tuple[str, str, str], list[CaseResult]] = {}
    for result in counted:
        for dtype in (result.dtype, ALL_DTYPES):
            groups.setdefault((result.layout, dtype, result.half), []).append(result)
    for layout, half in {(result.layout, result.half) for result in counted}:
        if len({r.dtype for r in groups[layout, ALL_DTYPES, half]}) == 1:
            del groups[layout, ALL_DTYPES, half]
    return tuple(
        LayerMeans(
            *key,
            layers=len(layers),
            bare=geometric_mean(layer.bare_ratio for layer in layers),
            peer=geometric_mean(layer.peer_ratio for layer in layers),
            slow=len(slow_layers(layers)),
            cold_bare=geometric_mean(layer.cold_bare_ratio for layer in layers),
            cold_peer=geometric_mean(layer.cold_peer_ratio for layer in layers),
            repacking=geometric_mean(layer.repacking_ratio for layer in layers),
        )
        for key, layers in sorted(groups.items())
    )


def slow_layers(results: Iterable[CaseResult]) -> list[CaseResult]:
    """The layers on which epiconv takes over `SLOWER_THAN_PEER` times the best peer's time, slowest first.

    Args:
        results: those that are no layers do not count.
    """
    layers = [(r.peer_ratio, r) for r in results if r.half]
    return _slowest_first(layers, SLOWER_THAN_PEER)


def slow_choices(results: Iterable[CaseResult]) -> list[CaseResult]:
    """The cases in which epiconv takes over `SLOWER_THAN_PATH` times the best path's time, slowest first.

    Args:
        results: those without one of `peers.FORCED_PATHS` do not count.
    """
    return _slowest_first([(r.path_ratio, r) for r in results], SLOWER_THAN_PATH)


def _slowest_first(cases: Sequence[tuple[float | None, CaseResult]], factor: float) -> list[CaseResult]:
    slow = [(ratio, result) for ratio, result in cases if ratio is not None and ratio * factor < 1]
    return [result for _, result in sorted(slow, key=lambda pair: pair[0])]
