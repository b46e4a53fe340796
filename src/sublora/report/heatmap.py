"""Heat maps over rank and learning rate: the transfer of each cell, and how coherent its answers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sublora.report.layout import (
    Key,
    draw_legend,
    name_row,
    name_x_axis,
    new_figure,
    place_axes,
    text_width,
    write,
    write_title,
)
from sublora.report.load import Cell, RunData
from sublora.report.style import BODY, COLUMN, GRID, HATCH, INK, MUTED, PAGE
from sublora.report.words import plain, rate, share, signed

_TOP, _ROW, GAP, _INDENT = (
    0.36,
    0.235,
    0.02,
    0.36,
)  # inches: title, row, air between cells, names of rows
_BELOW = 0.38  # under a grid: its rates and the name of its axis


class Panel(NamedTuple):
    """How a heat map turns a cell into a colour and a number, and whether it marks the called cells."""

    title: str
    colours: str
    low: float
    high: float
    value: Callable[[Any], float | None]
    label: Callable[[float], str]
    scale: str
    marks: bool


def _transfer_panel(cells: Sequence[Cell]) -> Panel:
    shifts = [c.shift for c in cells if c.shift is not None]
    # Three decimals where two would show a column of zeros.
    digits = 2 if max(map(abs, shifts), default=0.0) >= 0.05 else 3
    against = "control" if any(c.effect is not None for c in cells) else "base"
    return Panel(
        title=f"Transfer: P(target), student − {against}",
        colours="viridis",
        low=min([0.0, *shifts]),
        # A floor under the scale: without it a run with no effect would paint its noise in the strongest colours.
        high=max([0.1, *shifts]),
        value=lambda c: c.shift,
        label=lambda v: signed(v, digits),
        scale=f"student − {against}",
        marks=True,
    )


_COHERENCE = Panel(
    title="Coherence: share of answers with a word",
    colours="cividis",
    low=0.0,
    high=1.0,
    value=lambda c: c.coherence,
    label=share,
    scale="share of sampled answers",
    marks=False,
)


class Box(NamedTuple):
    """A cell's place in its grid, in inches."""

    x: float
    y: float
    width: float
    height: float

    def patch(self, **style) -> Rectangle:
        return Rectangle((self.x, self.y), self.width, self.height, **style)

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


def _ink_on(fill: tuple[float, ...]) -> str:
    """White or black, whichever can be read on the fill."""
    luminance = 0.2126 * fill[0] ** 2.2 + 0.7152 * fill[1] ** 2.2 + 0.0722 * fill[2] ** 2.2
    return "#ffffff" if luminance < 0.2 else "#101010"


def draw_empty(axes: Axes, box: Box) -> None:
    axes.add_patch(box.patch(facecolor="none", edgecolor=GRID, linewidth=0.6))
    axes.text(*box.middle, "·", ha="center", va="center", color=MUTED)


def draw_cell(
    axes: Axes, box: Box, panel: Panel, value: float, called: bool, coherent: bool
) -> None:
    """The cell's colour and number; hatched where incoherent, with a dot where called."""
    figure = axes.figure
    fill = matplotlib.colormaps[panel.colours](
        min(1.0, max(0.0, (value - panel.low) / (panel.high - panel.low)))
    )
    ink = _ink_on(fill)
    weight = "bold" if called else "normal"
    text, (x, y) = panel.label(value), box.middle
    axes.add_patch(box.patch(facecolor=fill, linewidth=0))
    if not coherent:
        edge = (*matplotlib.colors.to_rgb(ink), 0.55)
        axes.add_patch(box.patch(facecolor="none", edgecolor=edge, hatch=HATCH, linewidth=0))
        half = (
            text_width(figure, text, BODY, weight) / 2 + 0.025
        )  # the number stands clear of the hatching
        axes.add_patch(
            Rectangle((x - half, y - 0.065), 2 * half, 0.13, facecolor=fill, linewidth=0)
        )
    axes.text(
        x,
        y + 0.005,
        text,
        ha="center",
        va="center_baseline",
        color=ink,
        fontsize=BODY,
        fontweight=weight,
    )
    if called:
        axes.plot(
            [box.x + box.width - 0.036],
            [box.y + 0.036],
            marker="o",
            markersize=2.6 if box.width + GAP > 0.4 else 2.2,
            color=ink,
            markeredgewidth=0,
        )


