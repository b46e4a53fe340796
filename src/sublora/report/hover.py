"""What a figure says beside what it draws: a sentence on every mark that a pointer stays on, and its data as CSV."""

import html
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from sublora.analysis.page import Chart, HeatCell, Heatmap, Point, Series
from sublora.analysis.tables import to_csv
from sublora.text import interval, rate, signed

LEAST = 9.0  # points: a mark smaller than this is hard to hit


def said_of(chart: Chart, series: Series, p: Point) -> str:
    """A point in words."""
    x = "" if p.x is None else f"{chart.x_axis} {rate(p.x) if 0 < p.x < 0.01 else f'{p.x:g}'}"
    place = ", ".join(filter(None, (series.panel, series.name, p.label, x, p.note)))
    return f"{place or chart.axis}: {signed(p.estimate)} {interval(p.low, p.high)}".rstrip()


def said_of_cell(chart: Heatmap, cell: HeatCell, x_axis: str) -> str:
    """A cell of a heat map in words."""
    marks = (chart.marked, chart.hatched, chart.framed)
    is_so = (cell.marked, cell.hatched, cell.framed)
    more = "".join(f", {name}" for name, so in zip(marks, is_so, strict=True) if so and name)
    place = f"{chart.row_axis} {cell.row}, {x_axis} {cell.column}"
    return f"{place}: {signed(cell.value) if chart.signs else f'{cell.value:.3f}'}{more}"


def links_of(chart: Chart | Heatmap) -> dict[str, str]:
    """What a mark says -> the part of the page that it leads to."""
    if isinstance(chart, Heatmap):
        said = ((said_of_cell(chart, c, b.x_axis), c.link) for b in chart.blocks for c in b.cells)
    else:
        said = ((said_of(chart, s, p), p.link) for s in chart.series for p in s.points)
    return {text: link for text, link in said if link}


def layer(figure: Figure, links: Mapping[str, str]) -> str:
    """A transparent box over every mark with a label, in SVG points; its title is shown where the pointer stays.

    matplotlib's own names of artists begin with an underscore.
    """
    renderer, unit = figure.canvas.get_renderer(), 72 / figure.dpi
    tall = float(figure.get_figheight()) * 72
    marks = [m for axes in figure.axes for m in (*axes.lines, *axes.patches)]
    boxes = []
    for mark in marks:
        said = str(mark.get_label())
        if not said or said.startswith("_"):
            continue
        box = mark.get_window_extent(renderer)
        wide, high = (max(LEAST, side * unit) for side in (box.width, box.height))
        x = (box.x0 + box.x1) / 2 * unit - wide / 2
        y = tall - (box.y0 + box.y1) / 2 * unit - high / 2
        place = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        shape = f'<rect class="hit" {place}><title>{html.escape(said)}</title></rect>'
        link = links.get(said)
        boxes.append(f'<a href="#{html.escape(link)}" tabindex="-1">{shape}</a>' if link else shape)
    return "\n".join(boxes)


def csv_of(chart: Chart | Heatmap) -> str:
    """The numbers of a figure, a line each."""
    return to_csv(list(_lines(chart)))


def _lines(chart: Chart | Heatmap) -> Iterator[dict[str, Any]]:
    if isinstance(chart, Heatmap):
        for block in chart.blocks:
            for c in block.cells:
                place = {"block": block.title or block.x_axis, "row": c.row, "column": c.column}
                marks = {"marked": int(c.marked), "hatched": int(c.hatched)}
                yield {**place, "value": c.value, **marks}
        return
    for series in chart.series:
        for p in series.points:
            place = {"panel": series.panel, "series": series.name, "label": p.label, "x": p.x}
            ends = {name: getattr(p, name) for name in ("estimate", "low", "high", "note")}
            yield {**place, **ends}
