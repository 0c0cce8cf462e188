"""Tables of layers in Markdown: means for README, and every case."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from epiconv.bench.peers import BARE_CONVOLUTION, DTYPES, EPICONV, LAYOUTS, PEERS, REPACKING
from epiconv.bench.results import CaseResult, Row
from epiconv.bench.summary import ALL_DTYPES, SLOWER_THAN_PEER, layer_means, slow_layers

BEGIN: Final = "<!-- layers table -->"
END: Final = "<!-- end of layers table -->"
"""What `replace_table` looks for, each on a line of its own."""

_LAYOUTS: Final = {"nchw": "NCHW"}
_SLOWER: Final = f"{100 * SLOWER_THAN_PEER - 100:.0f} %"
_COLD: Final = (EPICONV, BARE_CONVOLUTION, "eager")
_DTYPES: Final = (*DTYPES, ALL_DTYPES)


def _table(words: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[str]]) -> str:
    """A table of columns by their headings: words are on the left, and of numbers those with any."""
    shown = {heading: column for heading, column in numbers.items() if any(column)}
    head = [[*words, *shown], ["---"] * len(words) + ["---:"] * len(shown)]
    lines = [*head, *zip(*words.values(), *shown.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _microseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms * 1e3:.0f}" if ms >= 0.1 else f"{ms * 1e3:.1f}"


def layout_name(layout: str) -> str:
    """A layout as documents write it.

    Example:
        >>> layout_name("nchw")
        'NCHW'
    """
    return _LAYOUTS.get(layout, layout)


def means_table(results: Sequence[CaseResult]) -> str:
    """The geometric means over layers, a row for each layout, half and dtype.

    Args:
        results: of layers. What was measured of none of them has no column.

    Example:
        >>> print(means_table(results))
    """
    means = sorted(
        layer_means(results),
        key=lambda mean: (LAYOUTS.index(mean.layout), mean.half, _DTYPES.index(mean.dtype)),
    )
    words = {
        "layout": [layout_name(mean.layout) for mean in means],
        "half": [mean.half for mean in means],
        "dtype": [mean.dtype for mean in means],
    }
    numbers = {
        "layers": [str(mean.layers) for mean in means],
        "bare / epiconv": [_ratio(mean.bare) for mean in means],
        "best peer / epiconv": [_ratio(mean.peer) for mean in means],
        f"over {_SLOWER} slower": [str(mean.slow) for mean in means],
        "bare / epiconv, cold": [_ratio(mean.cold_bare) for mean in means],
        "best peer / epiconv, cold": [_ratio(mean.cold_peer) for mean in means],
        "repacking / epiconv": [_ratio(mean.repacking) for mean in means],
    }
    return _table(words, numbers)


def competitors(results: Iterable[CaseResult]) -> str:
    """The peers that the best one is the best of, in words.

    Args:
        results: those in which they ran.

    Example:
        >>> competitors(results)
        'eager, compile'
    """
    ran = {row.peer for result in results for row in result.rows}
    return ", ".join(name for name, peer in PEERS.items() if peer.competes and name in ran)


def cases_table(results: Sequence[CaseResult]) -> str:
    """Every case, a row each, in µs; `slow_layers` in bold.

    Args:
        results: of layers. What was measured of none of them has no column.

    Example:
        >>> print(cases_table(results))
    """
    slow = {id(result) for result in slow_layers(results)}
    words = {
        "layer": [f"**{r.problem}**" if id(r) in slow else r.problem for r in results],
        "half": [result.half for result in results],
        "layout": [layout_name(result.layout) for result in results],
        "dtype": [result.dtype for result in results],
        "epiconv's kernel": [_kernel(result) for result in results],
    }
    numbers = {
        **{name: [_time(r.row(name)) for r in results] for name in PEERS if name != REPACKING},
        "best peer / epiconv": [_ratio(result.peer_ratio) for result in results],
        "bare / epiconv": [_ratio(result.bare_ratio) for result in results],
        "floor / epiconv": [_floor(result.epiconv) for result in results],
        **{f"{name}, cold": [_cold_time(r.row(name)) for r in results] for name in _COLD},
        "best peer / epiconv, cold": [_ratio(result.cold_peer_ratio) for result in results],
        "repacking adds": [_microseconds(result.repacking_ms) for result in results],
        "predicted / measured": [_ratio(result.predicted_ratio) for result in results],
    }
    return _table(words, numbers)


def _kernel(result: CaseResult) -> str:
    return f"`{result.plan['kernel']}`" if result.plan else result.unavailable.get(EPICONV, "")


def _time(row: Row | None) -> str:
    return "" if row is None else _microseconds(row.ms)


def _cold_time(row: Row | None) -> str:
    return "" if row is None else _microseconds(row.cold_ms)


def _floor(row: Row | None) -> str:
    return "" if row is None else f"{row.floor_percent / 100:.2f}"


def replace_table(text: str, table: str) -> str:
    """A document with what stands between the markers replaced.

    Args:
        text: of the document, with `BEGIN` and `END` once each.
        table: what is to stand there.

    Raises:
        ValueError: the markers are not there once each and in this order.

    Example:
        >>> replace_table(f"{BEGIN}\\nold\\n{END}\\n", "new")
        '<!-- layers table -->\\nnew\\n<!-- end of layers table -->\\n'
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"there must be one {BEGIN} and one {END} behind it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"
