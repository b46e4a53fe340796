"""Heat maps: values by row and column, with called cells dotted and cells that cannot be trusted hatched."""

from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sublora.analysis.page import HeatBlock, HeatCell, Heatmap
from sublora.report import layout
from sublora.report.hover import said_of_cell
from sublora.report.style import BODY, COLUMN, GRID, HATCH, INK, MUTED
from sublora.text import compact, number, share, short

ROW, GAP, NARROWEST = 0.235, 0.02, 0.32  # inches: a row, air between cells, the least of a column
LONGEST = 18  # letters of a name


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


def draw_heatmap(chart: Heatmap) -> Figure:
    """The blocks below one another, and the colour scale under them."""
    probe = layout.new_figure(COLUMN, 3)
    rows = [short(name, LONGEST) for block in chart.blocks for name in block.rows]
    left = 0.14 + max(layout.text_width(probe, n, BODY) for n in (*rows, chart.row_axis))
    columns = max(len(block.columns) for block in chart.blocks)
    width = left + max(COLUMN - left - 0.05, NARROWEST * columns)
    keys = _keys(chart)
    deep = [_names_depth(probe, block, width - left) for block in chart.blocks]
    heads = [0.17 if block.title else 0.0 for block in chart.blocks]
    top = 0.42 + layout.head_height(chart.title, keys, width)
    tall = [
        h + ROW * len(b.rows) + d + 0.23 for h, b, d in zip(heads, chart.blocks, deep, strict=True)
    ]
    figure = layout.new_figure(width + 0.05, top + sum(tall) + 0.2)
    layout.draw_head(figure, chart.title, keys)
    layout.write(
        figure, left - 0.07, top - 0.03, chart.row_axis, color=MUTED, ha="right", va="bottom"
    )
    for block, head, height in zip(chart.blocks, heads, tall, strict=True):
        if head:
            layout.write(figure, left, top + 0.03, block.title, color=MUTED)
        _draw_block(figure, chart, block, left, top + head, width - left)
        layout.name_x_axis(figure, (left + width) / 2, top + height - 0.23, block.x_axis)
        top += height
    _draw_scale(figure, chart, left, top + 0.03, width - left)
    return figure


def _keys(chart: Heatmap) -> list[layout.Key]:
    cells = [cell for block in chart.blocks for cell in block.cells]
    keys = [
        (any(c.marked for c in cells), layout.Key(chart.marked, INK, marker="o")),
        (any(c.hatched for c in cells), layout.Key(chart.hatched, MUTED, hatch=True)),
        (any(c.framed for c in cells), layout.Key(chart.framed, MUTED, line="-")),
    ]
    return [key for present, key in keys if present and key.text]


def _is_upright(figure: Figure, block: HeatBlock, width: float) -> bool:
    step = width / len(block.columns) - 0.03
    return any(layout.text_width(figure, short(n, LONGEST)) > step for n in block.columns)


def _names_depth(figure: Figure, block: HeatBlock, width: float) -> float:
    """Room below a block for the names of its columns."""
    if not _is_upright(figure, block, width):
        return 0.15
    return 0.07 + max(layout.text_width(figure, short(n, LONGEST)) for n in block.columns)


def _draw_block(
    figure: Figure, chart: Heatmap, block: HeatBlock, left: float, top: float, width: float
) -> None:
    step, height = width / len(block.columns), len(block.rows) * ROW
    axes = layout.place_axes(figure, left, top, width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    found = {(c.row, c.column): c for c in block.cells}
    for i, row in enumerate(block.rows):
        layout.name_row(
            figure, left - 0.07, top + (i + 0.5) * ROW, short(row, LONGEST), fontsize=BODY
        )
        for j, column in enumerate(block.columns):
            box = Box(j * step + GAP / 2, i * ROW + GAP / 2, step - GAP, ROW - GAP)
            cell = found.get((row, column))
            said = said_of_cell(chart, cell, block.x_axis) if cell else ""
            _draw_cell(axes, box, chart, cell, said)
    style = {"rotation": 90} if _is_upright(figure, block, width) else {}
    for j, name in enumerate(block.columns):
        x = left + (j + 0.5) * step
        layout.write(figure, x, top + height + 0.03, short(name, LONGEST), ha="center", **style)


def _ink_on(fill: tuple[float, ...]) -> str:
    """White or black, whichever can be read on the fill."""
    luminance = 0.2126 * fill[0] ** 2.2 + 0.7152 * fill[1] ** 2.2 + 0.0722 * fill[2] ** 2.2
    return "#ffffff" if luminance < 0.2 else "#101010"


def _draw_cell(axes: Axes, box: Box, chart: Heatmap, cell: HeatCell | None, said: str) -> None:
    """The cell's colour and number; hatched and with a dot where it is so, a mere frame where there is none."""
    (x, y), figure = box.middle, axes.figure
    if cell is None:
        axes.add_patch(box.patch(facecolor="none", edgecolor=GRID, linewidth=0.6))
        axes.text(x, y, "·", ha="center", va="center", color=MUTED)
        return
    place = (cell.value - chart.low) / (chart.high - chart.low)
    fill = matplotlib.colormaps[chart.colours](min(1.0, max(0.0, place)))
    ink, weight = _ink_on(fill), "bold" if cell.marked else "normal"
    text = compact(cell.value, chart.digits) if chart.signs else share(cell.value)
    axes.add_patch(box.patch(facecolor=fill, linewidth=0, label=said))
    if cell.hatched:
        edge = (*matplotlib.colors.to_rgb(ink), 0.55)
        axes.add_patch(box.patch(facecolor="none", edgecolor=edge, hatch=HATCH, linewidth=0))
        # the number stands clear of the hatching
        half = layout.text_width(figure, text, BODY, weight) / 2 + 0.025
        clear = Rectangle((x - half, y - 0.065), 2 * half, 0.13, facecolor=fill, linewidth=0)
        axes.add_patch(clear)
    style = {"ha": "center", "va": "center_baseline", "fontsize": BODY, "fontweight": weight}
    axes.text(x, y + 0.005, text, color=ink, **style)
    if cell.marked:
        dot = {"marker": "o", "markersize": 2.6 if box.width > 0.4 else 2.2, "markeredgewidth": 0}
        axes.plot([box.x + box.width - 0.036], [box.y + 0.036], color=ink, **dot)
    if cell.framed:
        axes.add_patch(box.patch(facecolor="none", edgecolor=MUTED, linewidth=1.4))


def _draw_scale(figure: Figure, chart: Heatmap, left: float, top: float, width: float) -> None:
    """A slim colour scale with its two ends written beside it."""
    low, high = number(chart.low, 2), number(chart.high, 2)
    wide_low, wide_high = layout.text_width(figure, low), layout.text_width(figure, high)
    bar, steps, middle = 0.7, 48, top + 0.045
    start = left + width - (wide_low + bar + wide_high + 0.1)
    name = {"color": MUTED, "va": "center_baseline", "ha": "right"}
    layout.write(figure, start - 0.09, middle, chart.scale, **name)
    layout.write(figure, start, middle, low, va="center_baseline")
    axes = layout.place_axes(figure, start + wide_low + 0.05, top, bar, 0.09)
    axes.axis("off")
    colours = matplotlib.colormaps[chart.colours]
    for k in range(steps):
        axes.add_patch(Rectangle((k, 0), 1.05, 1, facecolor=colours(k / (steps - 1)), linewidth=0))
    axes.set_xlim(0, steps)
    axes.set_ylim(0, 1)
    layout.write(figure, start + wide_low + 0.1 + bar, middle, high, va="center_baseline")
