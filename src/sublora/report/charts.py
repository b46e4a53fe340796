"""Figures of experiments: rows of estimates with intervals, and lines of estimates over a number."""

from __future__ import annotations

import math
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sublora.experiment import Chart, Point, Series
from sublora.report.layout import (
    Key,
    draw_legend,
    legend_height,
    name_row,
    name_x_axis,
    new_figure,
    nice_ticks,
    place_axes,
    quiet_frame,
    text_width,
    write,
    write_title,
)
from sublora.report.style import COLUMN, CONTROL, FULL, INK, MUTED, STUDENT, TEACHER
from sublora.report.words import plain, short, tick_labels

_COLOURS = (STUDENT, CONTROL, FULL, TEACHER, MUTED, INK)
_MARKERS = ("o", "D", "s", "^", "v", "X")
_DASH = (0, (3, 2))
_LONGEST = 44  # letters of a row's name


def draw_chart(chart: Chart, width: float = COLUMN) -> Figure:
    """A chart as its kind says."""
    return _rows(chart, width) if chart.kind == "rows" else _lines(chart, width)


def _keys(chart: Chart) -> list[Key]:
    keys = [
        Key(s.name, c, m, "-" if chart.kind == "lines" else "")
        for s, c, m in _styled(chart)
        if s.name
    ]
    if any(p.low is not None for s in chart.series for p in s.points):
        keys.append(Key("interval", INK, bar=True))
    return keys


def _styled(chart: Chart) -> list[tuple[Series, str, str]]:
    count = len(_COLOURS)
    return [(s, _COLOURS[i % count], _MARKERS[i % count]) for i, s in enumerate(chart.series)]


def _span(chart: Chart) -> tuple[float, float]:
    points = list(chain.from_iterable(s.points for s in chart.series))
    values = [v for p in points for v in (p.estimate, p.low, p.high) if v is not None]
    values += [] if chart.reference is None else [chart.reference]
    low, high = min([0.0, *values]), max([0.0, *values])
    pad = 0.05 * (high - low) or 1e-3
    return low - (pad if low < 0 else 0), high + pad


def _ticks(low: float, high: float, count: int) -> tuple[list[float], list[str]]:
    ticks = nice_ticks(low, high, count) if high - low > 1e-5 else [0.0]
    return ticks, tick_labels(ticks)


def _rows(chart: Chart, width: float) -> Figure:
    """One row a label; series with the same label share it."""
    keys = _keys(chart)
    labels = list(dict.fromkeys(p.label for s in chart.series for p in s.points))
    step = 0.18 if len(chart.series) == 1 else 0.26
    top = 0.36 + legend_height(keys, width)
    figure = new_figure(width, top + step * len(labels) + 0.42)
    write_title(figure, chart.title)
    draw_legend(figure, keys)
    left, right = 0.12 + max(text_width(figure, short(n, _LONGEST)) for n in labels), 0.46
    wide = max(width - left - right, 0.9)
    if left + wide + right > width:
        figure.set_figwidth(left + wide + right)
    axes = place_axes(figure, left, top, wide, step * len(labels))
    low, high = _span(chart)
    axes.set_xlim(low, high)
    axes.set_ylim(len(labels), 0)
    quiet_frame(axes, "x")
    axes.set_xticks(*_ticks(low, high, 3))
    axes.axvline(0, color=MUTED, linewidth=0.9)
    if chart.reference:
        axes.axvline(chart.reference, color=MUTED, linewidth=1, linestyle=_DASH)
    for i, label in enumerate(labels):
        name_row(figure, left - 0.07, top + (i + 0.5) * step, short(label, _LONGEST))
    apart = 0.5 / len(chart.series)
    for k, (series, colour, marker) in enumerate(_styled(chart)):
        for p in series.points:
            y = labels.index(p.label) + 0.5 + (k - (len(chart.series) - 1) / 2) * apart
            _bar(axes, p, [y, y], colour, across=True)
            axes.plot([p.estimate], [y], marker, color=colour, markersize=4.2, zorder=4)
            if len(chart.series) == 1:
                text = plain(p.estimate, 3)
                name_row(figure, left + wide + right - 0.05, top + y * step, text)
    name_x_axis(figure, left + wide / 2, top + step * len(labels) + 0.18, chart.axis)
    return figure


def _bar(axes: Axes, p: Point, at: list[float], colour: str, across: bool) -> None:
    if p.low is None or p.high is None:
        return
    ends = {"marker": "|" if across else "_", "markersize": 4, "markeredgewidth": 1, "zorder": 3}
    xs, ys = ([p.low, p.high], at) if across else (at, [p.low, p.high])
    axes.plot(xs, ys, color=colour, linewidth=1.1, **ends)


def _sparse(places: list[float], names: list[str]) -> list[str]:
    """The names, without those that would touch the one before."""
    out, last = [], float("-inf")
    for place, name in zip(places, names, strict=True):
        free = place - last >= 0.08 * (places[-1] - places[0])
        out.append(name if free else "")
        last = place if free else last
    return out


def _lines(chart: Chart, width: float) -> Figure:
    """One line a series over x, on a logarithmic axis where the chart says so."""
    keys = _keys(chart)
    top, tall = 0.5 + legend_height(keys, width), 1.75
    figure = new_figure(width, top + tall + 0.48)
    write_title(figure, chart.title)
    draw_legend(figure, keys)
    write(figure, 0.05, top - 0.17, chart.axis, color=MUTED)
    low, high = _span(chart)
    ticks, names = _ticks(low, high, 6)
    left = 0.14 + max(text_width(figure, n) for n in names)
    wide = width - left - 0.12
    axes = place_axes(figure, left, top, wide, tall)
    axes.set_ylim(low, high)
    quiet_frame(axes, "y")
    axes.set_yticks(ticks, names)
    axes.axhline(
        chart.reference or 0.0,
        color=MUTED,
        linewidth=0.9,
        linestyle=_DASH if chart.reference else "-",
    )
    xs = sorted({p.x for s in chart.series for p in s.points if p.x is not None})
    at = (lambda x: math.log10(x)) if chart.log_x else (lambda x: x)
    pad = 0.04 * (at(xs[-1]) - at(xs[0])) or 0.5
    axes.set_xlim(at(xs[0]) - pad, at(xs[-1]) + pad)
    axes.set_xticks([at(x) for x in xs], _sparse([at(x) for x in xs], [f"{x:g}" for x in xs]))
    for k, (series, colour, marker) in enumerate(_styled(chart)):
        # side by side, or the bars of one x would hide each other
        aside = (k - (len(chart.series) - 1) / 2) * 0.3 * pad
        points = [(at(p.x) + aside, p) for p in series.points if p.x is not None]
        axes.plot(
            [x for x, _ in points],
            [p.estimate for _, p in points],
            color=colour,
            linewidth=1.3,
            zorder=3,
        )
        for x, p in points:
            _bar(axes, p, [x, x], colour, across=False)
            axes.plot([x], [p.estimate], marker, color=colour, markersize=3.8, zorder=4)
    name_x_axis(figure, left + wide / 2, top + tall + 0.2, chart.x_axis)
    return figure
