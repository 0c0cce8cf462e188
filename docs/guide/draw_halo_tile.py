"""Draws halo_tile.svg, the picture of kernels.md, by matplotlib: `python docs/guide/draw_halo_tile.py`.

It shows a small tile: 16 numbers of the raster instead of 256, a filter of 3 x 3, an output 6 pixels wide.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTH, TAPS = 6, 3
PITCH = WIDTH + TAPS - 1
NUMBERS = 2 * PITCH
BOX_ROWS = NUMBERS // PITCH + TAPS - 1
SLOT_ROWS = BOX_ROWS * PITCH

INK, PALE = "#222222", "#bbbbbb"
COLOURS = {(0, 0): "#7fb2e5", (1, 2): "#f2b36b"}
WEIGHTS = "#a8d5a2"


def shift(tap: tuple[int, int]) -> int:
    """Rows of the slot by which a tap's window begins later."""
    return tap[0] * PITCH + tap[1]


def is_dropped(number: int) -> bool:
    """Whether a number of the raster is no pixel of the output."""
    return number % PITCH >= WIDTH


def cell(axes: Any, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
    """A rectangle whose upper left corner is (x, y), with a word in it."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=INK, linewidth=0.6))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7, color=INK)


def strike(axes: Any, x: float, y: float, width: float, height: float) -> None:
    """A stroke through a cell that is dropped."""
    axes.plot([x, x + width], [y + height, y], color=INK, linewidth=0.6)


def note(axes: Any, x: float, y: float, text: str, **words: Any) -> None:
    axes.text(x, y, text, fontsize=8.5, color=INK, va="center", **words)


def draw_box(axes: Any, left: float, top: float, tap: tuple[int, int]) -> None:
    """The input under the tile, row by row, and what a tap meets of it."""
    note(
        axes, left, top - 0.6, f"tap {tap}: the window begins at {tap[0]} · {PITCH} + {tap[1]} = {shift(tap)}"
    )
    for row in range(SLOT_ROWS):
        x, y = left + row % PITCH, top + row // PITCH
        number = row - shift(tap)
        in_window = 0 <= number < NUMBERS
        cell(axes, x, y, 1, 1, COLOURS[tap] if in_window else "white", str(row))
        if in_window and is_dropped(number):
            strike(axes, x, y, 1, 1)


def draw_slot(axes: Any, left: float, top: float, step: float) -> None:
    """The same rows as they lie in shared memory, with both windows."""
    for row in range(SLOT_ROWS):
        cell(axes, left + row * step, top, step, 1, "white", str(row))
    for tap, side in (((0, 0), top - 0.45), ((1, 2), top + 1.1)):
        begin = left + shift(tap) * step
        axes.add_patch(
            Rectangle((begin, side), NUMBERS * step, 0.35, facecolor=COLOURS[tap], edgecolor="none")
        )


def draw_product(axes: Any, left: float, top: float, tap: tuple[int, int]) -> None:
    """Weights of a tap times its window: sums of all numbers of the tile."""
    height, step = 2.4, 0.62
    cell(axes, left, top, 2.2, height, WEIGHTS, "64 filters\nx\nchannels")
    note(axes, left + 2.55, top + height / 2, "x")
    x = left + 3.1
    for number in range(NUMBERS):
        cell(axes, x + number * step, top, step, height, COLOURS[tap], str(number + shift(tap)))
    note(axes, x, top - 0.4, f"the window: {NUMBERS} rows of channels (256 in the kernel)")
    x += NUMBERS * step + 0.3
    note(axes, x, top + height / 2, "→")
    x += 0.6
    for number in range(NUMBERS):
        cell(axes, x + number * step, top, step, height, PALE if is_dropped(number) else "white", str(number))
        if is_dropped(number):
            strike(axes, x + number * step, top, step, height)
    note(axes, x, top - 0.4, "sums, in registers: 64 filters of each number")


def draw(target: Path) -> None:
    """Writes the picture.

    Args:
        target: an SVG file.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": "halo", "font.sans-serif": ["DejaVu Sans"]}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(10.4, 6.4))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-0.6, 25.4)
        axes.set_ylim(15.4, -0.6)
        axes.axis("off")
        note(axes, 0, 0, "The box of the input, one row of the slot for each pixel", weight="bold")
        draw_box(axes, 0, 1.7, (0, 0))
        draw_box(axes, 12, 1.7, (1, 2))
        for line, text in enumerate(
            ("struck out: numbers", "beyond the output's", "columns, computed", "and dropped")
        ):
            note(axes, 20.6, 2.4 + 0.7 * line, text)
        note(axes, 0, 6.7, "The slot in shared memory, and the windows of both taps", weight="bold")
        draw_slot(axes, 0, 7.9, 0.78)
        note(
            axes,
            0,
            10.3,
            "What is multiplied for tap (1, 2), and added to the same sums as every tap",
            weight="bold",
        )
        draw_product(axes, 0, 11.7, (1, 2))
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    # A line for each element.
    target.write_text(re.sub(r"\s*\n\s*(?!\s|<g )", " ", written.getvalue().strip()) + "\n")


if __name__ == "__main__":
    draw(Path(__file__).with_name("halo_tile.svg"))
