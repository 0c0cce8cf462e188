"""What documents show of the layers: README's table, a table of every case, and the picture.

All of it is made from results, so that it can be made again from files on a machine without a card.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from epiconv.bench.layers import LAYERS
from epiconv.bench.markdown import cases_table, competitors, means_table, replace_table
from epiconv.bench.peers import DTYPES, LAYOUTS
from epiconv.bench.results import CaseResult
from epiconv.bench.saved import Measured
from epiconv.bench.summary import SLOWER_THAN_PEER

TABLE_FILE: Final = "layers.md"
PICTURE_FILE: Final = "layers.png"

_PICTURE: Final = "![speed-up of each layer, and rooflines]({})"
_EXPLANATION: Final = (
    "Times are in µs: medians of rounds in which each has its turn, where calls are short by CUDA graphs of "
    "several, with the inputs that the call before had. In bold: slower than the best peer by over "
    f"{100 * SLOWER_THAN_PEER - 100:.0f} %. Floor: the least time in which FLOPs and bytes could pass."
)
_EXPLANATIONS: Final = {
    "cold": "Cold: each call alone, with an L2 cache that was overwritten before, and including the start "
    "of a CUDA graph.",
    "repacking": "Repacking: epiconv where a call packs a changed weight first.",
    "predicted": "Predicted: what the planner expected of the kernel.",
}
"""By a word of the headings of columns that there need not be."""

_PLACES: Final = {layer.id: place for place, layer in enumerate(LAYERS)}


def check_report(directory: Path, readme: Path | None) -> None:
    """Whether `write_report` can write, before anything is measured for it.

    Args:
        directory, readme: as for `write_report`.

    Raises:
        ValueError: matplotlib is missing, or README has no place for the table.
        OSError: README cannot be read, or the directory cannot be made.
    """
    if find_spec("matplotlib") is None:
        raise ValueError('--report draws with matplotlib, which is missing: pip install "epiconv[bench]"')
    if readme is not None:
        _with_table(readme, "")
    directory.mkdir(parents=True, exist_ok=True)


def write_report(measured: Measured, directory: Path, readme: Path | None) -> list[Path]:
    """Writes the table of every layer and the picture, and the means and the picture into README.

    Args:
        measured: what was measured; what is no layer does not count.
        directory: where `TABLE_FILE` and `PICTURE_FILE` go.
        readme: a file with the markers of `replace_table`, or None.

    Returns:
        The files that were written.

    Raises:
        ValueError: there is no layer that epiconv computed, or what `check_report` raises.
        OSError: a file cannot be written.

    Example:
        >>> write_report(read_results([Path("layers.json")]), Path("docs"), Path("README.md"))
    """
    from epiconv.bench.picture import draw

    layers = Measured(measured.environment, measured.ceilings, in_order(measured.results))
    if all(result.epiconv is None for result in layers.results):
        raise ValueError("a report is about layers of networks, and epiconv computed none of them here")
    table, picture = directory / TABLE_FILE, directory / PICTURE_FILE
    introduction, means, cases = (
        _introduction(layers),
        means_table(layers.results),
        cases_table(layers.results),
    )
    draw(layers, picture)
    parts = ["# Layers of networks", introduction, means, _PICTURE.format(PICTURE_FILE)]
    parts.append(f"{_EXPLANATION} {_notes(cases)}".rstrip())
    table.write_text("\n\n".join([*parts, cases]) + "\n", encoding="utf-8")
    if readme is None:
        return [table, picture]
    links = [Path(os.path.relpath(path, readme.parent)).as_posix() for path in (table, picture)]
    introduction = f"{introduction} {_notes(means)}".rstrip()
    parts = [f"{introduction} [Every layer]({links[0]}).", means, _PICTURE.format(links[1])]
    readme.write_text(_with_table(readme, "\n\n".join(parts)), encoding="utf-8")
    return [table, picture, readme]


def _notes(table: str) -> str:
    """What the headings of a table need said."""
    headings = table.partition("\n")[0]
    return " ".join(text for word, text in _EXPLANATIONS.items() if word in headings)


def in_order(results: Sequence[CaseResult]) -> tuple[CaseResult, ...]:
    """The layers among results in the order of `layers.LAYERS`; those that it no longer has are last.

    Args:
        results: any.

    Example:
        >>> in_order(results)[0].problem
        'resnet50-stem-b1'
    """
    dtypes = list(DTYPES)
    layers = [result for result in results if result.half]
    return tuple(
        sorted(
            layers,
            key=lambda result: (
                _PLACES.get(result.problem, len(_PLACES)),
                LAYOUTS.index(result.layout),
                dtypes.index(result.dtype),
            ),
        )
    )


def _introduction(layers: Measured) -> str:
    count = len({result.problem for result in layers.results})
    networks = len({result.network for result in layers.results})
    return (
        f"{count} layers of {networks} networks ({layers.where}), geometric means of times over epiconv's: "
        f"above 1 epiconv is faster. Bare is cuDNN's convolution without bias and epilogue; the best peer is "
        f"the fastest of {competitors(layers.results) or 'none'}."
    )


def _with_table(readme: Path, table: str) -> str:
    try:
        return replace_table(readme.read_text(encoding="utf-8"), table)
    except ValueError as error:
        raise ValueError(f"{readme}: {error}") from None
