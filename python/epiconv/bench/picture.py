"""The picture of what was measured on layers: a bar of speed-up for each, and rooflines. Needs matplotlib."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from epiconv.bench.ceilings import Ceilings
from epiconv.bench.markdown import competitors, layout_name
from epiconv.bench.peers import DTYPES, LAYOUTS
from epiconv.bench.results import CaseResult
from epiconv.bench.saved import Measured
from epiconv.bench.summary import geometric_mean

_FASTER: Final = {"measured": "#1f5fa8", "tuning": "#86b3dc"}
_SLOWER: Final = {"measured": "#c4451c", "tuning": "#efa585"}
_INK: Final = "#222222"
_GREY: Final = "#8a8a8a"
_GRID: Final = "#dddddd"
_BAND: Final = "#f3f3f3"
_MARKERS: Final = {"nchw": "o", "channels_last": "^"}

_WIDTH: Final = 14.0  # inches, as the next two
_LINE_HEIGHT: Final = 0.19
_ROOFLINE_HEIGHT: Final = 5.0
_DOTS_PER_INCH: Final = 130

_BARE: Final[dict[str, Any]] = {
    "color": _INK,
    "markersize": 4.5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
    "linestyle": "",
}
_OWN: Final[dict[str, Any]] = {"color": _FASTER["measured"], "markersize": 5, "linestyle": ""}
_PEER: Final[dict[str, Any]] = {"color": _GREY, "markersize": 4, "linestyle": "", "alpha": 0.6}
_PLAIN_NUMBERS: Final = FuncFormatter(lambda value, _: f"{value:g}")
_DTYPES: Final = {dtype: place for place, dtype in enumerate(DTYPES)}
_LAYOUTS: Final = {layout: place for place, layout in enumerate(LAYOUTS)}

_RATIO_TICKS: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def draw(measured: Measured, path: Path) -> None:
    """Draws `make_figure` into a file.

    Args:
        measured: layers, in the order of the bars.
        path: of the file; its ending says of what kind it is.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> draw(read_results([Path("layers.json")]), Path("layers.png"))
    """
    make_figure(measured).savefig(path, dpi=_DOTS_PER_INCH)


def make_figure(measured: Measured) -> Figure:
    """The layers' speed-ups in columns of bars, rooflines below.

    Args:
        measured: layers, in the order of the bars.

    Example:
        >>> make_figure(measured).axes[0].get_title()
        'fp32, NCHW\\nmeans: 1.50 best peer, 1.20 bare'
    """
    results = [result for result in measured.results if result.epiconv is not None]
    places = line_places(results)
    speed_up_height = _LINE_HEIGHT * len(places) + 1.5
    figure = Figure(figsize=(_WIDTH, speed_up_height + _ROOFLINE_HEIGHT), layout="constrained")
    heights = [speed_up_height, _ROOFLINE_HEIGHT]
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    peers = f"Time of the best peer ({competitors(results)}) over epiconv's, and geometric means"
    title = f"{peers}: right of 1 epiconv is faster\n{measured.where}"
    above.suptitle(title, fontsize=11, color=_INK)
    below.suptitle("What was reached, and the ceilings of the card", fontsize=11, color=_INK)
    _draw_speed_ups(above, results, places)
    _draw_rooflines(below, results, measured.ceilings)
    return figure


def line_places(results: Iterable[CaseResult]) -> dict[str, int]:
    """Which line of the bars each layer has, and each network, whose name stands above its layers.

    Args:
        results: layers; those of a network need not stand together.

    Example:
        >>> line_places(results)
        {'resnet50': 0, 'resnet50-stem-b1': 1, 'vae': 2, 'vae-3x3-512': 3}
    """
    networks: dict[str, dict[str, None]] = {}
    for result in results:
        networks.setdefault(result.network, {})[result.problem] = None
    lines = [line for network, layers in networks.items() for line in (network, *layers)]
    return {line: place for place, line in enumerate(lines)}


def _draw_speed_ups(figure: SubFigure, results: Sequence[CaseResult], places: Mapping[str, int]) -> None:
    """A column of bars for each layout and dtype, a line for each layer."""
    cases = sorted(
        {(r.layout, r.dtype) for r in results}, key=lambda case: (_LAYOUTS[case[0]], _DTYPES[case[1]])
    )
    all_axes = figure.subplots(1, len(cases), sharex=True, sharey=True, squeeze=False)[0]
    networks = {result.network for result in results}
    for axes, (layout, dtype) in zip(all_axes, cases, strict=True):
        chosen = [result for result in results if (result.layout, result.dtype) == (layout, dtype)]
        peer = geometric_mean(result.peer_ratio for result in chosen)
        bare = geometric_mean(result.bare_ratio for result in chosen)
        means = [f"{mean:.2f} {name}" for name, mean in (("best peer", peer), ("bare", bare)) if mean]
        title = f"{dtype}, {layout_name(layout)}\nmeans: {', '.join(means)}"
        axes.set_title(title, fontsize=10, color=_INK)
        for name in networks:
            axes.axhspan(places[name] - 0.5, places[name] + 0.5, color=_BAND, zorder=0)
        _draw_bars(axes, chosen, places)
        for name in places.keys() - networks - {result.problem for result in chosen}:
            axes.text(1, places[name], "  not measured", fontsize=8, color=_GREY, va="center")
    first = all_axes[0]
    first.set_yticks(
        list(places.values()),
        [name if name in networks else name.partition("-")[2] for name in places],
        fontsize=8.5,
    )
    for name, label in zip(places, first.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name in networks else "normal")
    first.set_ylim(len(places) - 0.4, -0.6)
    handles = [
        Patch(color=_FASTER["measured"], label="faster than the best peer"),
        Patch(color=_SLOWER["measured"], label="slower"),
        Patch(color=_FASTER["tuning"], label='paler: the half "tuning"'),
        Line2D([], [], marker="D", label="the bare convolution, instead of the best peer", **_BARE),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)


def _draw_bars(axes: Axes, results: Sequence[CaseResult], places: Mapping[str, int]) -> None:
    for result in results:
        place, ratio = places[result.problem], result.peer_ratio
        if ratio is not None:
            color = (_FASTER if ratio >= 1 else _SLOWER)[result.half]
            axes.barh(place, ratio - 1, left=1, height=0.72, color=color, zorder=2)
        if result.bare_ratio is not None:
            axes.plot(result.bare_ratio, place, marker="D", zorder=5, **_BARE)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_RATIO_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_PLAIN_NUMBERS)
    axes.axvline(1, color=_INK, linewidth=1, zorder=4)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    _plain_frame(axes)
    axes.tick_params(axis="y", length=0)


def _draw_rooflines(figure: SubFigure, results: Sequence[CaseResult], ceilings: Ceilings) -> None:
    """What was reached, below what the card could do, for each dtype."""
    dtypes = sorted({result.dtype for result in results}, key=_DTYPES.__getitem__)
    all_axes = figure.subplots(1, len(dtypes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, dtype in zip(all_axes, dtypes, strict=True):
        chosen = [result for result in results if result.dtype == dtype]
        _draw_points(axes, chosen)
        _draw_roof(axes, chosen, ceilings)
        axes.set_title(dtype, fontsize=10, color=_INK)
        axes.set_xlabel("FLOP per byte, every tensor touched once", fontsize=9.5, color=_INK)
    all_axes[0].set_ylabel("TFLOP/s", fontsize=9.5, color=_INK)
    layouts = sorted({result.layout for result in results}, key=_LAYOUTS.__getitem__)
    handles = [
        Line2D([], [], marker=_MARKERS[layout], label=f"{name}, {layout_name(layout)}", **style)
        for name, style in (("epiconv", _OWN), ("best peer", _PEER))
        for layout in layouts
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)


def _draw_points(axes: Axes, results: Sequence[CaseResult]) -> None:
    for result in results:
        intensity, marker = result.flops / result.bytes, _MARKERS[result.layout]
        for row, style in ((result.best_peer, _PEER), (result.epiconv, _OWN)):
            if row is not None:
                axes.plot(intensity, row.tflops, marker=marker, zorder=3 if style is _OWN else 2, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN_NUMBERS)
    axes.grid(color=_GRID, linewidth=0.8)
    _plain_frame(axes)


def _draw_roof(axes: Axes, results: Sequence[CaseResult], ceilings: Ceilings) -> None:
    """The card's ceilings over the points: of bytes, and of FLOPs where that rate is known."""
    intensities = [result.flops / result.bytes for result in results]
    least, most = min(intensities) / 1.5, max(intensities) * 1.5
    rate = ceilings.flops_per_second.get(results[0].math, math.inf)
    corners = [least, min(max(least, rate / ceilings.bytes_per_second), most), most]
    roof = [min(rate, intensity * ceilings.bytes_per_second) / 1e12 for intensity in corners]
    axes.plot(corners, roof, color=_INK, linewidth=1.5, zorder=1)
    words: dict[str, Any] = {"fontsize": 9, "color": _INK, "textcoords": "offset points"}
    if rate < math.inf:
        text = f"{rate / 1e12:.0f} TFLOP/s in {results[0].math}"
        axes.annotate(text, (most, roof[-1]), xytext=(0, 5), ha="right", **words)
    middle = math.sqrt(corners[0] * corners[1])
    place = (middle, middle * ceilings.bytes_per_second / 1e12)
    axes.annotate(f"{ceilings.bytes_per_second / 1e12:.2f} TB/s", place, xytext=(-6, 2), ha="right", **words)


def _plain_frame(axes: Axes) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
