"""Lines of estimates over a number, in small panels on one scale."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sublora.analysis.page import Chart, Point
from sublora.report import layout
from sublora.report.hover import said_of
from sublora.report.looks import DOTTED, draw_mark, keys_of, panels_of, points_of
from sublora.report.rows import Panel
from sublora.report.style import BODY, COLUMN, MUTED, SMALL
from sublora.text import rate

GAP, RIGHT = 0.16, 0.08  # inches between panels, and beside them
SLOT, LINE = (
    0.55,
    0.12,
)  # inches that the label of a slot may be wide, and that a line of it is high


class Across(NamedTuple):
    """The horizontal axis, `width` inches wide: places of the points, and of the labels below it."""

    place: Callable[[Point], float]
    labels: dict[str, float]
    low: float
    high: float
    width: float

    @property
    def inch(self) -> float:
        return self.width / (self.high - self.low)


def draw_lines(chart: Chart) -> Figure:
    """A small panel for each title, two beside one another, on one scale."""
    panels, keys, probe = panels_of(chart), keys_of(chart), layout.new_figure(COLUMN, 3)
    columns = min(len(panels), 2)
    upright = _upright(chart)
    ticks = layout.nice_ticks(*upright, 5 if columns == 1 else 4)
    left = 0.14 + max(layout.text_width(probe, name) for name in layout.tick_labels(ticks))
    whole = COLUMN - left - RIGHT
    wide = (whole - GAP * (columns - 1)) / columns
    across = _across(chart, probe, wide)
    head, tall = 0.2 if any(panels) else 0.08, 1.75 if columns == 1 else 0.92
    lines = math.ceil(len(panels) / columns)
    notes = _notes(chart, across)
    upright_notes = _touching(probe, notes, across.inch)
    deep = max((layout.text_width(probe, text) for _, text in notes), default=0.0) + 0.04
    deep = 0.0 if not notes else deep if upright_notes else 0.13
    names_end = LINE * max(name.count("\n") for name in across.labels)
    first = 0.44 + layout.head_height(chart.title, keys, COLUMN)
    bottom = first + lines * (head + tall) + 0.16 * (lines - 1) + names_end
    figure = layout.new_figure(COLUMN, bottom + deep + 0.4)
    layout.draw_head(figure, chart.title, keys)
    layout.write(figure, 0.05, first - 0.15, chart.axis, color=MUTED)
    for k, (title, panel) in enumerate(panels.items()):
        row, column = divmod(k, columns)
        x, y = left + column * (wide + GAP), first + head + row * (head + tall + 0.16)
        axes = layout.place_axes(figure, x, y, wide, tall)
        layout.write(figure, x, y - 0.03, title, va="bottom", fontsize=BODY)
        axes.set_xlim(across.low, across.high)
        axes.set_ylim(*upright)
        layout.quiet_frame(axes, "y")
        axes.set_yticks(ticks, layout.tick_labels(ticks) if column == 0 else [""] * len(ticks))
        shown = _fitting(probe, across) if k + columns >= len(panels) else {}
        names = [name if name in shown else "" for name in across.labels]
        axes.set_xticks(list(across.labels.values()), names)
        _draw_panel(axes, panel, chart, across)
    style = {"rotation": 90} if upright_notes else {}
    for place, text in notes:
        at = left + (place - across.low) * across.inch
        layout.write(figure, at, bottom + 0.18, text, ha="center", color=MUTED, **style)
    if notes:
        layout.write(figure, 0.05, bottom + 0.18, chart.notes, color=MUTED)
    layout.name_x_axis(figure, left + whole / 2, bottom + deep + 0.2, chart.x_axis)
    return figure


def _upright(chart: Chart) -> tuple[float, float]:
    points = list(points_of(chart))
    values = [v for p in points for v in (p.estimate, p.low, p.high) if v is not None]
    values += [0.0, chart.least] + ([] if chart.reference is None else [chart.reference])
    low, high = layout.span_of(values, chart.bounds)
    return 0.0 if min(values) >= 0 else low, high


def _across(chart: Chart, figure: Figure, width: float) -> Across:
    """x as it is or its log2, and a slot beyond the last x for every label of points without x."""
    xs = sorted({p.x for p in points_of(chart) if p.x is not None})
    slots = {
        p.label: "\n".join(layout.wrapped(figure, p.label, SLOT, SMALL, "normal"))
        for p in points_of(chart)
        if p.x is None
    }
    small = chart.log_x and any(x < 0.01 for x in xs)
    texts = [rate(x) if small else f"{x:g}" for x in xs]
    at = [math.log2(x) if chart.log_x else x for x in xs] or [0.0]
    first, last = at[0], at[-1]
    pad = max(0.06 * (last - first), 0.35 if chart.log_x else 0.0) or 0.5
    wide = max((layout.text_width(figure, n) for n in slots.values()), default=0.0)
    tick = layout.text_width(figure, texts[-1] if texts else "")
    need = max(wide if len(slots) > 1 else 0.0, (wide + tick) / 2) + 0.07
    inches = need * len(slots) + max(0.0, wide / 2 - RIGHT)  # of the slots and beside the last
    unit = (last - first + 2 * pad) / max(width - inches, 0.35 * width)
    gap = max(0.15 * (last - first), need * unit)
    beyond = {name: last + (k + 1) * gap for k, name in enumerate(slots)}
    right = max(pad, (wide / 2 - RIGHT) * unit)

    def place(p: Point) -> float:
        if p.x is None:
            return beyond[p.label]
        return math.log2(p.x) if chart.log_x else p.x

    labels = dict(zip(texts, at, strict=False)) | {slots[n]: x for n, x in beyond.items()}
    return Across(place, labels, first - pad, last + right + gap * len(slots), width)


def _fitting(figure: Figure, across: Across) -> set[str]:
    """The labels at the ends, and as many between them as fit."""
    names = list(across.labels)
    placed: dict[str, float] = {}
    for name in dict.fromkeys((names[-1], names[0], *reversed(names))):
        x, need = across.labels[name], layout.text_width(figure, name)
        if all(
            abs(x - other) * across.inch > (need + layout.text_width(figure, text)) / 2 + 0.05
            for text, other in placed.items()
        ):
            placed[name] = x
    return set(placed)


def _notes(chart: Chart, across: Across) -> list[tuple[float, str]]:
    """What stands below the places of the axis; a dash where no point has a note."""
    if not chart.notes:
        return []
    found = dict.fromkeys(across.labels.values(), "–")
    return sorted((found | {across.place(p): p.note for p in points_of(chart) if p.note}).items())


def _touching(figure: Figure, notes: Sequence[tuple[float, str]], inch: float) -> bool:
    sized = [(place * inch, layout.text_width(figure, text)) for place, text in notes]
    return any(b - a < (m + n) / 2 + 0.05 for (a, m), (b, n) in pairwise(sized))


def _draw_panel(axes: Axes, panel: Panel, chart: Chart, across: Across) -> None:
    reference = chart.reference
    line = {"linewidth": 1.0, "zorder": 1.5, "color": MUTED}
    axes.axhline(reference or 0.0, linestyle=DOTTED if reference else "-", **line)
    barred = [s for s, _ in panel if any(p.low is not None and p.x is not None for p in s.points)]
    pad = 0.02 * (across.high - across.low)
    for series, look in panel:
        # side by side, or the bars of one x would hide each other
        aside = 0.0
        if len(barred) > 1 and series in barred:
            aside = (barred.index(series) - (len(barred) - 1) / 2) * 0.5 * pad
        places = [across.place(p) + (aside if p.x is not None else 0.0) for p in series.points]
        style = {"color": look.colour, "linestyle": look.line, "zorder": 3}
        if all(p.x is None for p in series.points):
            for p in series.points:
                axes.axhline(p.estimate, linewidth=0.9, **style)
        else:
            pairs = zip(places, series.points, strict=True)
            line = [(place, p.estimate) for place, p in pairs if p.x is not None]
            axes.plot(*zip(*line, strict=True), linewidth=1.3, **style)
        for place, p in zip(places, series.points, strict=True):
            draw_mark(axes, look, place, p, False, 3.9, said_of(chart, series, p))
