"""What the benchmark finds out, as the table shows it and the JSON file stores it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from epiconv.bench.peers import BARE_CONVOLUTION, EPICONV, FORCED_PATHS, PEERS, REPACKING
from epiconv.bench.problems import Problem
from epiconv.bench.timing import Timing

CONTROL_DRIFT: Final = 0.05
"""How far the control may have moved before kept times are no longer to be compared with."""


@dataclass(frozen=True)
class Check:
    """How right one peer is.

    Attributes:
        max_error: against float64 on sampled images, relative to the output's scale.
        batch_difference: largest difference from eager over the whole batch; of epiconv only.
        ok: whether both are small enough; see `accuracy`.
    """

    max_error: float
    batch_difference: float | None
    ok: bool


@dataclass(frozen=True)
class Row:
    """One peer of a case.

    Attributes:
        peer: its name.
        ms, low_ms, high_ms: median, 10th and 90th percentile of the rounds.
        rounds: how many; 0 for a kept time.
        tflops: TFLOP/s of the convolution.
        gbps: GB/s, with every tensor touched once.
        floor_percent: floor / time, in percent.
        best_peer_ratio: time of the best peer / this time: above 1 is faster than every peer. None when
            there is no peer.
        check: None for a kept time and for the bare convolution.
        reused: whether the time was kept from an earlier run.
        cold_ms: median of calls with a cold L2 cache; see `cold`. None where it was not measured.
        predicted_us: microseconds that a path of this library was predicted to take on an H200, or None.
    """

    peer: str
    ms: float
    low_ms: float
    high_ms: float
    rounds: int
    tflops: float
    gbps: float
    floor_percent: float
    best_peer_ratio: float | None
    check: Check | None
    reused: bool
    cold_ms: float | None = None
    predicted_us: float | None = None


@dataclass(frozen=True)
class Control:
    """A peer whose time was kept and that was measured again: peer, then and now in ms."""

    peer: str
    kept_ms: float
    ms: float

    @property
    def moved(self) -> bool:
        """Whether it moved by more than `CONTROL_DRIFT`, so that kept times mean little."""
        return abs(self.ms / self.kept_ms - 1) > CONTROL_DRIFT


@dataclass(frozen=True)
class CaseResult:
    """All about one case.

    Attributes:
        problem, name, op, input, output, program, dtype, layout: what was computed.
        network, half: of a layer, as in `Problem`; else "".
        math: of the convolution, as in `peers.math_name`.
        flops, bytes: of the problem, every tensor touched once.
        floor_ms, floor_by: the least time, and what bounds it.
        graph_replay: whether CUDA graphs were replayed.
        input_sets: how many sets of inputs were rotated.
        error_images: the images that were compared with float64.
        plan: path and kernel of epiconv, and why that kernel, or why none of the implicit GEMM; None when it
            did not run.
        rows: the peers that ran.
        unavailable: the reason of each that could not.
        control: of a run with kept times, or None.
    """

    problem: str
    name: str
    op: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    program: str
    network: str
    half: str
    dtype: str
    layout: str
    math: str
    flops: int
    bytes: int
    floor_ms: float
    floor_by: str
    graph_replay: bool
    input_sets: int
    error_images: tuple[int, ...]
    plan: dict[str, str] | None
    rows: tuple[Row, ...]
    unavailable: dict[str, str]
    control: Control | None = None

    def row(self, peer: str) -> Row | None:
        """The row of a peer, or None."""
        return next((row for row in self.rows if row.peer == peer), None)

    @property
    def epiconv(self) -> Row | None:
        """The row of this library, with the path that it chooses; or None."""
        return self.row(EPICONV)

    @property
    def best_peer(self) -> Row | None:
        """The fastest of the peers that compete, or None."""
        rivals = (row for row in self.rows if PEERS[row.peer].competes)
        return min(rivals, key=lambda row: row.ms, default=None)

    @property
    def best_path(self) -> Row | None:
        """The fastest of `peers.FORCED_PATHS` that is right, or None where none ran."""
        paths = (row for row in self.rows if row.peer in FORCED_PATHS and (row.check is None or row.check.ok))
        return min(paths, key=lambda row: row.ms, default=None)

    def over_epiconv(self, row: Row | None) -> float | None:
        """A peer's time / epiconv's: above 1 epiconv is faster. None where one of the two did not run.

        Args:
            row: of this case, or None.
        """
        own = self.epiconv
        return None if row is None or own is None else row.ms / own.ms

    @property
    def bare_ratio(self) -> float | None:
        """Time of the convolution alone, in the same layout / epiconv's."""
        return self.over_epiconv(self.row(BARE_CONVOLUTION))

    @property
    def peer_ratio(self) -> float | None:
        """Time of the best peer / epiconv's."""
        return self.over_epiconv(self.best_peer)

    @property
    def cold_bare_ratio(self) -> float | None:
        """`bare_ratio` with a cold cache."""
        return self._over_cold([row for row in self.rows if row.peer == BARE_CONVOLUTION])

    @property
    def cold_peer_ratio(self) -> float | None:
        """`peer_ratio` with a cold cache, where another peer may be the best."""
        return self._over_cold([row for row in self.rows if PEERS[row.peer].competes])

    def _over_cold(self, rows: Sequence[Row]) -> float | None:
        """The least of their cold times / epiconv's; None where one of the two was not measured."""
        own = self.epiconv
        times = [row.cold_ms for row in rows if row.cold_ms is not None]
        return min(times) / own.cold_ms if times and own is not None and own.cold_ms is not None else None

    @property
    def repacking_ratio(self) -> float | None:
        """Time of a call that packs the weight first / epiconv's; None where that was not measured, or the
        path has no packed weight."""
        packs = self.plan is not None and self.plan["path"] == "implicit_gemm"
        return self.over_epiconv(self.row(REPACKING)) if packs else None

    @property
    def repacking_ms(self) -> float | None:
        """What packing the weight adds to a call; None as for `repacking_ratio`."""
        own, ratio = self.epiconv, self.repacking_ratio
        return None if own is None or ratio is None else (ratio - 1) * own.ms

    @property
    def predicted_ratio(self) -> float | None:
        """The predicted time / the measured one, or None where nothing was predicted."""
        own = self.epiconv
        return None if own is None or own.predicted_us is None else own.predicted_us / (own.ms * 1e3)

    @property
    def path_ratio(self) -> float | None:
        """Time of the best path / epiconv's, which chose one of them."""
        return self.over_epiconv(self.best_path)

    @property
    def ok(self) -> bool:
        """Whether epiconv, if it was asked for, ran and was right."""
        row = self.epiconv
        return EPICONV not in self.unavailable and (row is None or row.check is None or row.check.ok)

    def as_json(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings; `ok`, `best_path` and `control.moved` included."""
        values = asdict(self)
        values["ok"] = self.ok
        best = self.best_path
        values["best_path"] = best and {"peer": best.peer, "ms": best.ms, "ratio": self.path_ratio}
        if self.control is not None:
            values["control"]["moved"] = self.control.moved
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "CaseResult":
        """What `as_json` gave, also an older version's, which lacks what has a default.

        Args:
            values: other keys than this class's, which follow from them, do not count.

        Raises:
            KeyError, TypeError: it is something else.
            ValueError: it names a peer that is not known.

        Example:
            >>> CaseResult.from_json(result.as_json()) == result
            True
        """
        given = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        for name in ("input", "output", "error_images"):
            given[name] = tuple(values[name])
        given["rows"] = tuple(
            Row(**{**row, "check": row["check"] and Check(**row["check"])}) for row in values["rows"]
        )
        if unknown := [row.peer for row in given["rows"] if row.peer not in PEERS]:
            raise ValueError(f"unknown peer {unknown[0]!r}")
        if control := values["control"]:
            given["control"] = Control(control["peer"], control["kept_ms"], control["ms"])
        return cls(**given)


def case_key(problem: Problem, dtype_word: str, layout: str) -> str:
    """Names a case across runs.

    Example:
        >>> case_key(find_problem("kb4"), "bf16", "nchw")
        'kb4 conv2d 64x64x256x256 -> 64x128x254x254 v1 = mish(v0); v2 = mish(v1) bf16 nchw'
    """
    extents = ["x".join(map(str, shape)) for shape in (problem.input, problem.output)]
    return f"{problem.id} {problem.op} {' -> '.join(extents)} {problem.program.text} {dtype_word} {layout}"


def make_rows(
    timings: Mapping[str, Timing],
    kept_ms: Mapping[str, float],
    checks: Mapping[str, Check],
    predictions: Mapping[str, float],
    problem: Problem,
    itemsize: int,
    floor_seconds: float,
    cold: Mapping[str, Timing],
) -> tuple[Row, ...]:
    """The rows of a case, in the order of `PEERS`.

    Args:
        timings: what was measured.
        kept_ms: times from an earlier run, of peers that were not measured.
        checks: of the peers that have one.
        predictions: microseconds, of the peers that have one.
        problem: gives FLOPs and bytes.
        itemsize: bytes per value.
        floor_seconds: the least time.
        cold: times with a cold cache, of the peers that have one.
    """
    times = {name: Timing(ms / 1e3, ms / 1e3, ms / 1e3, 0) for name, ms in kept_ms.items()} | dict(timings)
    best = min((time.seconds for name, time in times.items() if PEERS[name].competes), default=None)
    return tuple(
        Row(
            peer=name,
            ms=times[name].seconds * 1e3,
            low_ms=times[name].low * 1e3,
            high_ms=times[name].high * 1e3,
            rounds=times[name].rounds,
            tflops=problem.flops / times[name].seconds / 1e12,
            gbps=problem.bytes(itemsize) / times[name].seconds / 1e9,
            floor_percent=100 * floor_seconds / times[name].seconds,
            best_peer_ratio=None if best is None else best / times[name].seconds,
            check=checks.get(name),
            reused=name not in timings,
            cold_ms=cold[name].seconds * 1e3 if name in cold else None,
            predicted_us=predictions.get(name),
        )
        for name in PEERS
        if name in times
    )
