"""The trade-off of an audit's --what-if: for each arm the share of a trait's rise that it leaves, and its held-out loss beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    write_title,
)
from sublora.report.style import CONTROL, FULL, INK, MUTED, STUDENT
from sublora.report.words import short, tick_labels

WIDTH, STEP, GAP = 5.2, 0.19, 0.22  # inches
_DASH = (0, (3, 2))
_BASE = (0, (1, 1.6))
_LOOKS = {
    "as trained": (INK, "D"),
    "trait stays": (STUDENT, "o"),
    "removes all": (FULL, "s"),
    "answers broken": (CONTROL, "X"),
}


class _Row(NamedTuple):
    name: str
    share: float
    low: float
    high: float
    losses: list[float]
    kind: str

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def trade_off(found: Mapping[str, Any]) -> Figure | None:
    """The arms of `body["what_if"]`, the smallest held-out loss first, by the first trait whose shares are known; None where there is none."""
    place = next(
        (
            k
            for k in range(len(found["traits"]))
            if any(a["traits"][k]["share"] for a in found["arms"])
        ),
        None,
    )
    rows = [] if place is None else sorted(_rows(found, place), key=lambda r: r.loss)
    if place is None or not rows:
        return None
    trait, base = found["traits"][place], found["base_heldout_loss"]
    keys = [Key(kind, *look) for kind, look in _LOOKS.items() if any(r.kind == kind for r in rows)]
    keys += [
        Key(f"{found['level']:.0%} interval over seeds", INK, bar=True),
        Key("base, untrained", MUTED, line=_BASE),
    ]
    top, tall = 0.4 + legend_height(keys, WIDTH), STEP * len(rows)
    figure = new_figure(WIDTH, top + tall + 0.44)
    write_title(figure, f"What is left of {short(trait['trait'], 24)}, and the held-out loss")
    draw_legend(figure, keys)
    left = 0.14 + max(text_width(figure, r.name, weight="bold") for r in rows)
    wide = (WIDTH - left - GAP - 0.16) / 2
    shares, losses = (place_axes(figure, left + k * (wide + GAP), top, wide, tall) for k in (0, 1))
    # an interval can be far wider than what it is about
    ends = [v for r in rows for v in (r.share, max(r.low, -0.5), min(r.high, 2.5))]
    _frame(shares, len(rows), [0.0, 1.0, *ends], 4)
    _frame(losses, len(rows), [base, *(x for r in rows for x in r.losses)], 3)
    shares.axvline(0, color=MUTED, linewidth=0.9)
    shares.axvline(1, color=MUTED, linewidth=0.9, linestyle=_DASH)
    losses.axvline(base, color=MUTED, linewidth=1.1, linestyle=_BASE)
    for i, row in enumerate(rows):
        y, (colour, marker) = i + 0.5, _LOOKS[row.kind]
        bold = "bold" if row.name == found["recommended"] else "normal"
        name_row(figure, left - 0.07, top + y * STEP, row.name, fontweight=bold)
        if row.high > row.low:
            bar = {"marker": "|", "markersize": 4, "markeredgewidth": 1}
            shares.plot([row.low, row.high], [y, y], color=colour, linewidth=1.1, **bar)
        shares.plot([row.share], [y], marker, color=colour, markersize=4.2, zorder=4)
        losses.plot(
            row.losses, [y] * len(row.losses), "|", color=colour, markersize=5, markeredgewidth=0.8
        )
        losses.plot([row.loss], [y], marker, color=colour, markersize=4.2, zorder=4)
    below = top + tall + 0.18
    name_x_axis(
        figure,
        left + wide / 2,
        below,
        f"share of the rise that stays, in {short(trait['context'], 14)}",
    )
    name_x_axis(figure, left + wide * 1.5 + GAP, below, "held-out loss, nats a token")
    return figure


def _frame(axes: Axes, rows: int, values: Sequence[float], ticks: int) -> None:
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or 0.05
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(rows, 0)
    quiet_frame(axes, "x")
    at = nice_ticks(low - pad, high + pad, ticks)
    axes.set_xticks(at, tick_labels(at))


def _rows(found: Mapping[str, Any], place: int) -> list[_Row]:
    out = []
    for i, arm in enumerate(found["arms"]):
        share, losses = arm["traits"][place]["share"], arm["heldout_loss"]["seeds"]
        if share is None or None in losses:
            continue
        kind = "as trained" if i == 0 else "removes all" if arm["removes"] else "trait stays"
        kind = kind if arm["sound"] else "answers broken"
        out.append(_Row(arm["name"], share["estimate"], share["low"], share["high"], losses, kind))
    return out


def described(found: Mapping[str, Any]) -> str:
    """The figure in words."""
    removing = ", ".join(found["removing"]) or "none"
    return (
        f"{len(found['arms'])} arms with the share of the rise that stays and the held-out loss; those that remove the trait: {removing}. "
        "Every number is in the table."
    )
