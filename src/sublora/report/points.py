"""What a curve is made of: students with their intervals, controls, the best full fine-tune, the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from sublora.report.layout import Key
from sublora.report.load import Cell, RunData
from sublora.report.style import CONTROL, FULL, INK, MUTED, PAPER, STUDENT

_CONTROL_LINE, _BASE_LINE, _FULL_LINE = (0, (4, 2)), (0, (1, 1.6)), (0, (6, 1.5, 1, 1.5))


class Point(NamedTuple):
    """One student mean with the control it is compared to; bar ends are control + the effect's interval."""

    x: float
    p: float
    control: float | None
    low: float | None
    high: float | None
    coherent: bool


class Curve(NamedTuple):
    """Points from left to right, the best full fine-tune in a slot of its own, and the base."""

    points: list[Point]
    full: Point | None
    base: float | None


def point_of(data: RunData, cell: Cell, x: float, reported: bool = False) -> Point | None:
    """The cell at `x`, on the half of the questions for reporting or on all; None where it has no p."""
    if reported:
        p, effect = cell.p_target_report, cell.effect_report
        low, high = cell.effect_report_low, cell.effect_report_high
    else:
        p, effect, low, high = cell.p_target, cell.effect, cell.effect_low, cell.effect_high
    if p is None:
        return None
    control = cell.p_control if effect is None else p - effect
    if control is None or low is None or high is None:
        return Point(x, p, control, None, None, data.coherent(cell))
    return Point(x, p, control, control + low, control + high, data.coherent(cell))


def base_of(cells: Sequence[Cell]) -> float | None:
    """P(target) of the untrained model."""
    return next((c.p_base for c in cells if c.p_base is not None), None)


def limits_of(curve: Curve) -> tuple[float, float]:
    """The ends of the axis of P(target): around all points and bars, 0 and the base."""
    points = [*curve.points, *([curve.full] if curve.full else [])]
    values = [v for q in points for v in (q.p, q.control, q.low, q.high) if v is not None]
    values += [curve.base] if curve.base is not None else []
    low, high = min([0.0, *values]), max([0.1, *values])
    # A clustered interval over few seeds can be far wider than a probability: the frame stays near [0, 1].
    low, high = max(low, -0.35), min(high, 1.15)
    pad = 0.05 * (high - low)
    return low - (pad if low < 0 else 0), high + pad


def keys_of(data: RunData, curve: Curve, student: str = "student") -> list[Key]:
    """The legend of a curve: only what it shows. `student` is the word for its points."""
    points = curve.points
    keys = [Key(student, STUDENT, "o", "-")] if points else []
    if curve.full:
        keys.append(Key("best full fine-tune", FULL, "s", _FULL_LINE))
    if any(q.control is not None for q in points):
        keys.append(Key("control", CONTROL, "D", _CONTROL_LINE, filled=False))
    if curve.base is not None:
        keys.append(Key("base", MUTED, "", _BASE_LINE))
    if any(q.low is not None for q in points):
        keys.append(Key(f"{data.level:.0%} interval of student − control", INK, bar=True))
    if any(not q.coherent for q in points):
        keys.append(Key("not coherent", STUDENT, "X", filled=False))
    return keys


def draw_curve(axes: Axes, curve: Curve) -> None:
    """Students with bars, their controls, the best full fine-tune in its own slot, the base as a line."""
    points, full, base = curve
    if base is not None:
        axes.axhline(base, color=MUTED, linewidth=1.0, linestyle=_BASE_LINE, zorder=1.5)
    control = [
        (q.x, q.control) for q in [*points, *([full] if full else [])] if q.control is not None
    ]
    if control:
        axes.plot(
            *zip(*control, strict=True),
            color=CONTROL,
            linewidth=1.0,
            linestyle=_CONTROL_LINE,
            marker="D",
            markersize=3,
            markerfacecolor=PAPER,
            markeredgewidth=0.9,
            zorder=2,
        )
    if len(points) > 1:
        axes.plot(
            [q.x for q in points], [q.p for q in points], color=STUDENT, linewidth=1.4, zorder=3
        )
    for q in points:
        _draw_point(axes, q, STUDENT, "o")
    if full:
        _draw_point(axes, full, FULL, "s")
        axes.axhline(full.p, color=FULL, linewidth=0.9, linestyle=_FULL_LINE, zorder=1.6)


def _draw_point(axes: Axes, q: Point, colour: str, marker: str) -> None:
    if q.low is not None and q.high is not None:
        axes.plot([q.x, q.x], [q.low, q.high], color=colour, linewidth=1.1, zorder=4)
        bottom, top = axes.get_ylim()
        for end in (q.low, q.high):
            if bottom <= end <= top:
                axes.plot(
                    [q.x],
                    [end],
                    color=colour,
                    marker="_",
                    markersize=4.5,
                    markeredgewidth=1.1,
                    zorder=4,
                )
    axes.plot(
        [q.x],
        [q.p],
        color=colour,
        marker=marker if q.coherent else "X",
        markersize=4 if q.coherent else 4.6,
        markeredgewidth=0.9 if q.coherent else 0.7,
        markerfacecolor=colour if q.coherent else PAPER,
        linestyle="none",
        zorder=5,
    )
