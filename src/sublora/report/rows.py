"""Rows of estimates with their intervals, or of bars: one row a label."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sublora.analysis.page import Chart, Point, Series
from sublora.report import layout
from sublora.report.hover import said_of
from sublora.report.looks import REFERENCE, Look, draw_mark, keys_of, panels_of, points_of
from sublora.report.style import BODY, COLUMN, MUTED, SMALL
from sublora.text import number, share, short

LONGEST, WIDE, GAP = 44, 5.2, 0.2  # letters of a row's name; inches

Panel = list[tuple[Series, Look]]


def draw_rows(chart: Chart) -> Figure:
    """Panels below one another, each with its rows, or beside one another with the same rows."""
    return _beside(chart) if chart.beside else _stacked(chart)


def _labels(panel: Panel) -> dict[str, bool]:
    """The rows of a panel, and whether they are bold."""
    points = [p for series, _ in panel for p in series.points]
    return {p.label: p.strong for p in points}


def _names_width(figure: Figure, labels: dict[str, bool]) -> float:
    weight = {True: "bold", False: "normal"}
    sizes = [
        layout.text_width(figure, short(n, LONGEST), weight=weight[b]) for n, b in labels.items()
    ]
    return 0.14 + max(sizes)


def _name_rows(
    figure: Figure, labels: dict[str, bool], left: float, top: float, step: float
) -> None:
    for i, (label, strong) in enumerate(labels.items()):
        style = {"fontweight": "bold"} if strong else {}
        layout.name_row(figure, left - 0.07, top + (i + 0.5) * step, short(label, LONGEST), **style)


def _scale(chart: Chart, points: list[Point], zero: bool) -> tuple[float, float]:
    values = [v for p in points for v in (p.estimate, p.low, p.high) if v is not None]
    values += [0.0, chart.least] if zero else []
    values += [] if chart.reference is None else [chart.reference]
    return layout.span_of(values, chart.bounds)


def _frame(axes: Axes, rows: int, scale: tuple[float, float], ticks: int) -> None:
    axes.set_xlim(*scale)
    axes.set_ylim(rows, 0)
    layout.quiet_frame(axes, "x")
    places = layout.nice_ticks(*scale, ticks) if scale[1] - scale[0] > 1e-5 else [0.0]
    axes.set_xticks(places, layout.tick_labels(places))
    if scale[0] <= 0 <= scale[1]:
        axes.axvline(0, color=MUTED, linewidth=0.9)


def _stacked(chart: Chart) -> Figure:
    panels, keys = panels_of(chart), keys_of(chart)
    rows = {title: _labels(panel) for title, panel in panels.items()}
    step = 0.18 if all(len(panel) == 1 for panel in panels.values()) else 0.26
    below = 0.46 if chart.axis else 0.34
    probe = layout.new_figure(COLUMN, 3)
    left = _names_width(probe, {n: b for labels in rows.values() for n, b in labels.items()})
    texts = [number(p.estimate) for p in points_of(chart)]
    right = 0.14 + max(layout.text_width(probe, text) for text in texts)
    wide = max(COLUMN - left - right, 0.9)
    width = left + wide + right
    names = {t: layout.wrapped(probe, t, width - 0.1, BODY, "bold") if t else [] for t in panels}
    head = {t: 0.135 * len(lines) + 0.065 * bool(lines) for t, lines in names.items()}
    top = 0.4 + layout.head_height(chart.title, keys, width)
    height = top + sum(head[t] + step * len(rows[t]) + below for t in panels)
    figure = layout.new_figure(width, height)
    layout.draw_head(figure, chart.title, keys)
    shared = _scale(chart, list(points_of(chart)), True)
    for title, panel in panels.items():
        for k, line in enumerate(names[title]):
            layout.write(figure, 0.05, top + 0.135 * k, line, fontsize=BODY, fontweight="bold")
        top += head[title]
        points = [p for series, _ in panel for p in series.points]
        tall = step * len(rows[title])
        axes = layout.place_axes(figure, left, top, wide, tall)
        scale = shared if chart.axis else _scale(chart, points, True)
        _frame(axes, len(rows[title]), scale, 3)
        if chart.reference:
            axes.axvline(chart.reference, color=MUTED, linewidth=1, linestyle=REFERENCE)
        _name_rows(figure, rows[title], left, top, step)
        _draw_panel(axes, panel, list(rows[title]), chart)
        if len(panel) == 1:
            for i, p in enumerate(points):
                layout.name_row(figure, width - 0.05, top + (i + 0.5) * step, number(p.estimate))
        layout.name_x_axis(figure, left + wide / 2, top + tall + 0.18, chart.axis)
        top += tall + below
    return figure


def _draw_panel(axes: Axes, panel: Panel, labels: list[str], chart: Chart) -> None:
    apart = 0.5 / len(panel)
    for k, (series, look) in enumerate(panel):
        aside = (k - (len(panel) - 1) / 2) * apart
        for p in series.points:
            place = labels.index(p.label) + 0.5 + aside
            draw_mark(axes, look, place, p, True, 4.2, said_of(chart, series, p))


def _beside(chart: Chart) -> Figure:
    panels, keys = panels_of(chart), keys_of(chart)
    bars = chart.kind == "bars"
    labels = _labels([entry for panel in panels.values() for entry in panel])
    step, width = (0.142, COLUMN) if bars else (0.19, WIDE)
    top, tall = 0.48 + layout.head_height(chart.title, keys, width), step * len(labels)
    figure = layout.new_figure(width, top + tall + 0.4)
    layout.draw_head(figure, chart.title, keys)
    left, right = _names_width(figure, labels), 0.12
    wide = (width - left - right - GAP * (len(panels) - 1)) / len(panels)
    # a number stands beside every bar
    end = max(p.estimate for p in points_of(chart)) / max(1 - 0.24 / wide, 0.4)
    _name_rows(figure, labels, left, top, step)
    for k, (title, panel) in enumerate(panels.items()):
        x = left + k * (wide + GAP)
        layout.write(figure, x, top - 0.05, title, va="bottom", fontweight="bold", fontsize=BODY)
        axes = layout.place_axes(figure, x, top, wide, tall)
        if bars:
            _draw_bars(axes, panel, list(labels), end, chart)
        else:
            points = [p for series, _ in panel for p in series.points]
            _frame(axes, len(labels), _scale(chart, points, False), 3)
            for series, look in panel:
                _draw_panel(axes, [(series, look)], list(labels), chart)
    layout.name_x_axis(figure, left + (width - left - right) / 2, top + tall + 0.2, chart.axis)
    return figure


def _draw_bars(axes: Axes, panel: Panel, labels: list[str], end: float, chart: Chart) -> None:
    """Bars of shares, each with its number; those of bold rows in full colour."""
    _frame(axes, len(labels), (0.0, end), 1)
    for series, look in panel:
        for p in series.points:
            y, alpha = labels.index(p.label) + 0.5, 1.0 if p.strong else 0.5
            (bar,) = axes.barh(y, p.estimate, 0.72, color=look.colour, alpha=alpha, linewidth=0)
            bar.set_label(said_of(chart, series, p))
            if p.strong or p.estimate >= 0.005:
                style = {"va": "center_baseline", "color": MUTED, "fontsize": SMALL}
                axes.text(p.estimate + 0.03 * end, y, share(p.estimate), **style)
