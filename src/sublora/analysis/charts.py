"""Named effects as what a page shows of them: points, charts of rows, tiles."""

import re
from collections.abc import Sequence

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
    r"(?:(?P<head>.+), )?(?:(?P<unit>step|layer) (?P<at>\d+)|(?P<many>\d+) (?P<rows>rows))(?:, (?P<note>.+))?"
)


def as_curve(chart: Chart) -> Chart:
    """A chart of rows as lines over the steps, layers or rows that its labels name; as it is where they do not.

    Labels without a number, such as "all steps", stand beyond the last one.
    """
    found = [[(p, _NUMBERED.fullmatch(p.label)) for p in s.points] for s in chart.series]
    units = {m["unit"] or m["rows"] for points in found for _, m in points if m}
    if len(units) != 1 or any(sum(bool(m) for _, m in points) < 3 for points in found):
        return chart
    series = []
    for one, points in zip(chart.series, found, strict=True):
        heads = dict.fromkeys(m["head"] or "" for _, m in points if m)
        for head in heads:
            mine = [_over(p, m) for p, m in points if m and (m["head"] or "") == head]
            mine.sort(key=lambda p: p.x)
            rest = [p for p, m in points if not m] if len(heads) == 1 else []
            name = ", ".join(filter(None, (one.name, head)))
            series.append(one.model_copy(update={"name": name, "points": (*mine, *rest)}))
    xs = [p.x for s in series for p in s.points if p.x is not None]
    log = min(xs) > 0 and max(xs) >= 8 * min(xs)
    unit = units.pop()
    x_axis = f"{unit} (log scale)" if log else unit
    more = {"kind": "lines", "x_axis": x_axis, "log_x": log, "series": tuple(series)}
    return chart.model_copy(update=more)


def _over(p: Point, match: re.Match[str]) -> Point:
    at = float(match["at"] or match["many"])
    return p.model_copy(update={"label": "", "x": at, "note": match["note"] or ""})


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
