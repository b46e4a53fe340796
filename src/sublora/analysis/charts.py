"""Named effects as what a page shows of them: points, charts of rows, tiles."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from sublora.analysis import page
from sublora.analysis.effects import Effect
from sublora.analysis.page import Chart, Point, Series, Tile


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def point(effect: Effect, x: float | None = None, unit: float = 1.0) -> Point:
    """An effect over `x`, or as a row of its own name, in units of `unit`."""
    interval = effect.interval()
    ends = {n: getattr(interval, n) / unit for n in ("estimate", "low", "high")}
    return page.point("" if x is not None else effect.name, ends, x=x)


_NUMBERED = re.compile(
    r"(?:(?P<head>.+), )?(?:(?P<unit>step|layer|hop) (?P<at>\d+)|(?P<many>\d[\d,]*) (?P<rows>rows))(?:, (?P<note>.+))?"
)


def as_curve(chart: Chart) -> Chart:
    """A chart of rows as lines over the steps, layers, hops or rows that its labels name, whichever most do; as it is where few do.

    Other labels, such as "all steps", stand beyond the last one.
    """
    found = [[(p, _NUMBERED.fullmatch(p.label)) for p in s.points] for s in chart.series]
    units = Counter(m["unit"] or m["rows"] for points in found for _, m in points if m)
    unit = max(units, key=units.__getitem__, default="")
    found = [[(p, m if m and unit in m.groups() else None) for p, m in points] for points in found]
    if any(sum(bool(m) for _, m in points) < 3 for points in found):
        return chart
    series = []
    for one, points in zip(chart.series, found, strict=True):
        lines: dict[str, list[Point]] = {}
        own = _own_parts([m for _, m in points if m])
        for p, m in points:
            if m:
                parts = (m["note"] or "").split(", ")
                names = (one.name, m["head"], *parts[own:])
                more = {"label": "", "x": _at(m), "note": ", ".join(parts[:own])}
                lines.setdefault(", ".join(filter(None, names)), []).append(
                    p.model_copy(update=more)
                )
        rest = [p for p, m in points if not m]
        for name, mine in lines.items():
            mine.sort(key=lambda p: p.x)
            beyond = rest if len(lines) == 1 else []
            series.append(one.model_copy(update={"name": name, "points": (*mine, *beyond)}))
        if rest and len(lines) > 1:
            series.append(one.model_copy(update={"points": tuple(rest)}))
    xs = [p.x for s in series for p in s.points if p.x is not None]
    log = min(xs) > 0 and max(xs) >= 8 * min(xs)
    x_axis = f"{unit} (log scale)" if log else unit
    more = {"kind": "lines", "x_axis": x_axis, "log_x": log, "series": tuple(series)}
    return chart.model_copy(update=more)


def titled_over(chart: Chart, what: str) -> Chart:
    """A curve with a title of what it shows over steps, layers, hops or rows; rows as they are."""
    unit = chart.x_axis.removesuffix(" (log scale)").removesuffix("s")
    title = chart.title if chart.kind == "rows" else f"{what} over {unit}s"
    return chart.model_copy(update={"title": title})


def _at(match: re.Match[str]) -> float:
    return float((match["at"] or match["many"]).replace(",", ""))


def _own_parts(matches: Sequence[re.Match[str]]) -> int:
    """How many parts of the notes belong to their x; what differs at one x are lines of their own."""
    notes: dict[tuple[str | None, float], list[list[str]]] = {}
    for m in matches:
        notes.setdefault((m["head"], _at(m)), []).append((m["note"] or "").split(", "))
    alike = [
        takewhile(lambda part: len(set(part)) == 1, zip(*n, strict=False)) for n in notes.values()
    ]
    return min(len(list(parts)) for parts in alike)


def rows_chart(
    effects: Sequence[Effect], name: str, title: str, caption: str, reference: float | None = 0.0
) -> Chart:
    """The effects of one group, a row each, or a curve where they are of steps, layers or rows."""
    axis, series = effects[0].group, Series(points=tuple(map(point, effects)))
    chart = Chart(
        kind="rows",
        name=name,
        title=title,
        axis=axis,
        reference=reference,
        caption=caption,
        series=(series,),
    )
    return as_curve(chart)


def tiles(
    effects: Sequence[Effect], note: str = "{group}", value: str = ".3f", name: str = "{name}"
) -> tuple[Tile, ...]:
    """A tile an effect; `name`, `note` are filled with its labels, and `value` formats numbers."""
    found = [(e.labels, e.interval()) for e in effects]
    return tuple(
        Tile(
            name=first_upper(name.format(**labels)),
            value=f"{i.estimate:{value}}",
            interval=f"[{i.low:{value}}, {i.high:{value}}]",
            note=note.format(**labels),
        )
        for labels, i in found
    )
