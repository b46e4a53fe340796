"""Placing things in inches, from the figure's upper left corner: axes, texts, legends, frames.

So the size of a figure follows from what stands in it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from sublora.report.style import GRID, HATCH, INK, MUTED, PAPER, SMALL, TITLE
from sublora.text import number

_LEGEND_LEFT, _LEGEND_TOP, _LEGEND_ROW, _TITLE_ROW = 0.05, 0.27, 0.15, 0.15


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size, with a canvas that can measure text."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def place_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose upper left corner lies `left`, `top` inches from the figure's."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def write(figure: Figure, left: float, top: float, text: str, **style) -> Text:
    """Text at `left`, `top` inches from the upper left corner."""
    w, h = figure.get_size_inches()
    style = {"fontsize": SMALL, "va": "top", "ha": "left"} | style
    return figure.text(left / w, 1 - top / h, text, **style)


def wrapped(figure: Figure, text: str, width: float, size: float, weight: str) -> list[str]:
    """A text in lines no wider than `width` inches, unless a single word is."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(figure, longer, size, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def name_x_axis(figure: Figure, centre: float, top: float, text: str) -> None:
    """The name of a horizontal axis, moved to the left where it would leave the figure."""
    half = text_width(figure, text) / 2 + 0.03
    centre = max(min(centre, float(figure.get_figwidth()) - half), half)
    write(figure, centre, top, text, color=MUTED, ha="center")


def name_row(figure: Figure, right: float, middle: float, text: str, **style) -> None:
    """The name of a row, ending at `right`."""
    write(figure, right, middle, text, ha="right", va="center_baseline", **style)


def text_width(figure: Figure, text: str, size: float = SMALL, weight: str = "normal") -> float:
    """Width of a text in inches."""
    probe = figure.text(0, 0, text, fontsize=size, fontweight=weight)
    extent = probe.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi
    probe.remove()
    return extent


class Key(NamedTuple):
    """One entry of a legend: a word and how its sample is drawn."""

    text: str
    colour: str
    marker: str = ""
    line: str | tuple = ""
    filled: bool = True
    hatch: bool = False
    bar: bool = False


def _flow(figure: Figure, keys: Sequence[Key], width: float) -> list[list[tuple[float, Key]]]:
    """Break a legend into rows no wider than `width` inches; each entry comes with its left edge."""
    rows: list[list[tuple[float, Key]]] = [[]]
    left = 0.0
    for key in keys:
        need = 0.36 + text_width(figure, key.text)
        if rows[-1] and left + need > width:
            rows.append([])
            left = 0.0
        rows[-1].append((left, key))
        left += need + 0.13
    return rows


def _sample(figure: Figure, key: Key, x: float, y: float) -> list[Artist]:
    """What stands before a legend's word: 0.3 inches of hatching, an interval's bar, or a line with a marker."""
    w, h = figure.get_size_inches()
    if key.hatch:
        corner = (x / w, 1 - (y + 0.05) / h)
        look = {"facecolor": "none", "edgecolor": key.colour, "hatch": HATCH, "linewidth": 0.5}
        return [Rectangle(corner, 0.3 / w, 0.1 / h, **look)]
    if key.bar:
        strokes = (
            ([x + 0.15] * 2, [y - 0.055, y + 0.055]),
            ([x + 0.12, x + 0.18], [y - 0.055] * 2),
            ([x + 0.12, x + 0.18], [y + 0.055] * 2),
        )
        return [
            Line2D([v / w for v in xs], [1 - v / h for v in ys], color=key.colour, linewidth=1.1)
            for xs, ys in strokes
        ]
    return [
        Line2D(
            [x / w, (x + 0.15) / w, (x + 0.30) / w],
            [1 - y / h] * 3,
            color=key.colour,
            linestyle=key.line or "none",
            linewidth=1.2,
            marker=key.marker,
            markevery=[1],
            markersize=4,
            markeredgewidth=0.9,
            markerfacecolor=key.colour if key.filled else PAPER,
        )
    ]


def head_height(title: str, keys: Sequence[Key], width: float) -> float:
    """Height in inches of the legend, and of the title's lines after the first, of a figure `width` inches wide."""
    probe, room = new_figure(width, 3), width - 2 * _LEGEND_LEFT
    more = len(wrapped(probe, title, room, TITLE, "bold")) - 1
    return _TITLE_ROW * max(0, more) + _LEGEND_ROW * len(_flow(probe, keys, room))


def draw_head(figure: Figure, title: str, keys: Sequence[Key]) -> None:
    """The title, and under it the legend, in as many lines as they need."""
    width = float(figure.get_figwidth()) - 2 * _LEGEND_LEFT
    lines = wrapped(figure, title, width, TITLE, "bold")
    for i, line in enumerate(lines):
        write(figure, _LEGEND_LEFT, 0.04 + _TITLE_ROW * i, line, fontsize=TITLE, fontweight="bold")
    top = _LEGEND_TOP + _TITLE_ROW * max(0, len(lines) - 1)
    for i, row in enumerate(_flow(figure, keys, width)):
        for offset, key in row:
            x, y = _LEGEND_LEFT + offset, top + _LEGEND_ROW * i + 0.055
            for artist in _sample(figure, key, x, y):
                figure.add_artist(artist)
            write(figure, x + 0.35, y, key.text, va="center_baseline")


def quiet_frame(axes: Axes, lines: str) -> None:
    """Only the axis line below, and hairlines across the axis `lines` ("x" or "y") without ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_facecolor("none")
    axes.tick_params(length=2.2, width=0.6, pad=2, labelsize=SMALL, labelcolor=INK)
    if lines == "y":
        axes.tick_params(axis="y", length=0)
    else:
        axes.set_yticks([])
    axes.grid(axis=lines, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values that cover [low, high]."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-6) / count))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= count)
    return [
        k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many digits as the longest of them needs."""
    digits = next((d for d in range(5) if all(abs(t - round(t, d)) < 1e-9 for t in ticks)), 5)
    return [number(t, digits) for t in ticks]


def span_of(values: Sequence[float], bounds: tuple[float, float] | None) -> tuple[float, float]:
    """The ends of a scale around the values, with some air, within the bounds."""
    low, high = min(values), max(values)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    air = 0.05 * (high - low) or 1e-3
    return low - air, high + air
