"""How the series of a chart look: colour, marker and line; the panels, keys and marks they share."""

from collections.abc import Iterator
from typing import NamedTuple

from matplotlib.axes import Axes

from sublora.analysis.page import Chart, Point, Series
from sublora.report.layout import Key
from sublora.report.style import CONTROL, FULL, INK, MUTED, PAPER, STUDENT, TEACHER

DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.6))
REFERENCE = (0, (3, 2))


class Look(NamedTuple):
    colour: str
    marker: str
    line: str | tuple = "-"


LOOKS = {
    "student": Look(STUDENT, "o"),
    "control": Look(CONTROL, "D", DASHED),
    "full": Look(FULL, "s", (0, (6, 1.5, 1, 1.5))),
    "teacher": Look(TEACHER, "^"),
    "muted": Look(MUTED, "v"),
    "ink": Look(INK, "X"),
}


def looks_of(chart: Chart) -> list[tuple[Series, Look]]:
    """Every series with its look; those of one name look alike."""
    names = list(dict.fromkeys(s.name for s in chart.series))
    order = list(LOOKS.values())
    looks = {name: order[k % len(order)] for k, name in enumerate(names)}
    return [(s, LOOKS[s.look] if s.look else looks[s.name]) for s in chart.series]


def panels_of(chart: Chart) -> dict[str, list[tuple[Series, Look]]]:
    """Title -> the series of a panel."""
    panels: dict[str, list[tuple[Series, Look]]] = {}
    for series, look in looks_of(chart):
        panels.setdefault(series.panel, []).append((series, look))
    return panels


def points_of(chart: Chart) -> Iterator[Point]:
    return (p for s in chart.series for p in s.points)


def keys_of(chart: Chart) -> list[Key]:
    """The legend: only what the chart shows."""
    lines, looks = chart.kind == "lines", looks_of(chart)
    keys = {s.name: Key(s.name, *look[:2], look.line if lines else "") for s, look in looks}
    found = [key for name, key in keys.items() if name and chart.kind != "bars"]
    points = list(points_of(chart))
    for name, hollow in ((chart.filled, False), (chart.hollow, True)):
        if name and any(p.hollow == hollow for p in points):
            found.append(Key(name, looks[0][1].colour, looks[0][1].marker, filled=not hollow))
    if any(p.low is not None for p in points):
        found.append(Key(chart.interval, INK, bar=True))
    if chart.reference_name and chart.reference is not None:
        line = DOTTED if lines else REFERENCE
        found.append(Key(chart.reference_name, MUTED, line=line))
    return found


def draw_mark(
    axes: Axes, look: Look, at: float, p: Point, across: bool, size: float, said: str
) -> None:
    """A point at this place of the other axis, with its interval; `said` is what it is called."""
    if p.low is not None and p.high is not None:
        ends = {"marker": "|" if across else "_", "markersize": 4, "markeredgewidth": 1}
        bar = ([p.low, p.high], [at, at])
        axes.plot(*bar[:: 1 if across else -1], color=look.colour, linewidth=1.1, zorder=4, **ends)
    xy = ([p.estimate], [at]) if across else ([at], [p.estimate])
    axes.plot(
        *xy,
        look.marker,
        color=look.colour,
        markersize=size,
        markerfacecolor=PAPER if p.hollow else look.colour,
        markeredgewidth=1,
        zorder=5,
        label=said,
    )
