"""Named effects as what a page shows of them: points, charts of rows, tiles."""

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


def rows_chart(
    effects: Sequence[Effect], name: str, title: str, caption: str, reference: float | None = 0.0
) -> Chart:
    """The effects of one group, a row each."""
    axis, series = effects[0].group, Series(points=tuple(map(point, effects)))
    return Chart(
        kind="rows",
        name=name,
        title=title,
        axis=axis,
        reference=reference,
        caption=caption,
        series=(series,),
    )


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