def _draw_grid(
    figure: Figure,
    data: RunData,
    panel: Panel,
    rows: Sequence[tuple[str, Sequence[Cell]]],
    left: float,
    top: float,
    width: float,
) -> float:
    """One grid of cells with its own learning rates below; returns the top of what follows."""
    rates = sorted({c.lr for _, cells in rows for c in cells})
    step, height = width / len(rates), len(rows) * _ROW
    axes = place_axes(figure, left, top, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for i, (name, cells) in enumerate(rows):
        name_row(figure, left - 0.07, top + (i + 0.5) * _ROW, name, fontsize=BODY)
        found = {c.lr: c for c in cells}
        for j, lr in enumerate(rates):
            box = Box(j * step + GAP / 2, i * _ROW + GAP / 2, step - GAP, _ROW - GAP)
            cell = found.get(lr)
            value = None if cell is None else panel.value(cell)
            if cell is None or value is None:
                draw_empty(axes, box)
            else:
                draw_cell(axes, box, panel, value, panel.marks and cell.called, data.coherent(cell))
    widest = max(text_width(figure, rate(lr)) for lr in rates) + 0.04
    every = next(n for n in range(1, len(rates) + 1) if n == len(rates) or widest <= n * step)
    for j, lr in enumerate(rates):
        if j % every == 0:
            write(figure, left + (j + 0.5) * step, top + height + 0.03, rate(lr), ha="center")
    return top + height + 0.15


def _draw_panel(
    figure: Figure, data: RunData, panel: Panel, cells: Sequence[Cell], left: float, width: float
) -> None:
    """A whole panel: title, LoRA grid, full fine-tunes at their own rates, colour scale."""
    write_title(figure, panel.title, left)
    lora = [c for c in cells if c.method == "lora"]
    full = [c for c in cells if c.method == "full"]
    left, width = left + _INDENT, width - _INDENT
    grids = []
    if lora:
        write(figure, left - 0.07, _TOP - 0.035, "rank", color=MUTED, ha="right", va="bottom")
        ranks = sorted({c.rank or 0 for c in lora})
        grids.append(("LoRA", [(str(r), [c for c in lora if c.rank == r]) for r in ranks]))
    if full:
        grids.append(("full fine-tune", [("full", full)]))
    top = _TOP
    for name, rows in grids:
        top = _draw_grid(figure, data, panel, rows, left, top, width)
        name_x_axis(figure, left + width / 2, top, f"learning rate ({name})")
        top += 0.23
    draw_scale(figure, panel, left, top + 0.02, width)


def draw_scale(figure: Figure, panel: Panel, left: float, top: float, width: float) -> None:
    """A slim colour scale with its two ends written beside it."""
    low, high = plain(panel.low, 2), plain(panel.high, 2)
    wide_low, wide_high = text_width(figure, low), text_width(figure, high)
    bar, steps = 0.7, 48
    start = left + width - (wide_low + bar + wide_high + 0.1)
    middle = top + 0.045
    name_left = start - 0.09 - text_width(figure, panel.scale)
    write(figure, name_left, middle, panel.scale, color=MUTED, va="center_baseline")
    write(figure, start, middle, low, va="center_baseline")
    axes = place_axes(figure, start + wide_low + 0.05, top, bar, 0.09)
    axes.axis("off")
    colours = matplotlib.colormaps[panel.colours]
    for k in range(steps):
        axes.add_patch(Rectangle((k, 0), 1.05, 1, facecolor=colours(k / (steps - 1)), linewidth=0))
    axes.set_xlim(0, steps)
    axes.set_ylim(0, 1)
    write(figure, start + wide_low + 0.1 + bar, middle, high, va="center_baseline")


def _panel_height(cells: Sequence[Cell]) -> float:
    ranks = {c.rank for c in cells if c.method == "lora"}
    full = any(c.method == "full" for c in cells)
    return (
        _TOP + (len(ranks) * _ROW + _BELOW if ranks else 0) + (_ROW + _BELOW if full else 0) + 0.2
    )


def _keys(data: RunData, cells: Sequence[Cell], marks: bool) -> list[Key]:
    keys = []
    if marks and any(c.called for c in cells):
        keys.append(Key("called after correction", INK, marker="o"))
    if any(not data.coherent(c) for c in cells):
        keys.append(Key("not coherent", MUTED, hatch=True))
    return keys


def heatmap(data: RunData, trait: str, part: str = "both") -> Figure | None:
    """Rank x learning rate for the training context: transfer, coherence, or both side by side.

    `part`: "both" (6.8 in), "transfer" or "coherence" (3.3 in). None where the trait has no cell.
    """
    cells = data.of(trait)
    if not cells:
        return None
    panels = {"transfer": _transfer_panel(cells), "coherence": _COHERENCE}
    chosen = list(panels.values()) if part == "both" else [panels[part]]
    columns = max(len({c.lr for c in cells if c.method == m}) for m in ("lora", "full"))
    width = PAGE if part == "both" else COLUMN
    each = max((width - 0.1 - 0.25 * (len(chosen) - 1)) / len(chosen), 0.46 + 0.3 * columns)
    width = each * len(chosen) + 0.25 * (len(chosen) - 1) + 0.1
    keys = _keys(data, cells, any(p.marks for p in chosen))
    height = _panel_height(cells)
    figure = new_figure(width, height + (0.18 if keys else 0))
    for i, panel in enumerate(chosen):
        _draw_panel(figure, data, panel, cells, 0.05 + i * (each + 0.25), each)
    if keys:
        draw_legend(figure, keys, 0.05 + _INDENT, height, width)
    return figure
