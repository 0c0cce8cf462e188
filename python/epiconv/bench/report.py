"""Tables on the terminal, JSON files, and times kept from one run for another. Needs rich."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from epiconv.bench.ceilings import Ceilings
from epiconv.bench.elementwise import Bandwidth
from epiconv.bench.host import HostTimes
from epiconv.bench.networks import NetworkTime
from epiconv.bench.peers import BARE_CONVOLUTION, EPICONV, PEERS
from epiconv.bench.results import CONTROL_DRIFT, CaseResult, Row
from epiconv.bench.summary import (
    SLOWER_THAN_PATH,
    SLOWER_THAN_PEER,
    layer_means,
    slow_choices,
    slow_layers,
)
from epiconv.bench.training import TrainingStep

SCHEMA: Final = 1
"""Version of the JSON files; a change that a reader would notice raises it."""

MOST_TABLES: Final = 16
"""With more cases each is one line, not a table."""

_FILE_WIDTH: Final = 140
_LINE: Final = "{:<{width}} {:<9} {:<13} {:>8} {:<20} {:>8} {:>10} {:>6} {:>6} {:>7}  {:<3} {}"


def make_console() -> Console:
    """A console on standard output; wide enough for the tables when that is a file or a pipe.

    Example:
        >>> make_console().print(table)
    """
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def plain_table(title: str, caption: str | None = None) -> Table:
    """A table with few lines, its title and caption on the left.

    Example:
        >>> table = plain_table("times")
    """
    return Table(
        title=title,
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def add_columns(table: Table, words: Sequence[str], numbers: Sequence[str]) -> None:
    """Adds columns: words on the left, then numbers on the right.

    Example:
        >>> add_columns(table, ["peer"], ["ms"])
    """
    for position, heading in enumerate(words):
        # What a row is about is never cut; the other words wrap.
        table.add_column(heading, no_wrap=position == 0, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right")


def progress_bar(console: Console) -> Progress:
    """A progress bar of cases with the stage beside it; it disappears at the end.

    Example:
        >>> with progress_bar(Console(stderr=True)) as bar: ...
    """
    bar = BarColumn(bar_width=24)
    stage = TextColumn("{task.description}")
    return Progress(bar, MofNCompleteColumn(), TimeElapsedColumn(), stage, console=console, transient=True)


def environment(device: torch.device) -> dict[str, Any]:
    """What times depend on: card or processor, torch, CUDA and cuDNN versions.

    Example:
        >>> environment(torch.device("cpu"))["torch"]
    """
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "device_type": device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
        "threads": None if cuda else torch.get_num_threads(),
    }


def results_as_json(
    results: Iterable[CaseResult], device: torch.device, ceilings: Ceilings, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of the file that `--json` writes.

    Args:
        results: the cases.
        device: where they ran.
        ceilings: of the device.
        settings: the options of the run.

    Returns:
        "schema", "environment", "ceilings", "settings" and "cases" (see `CaseResult`).
    """
    return {
        "schema": SCHEMA,
        "environment": environment(device),
        "ceilings": {
            "bytes_per_second": ceilings.bytes_per_second,
            "flops_per_second": dict(ceilings.flops_per_second),
            "source": ceilings.source,
        },
        "settings": dict(settings),
        "cases": [result.as_json() for result in results],
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, indented.

    Raises:
        OSError: it cannot be written.
    """
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def kept_times(results: Iterable[tuple[str, CaseResult]], device: torch.device) -> dict[str, Any]:
    """The content of the file that `--keep-peers` writes: the peers' times, those of this library left out.

    Args:
        results: (case key, result).
        device: where they ran.
    """
    cases = {
        key: {row.peer: row.ms for row in result.rows if not PEERS[row.peer].own} for key, result in results
    }
    return {"schema": SCHEMA, "environment": environment(device), "ms": cases}


def read_kept_times(path: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Reads what `--keep-peers` wrote.

    Args:
        path: the file.
        device: where it is going to be compared.

    Returns:
        Milliseconds by case key and peer.

    Raises:
        ValueError: it is no such file, or is from another card or torch version.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        there, cases = content["environment"], content["ms"]
        times = {key: {peer: float(ms) for peer, ms in peers.items()} for key, peers in cases.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} was not written by --keep-peers: {error!r}") from None
    here = environment(device)
    for what in ("device", "torch", "cuda", "cudnn"):
        if there.get(what) != here[what]:
            raise ValueError(
                f"{path} was measured with {what} {there.get(what)}, this is {here[what]}: measure again"
            )
    return times


def case_table(result: CaseResult) -> Table:
    """One case as a table, a row per peer.

    Example:
        >>> Console().print(case_table(result))
    """
    shape = "×".join(map(str, result.input))
    replay = ", CUDA graphs" if result.graph_replay else ""
    sets = f", {result.input_sets} input sets" if result.input_sets > 1 else ""
    title = (
        f"{result.problem} {result.name}: {shape}, {result.dtype} ({result.math}), {result.layout}"
        f" · floor {milliseconds(result.floor_ms)} ms by {result.floor_by}{replay}{sets}"
    )
    notes = [f"{peer} not available: {reason}" for peer, reason in result.unavailable.items()]
    if result.plan:
        notes.insert(0, f"epiconv ran {result.plan['path']}: {result.plan['kernel']}")
    table = plain_table(title, caption="\n".join(notes))
    has_cold = any(row.cold_ms is not None for row in result.rows)
    numbers = [
        "ms",
        "10–90 %",
        "predicted",
        "TFLOP/s",
        "GB/s",
        "% of floor",
        "× best peer",
        "max error",
        "ok",
    ]
    add_columns(table, ["peer"], [*numbers, *(["cold ms"] if has_cold else [])])
    for row in result.rows:
        cold = ["" if row.cold_ms is None else milliseconds(row.cold_ms)] if has_cold else []
        table.add_row(*_cells(row), *cold, style="bold" if row.peer == EPICONV else None)
    return table


def _cells(row: Row) -> list[str]:
    check = row.check
    return [
        row.peer,
        milliseconds(row.ms),
        "kept" if row.reused else f"{milliseconds(row.low_ms)}–{milliseconds(row.high_ms)}",
        "" if row.predicted_us is None else milliseconds(row.predicted_us / 1e3),
        f"{row.tflops:.3g}",
        f"{row.gbps:.4g}",
        f"{row.floor_percent:.1f}",
        _ratio(row.best_peer_ratio),
        "" if check is None else f"{check.max_error:.1e}",
        "" if check is None else "yes" if check.ok else "NO",
    ]


def milliseconds(ms: float) -> str:
    """A time in ms with three to four digits that mean something.

    Example:
        >>> milliseconds(1.63241)
        '1.632'
    """
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 100 else f"{ms:.1f}"


def _row_ms(row: Row | None) -> str:
    return "" if row is None else milliseconds(row.ms)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def overview_heading(width: int) -> str:
    """What stands above `overview_line`s.

    Args:
        width: of the longest problem's id.
    """
    numbers = ("epiconv ms", "× bare", "× peer", "% floor")
    return _LINE.format(
        *("problem", "dtype", "layout", "bare ms", "best peer", "ms", *numbers, "ok", "kernel"), width=width
    )


def overview_line(result: CaseResult, width: int) -> str:
    """One case in one line: bare convolution, best peer and epiconv, the first two's times over epiconv's.

    Args:
        result: the case.
        width: of the longest problem's id.

    Example:
        >>> print(overview_heading(4), overview_line(result, 4), sep="\\n")
    """
    own, best = result.epiconv, result.best_peer
    return _LINE.format(
        *(result.problem, result.dtype, result.layout, _row_ms(result.row(BARE_CONVOLUTION))),
        *("" if best is None else best.peer, _row_ms(best), _row_ms(own)),
        *(_ratio(result.bare_ratio), _ratio(result.peer_ratio)),
        "" if own is None else f"{own.floor_percent:.1f}",
        "yes" if result.ok else "NO",
        result.plan["kernel"] if result.plan else result.unavailable.get(EPICONV, ""),
        width=width,
    )


def unavailable_notes(results: Iterable[CaseResult]) -> list[str]:
    """For each peer that could not run everywhere in how many cases, and the reason in the first.

    Args:
        results: the cases.
    """
    found: dict[str, list[str]] = {}
    for result in results:
        for peer, reason in result.unavailable.items():
            where = f"{result.problem} {result.dtype} {result.layout}"
            found.setdefault(peer, []).append(f"{where}: {reason}")
    return [
        f"{peer} not available in {len(cases)} of the cases, the first {cases[0]}"
        for peer, cases in found.items()
    ]


def summaries(results: Sequence[CaseResult], in_lines: bool) -> Iterator[Table | str]:
    """What is printed behind the cases: tables, and lines of text.

    Args:
        results: all cases.
        in_lines: whether the cases were printed as `overview_line`s, not as tables.

    Example:
        >>> for part in summaries(results, in_lines=False):
        ...     console.print(part)
    """
    if in_lines:
        yield from unavailable_notes(results)
    elif len(results) > 1 and any(result.epiconv for result in results):
        yield summary_table(results)
        yield coverage_table(results)
    if means := layer_means(results):
        table = plain_table("layers of networks: geometric means of times / epiconv's")
        has_cold = any(mean.cold_bare is not None or mean.cold_peer is not None for mean in means)
        cold = ["bare, cold", "peer, cold"] if has_cold else []
        add_columns(table, ["layout", "dtype", "half"], ["layers", "bare convolution", "best peer", *cold])
        for mean in means:
            ratios = [mean.bare, mean.peer, *([mean.cold_bare, mean.cold_peer] if has_cold else [])]
            table.add_row(mean.layout, mean.dtype, mean.half, str(mean.layers), *map(_ratio, ratios))
        yield table
        title = f"layers over {SLOWER_THAN_PEER - 1:.0%} slower than the best peer"
        yield _slow_table(title, [(result, result.best_peer) for result in slow_layers(results)])
    if any(result.best_path for result in results):
        title = f"choices over {SLOWER_THAN_PATH - 1:.0%} slower than the best path"
        yield _slow_table(title, [(result, result.best_path) for result in slow_choices(results)])


def _slow_table(title: str, cases: Sequence[tuple[CaseResult, Row | None]]) -> Table | str:
    """Cases and what is faster there; a line where there are none."""
    if not cases:
        return f"{title}: none"
    table = plain_table(title)
    add_columns(
        table, ["problem", "dtype", "layout", "epiconv's kernel", "faster"], ["epiconv ms", "ms", "ratio"]
    )
    for result, row in cases:
        table.add_row(
            *(result.problem, result.dtype, result.layout),
            result.plan["kernel"] if result.plan else "",
            "" if row is None else row.peer,
            *(_row_ms(result.epiconv), _row_ms(row), _ratio(result.over_epiconv(row))),
        )
    return table


def summary_table(results: Sequence[CaseResult]) -> Table:
    """epiconv against the best peer, a row per case."""
    table = plain_table("epiconv against the best peer")
    add_columns(
        table, ["problem", "dtype", "layout", "best peer"], ["ms", "epiconv ms", "ratio", "% of floor", "ok"]
    )
    for result in results:
        own, best = result.epiconv, result.best_peer
        if own is None:
            continue
        table.add_row(
            result.problem,
            result.dtype,
            result.layout,
            "" if best is None else best.peer,
            _row_ms(best),
            milliseconds(own.ms),
            _ratio(result.peer_ratio),
            f"{own.floor_percent:.1f}",
            "yes" if result.ok else "NO",
        )
    return table


def coverage_table(results: Sequence[CaseResult]) -> Table:
    """Which kernel of epiconv ran each case, and why it was that one."""
    table = plain_table("coverage")
    add_columns(table, ["problem", "dtype", "layout", "path", "kernel", "why"], [])
    for result in results:
        if result.plan is not None:
            plan = result.plan
            table.add_row(
                *(result.problem, result.dtype, result.layout, plan["path"], plan["kernel"], plan["why"])
            )
    return table


def control_warning(result: CaseResult) -> str | None:
    """What to say when the control moved, or None."""
    control = result.control
    if control is None or not control.moved:
        return None
    return (
        f"{result.problem} {result.dtype} {result.layout}: {control.peer} took "
        f"{milliseconds(control.kept_ms)} ms when the peers' times were kept and "
        f"{milliseconds(control.ms)} ms now, over {CONTROL_DRIFT:.0%} apart: "
        "the kept times of this case are no measure; run without --reuse-peers"
    )


def host_table(times: Iterable[HostTimes]) -> Table:
    """Host time per call, two rows per device."""
    table = plain_table("host time per call")
    add_columns(
        table, ["device", "grad"], ["eager conv + 3 operations, µs", "fused_conv_epilogue, µs", "ratio"]
    )
    for row in times:
        times_of_row = (f"{row.eager_us:.1f}", f"{row.epiconv_us:.1f}", f"{row.ratio:.2f}")
        table.add_row(row.device, "with" if row.with_grad else "without", *times_of_row)
    return table


def training_table(rows: Sequence[TrainingStep]) -> Table:
    """Training steps, a row per peer of each case."""
    table = plain_table("training steps: forward and backward pass, every gradient")
    add_columns(
        table, ["problem", "dtype", "layout", "peer"], ["ms", "x epiconv", "peak MB", "max difference"]
    )
    own = {(row.problem, row.dtype, row.layout): row for row in rows if row.peer == EPICONV}
    for row in rows:
        ours = own.get((row.problem, row.dtype, row.layout))
        table.add_row(
            *(row.problem, row.dtype, row.layout, row.peer, milliseconds(row.ms)),
            _ratio(None if ours is None else row.ms / ours.ms),
            "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
            f"{row.difference:.1e}",
        )
    return table


def network_table(rows: Sequence[NetworkTime]) -> Table:
    """Whole networks, a row per peer."""
    table = plain_table("networks, end to end: eval mode, without gradients")
    add_columns(table, ["network", "dtype", "peer"], ["ms", "x best fused", "error"])
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.peer.startswith("fused"):
            key = row.network, row.dtype
            best[key] = min(row.ms, best.get(key, row.ms))
    for row in rows:
        fused = best.get((row.network, row.dtype))
        ratio = _ratio(None if fused is None else row.ms / fused)
        table.add_row(row.network, row.dtype, row.peer, milliseconds(row.ms), ratio, f"{row.error:.1e}")
    return table


def bandwidth_table(rows: Iterable[Bandwidth]) -> Table:
    """The one-pass epilogue against a copy, a row per output."""
    table = plain_table("one-pass epilogue, in place")
    add_columns(table, ["problem", "output", "dtype", "layout"], ["ms", "GB/s", "copy GB/s", "% of copy"])
    for row in rows:
        shape = "×".join(map(str, row.shape))
        numbers = (milliseconds(row.ms), f"{row.gbps:.0f}", f"{row.copy_gbps:.0f}", f"{row.percent:.1f}")
        table.add_row(row.problem, shape, row.dtype, row.layout, *numbers)
    return table
