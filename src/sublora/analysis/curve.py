"""Transfer over ranks as a curve, and which one shape it has: all claims about a shape are read from here, so no two of them can agree
to statements that exclude each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from sublora.analysis.best_rate import Edge, edge_sentence, room_of
from sublora.analysis.contrast import interval_numbers, show
from sublora.analysis.intervals import Array, Interval
from sublora.analysis.shape import TwoLines, slope_weights

Shape = Literal["inverted_u", "monotone_decline", "monotone_rise", "flat"]
SAID = {
    "inverted_u": "a rise and a fall",
    "monotone_decline": "a fall over all ranks",
    "monotone_rise": "a rise over all ranks",
    "flat": "the same transfer at all ranks, within the room",
}


@dataclass(frozen=True)
class Curve:
    """Transfer over ranks (C,), which rise: any linear combination of it with its interval, and the two-lines test on it.

    `contrast` takes weights (C,) and room (C,); `ends` takes many weights (K, C), a level and room, and gives the ends of their
    intervals; `lines` takes a least slope and room. At an edge of the learning rates the true transfer may
    be higher than the measured one: every interval holds for all values in that room, see `best_rate.room_of`.
    """

    ranks: tuple[int, ...]
    means: Array
    contrast: Callable[[Array, Array], Interval]
    ends: Callable[[Array, float, Array], tuple[Array, Array]]
    lines: Callable[[float, Array], TwoLines]
    note: str = ""
    edges: tuple[Edge, ...] = ()

    @cached_property
    def room(self) -> Array:
        return room_of(self.edges, self.ranks, self.means)

    @property
    def bare(self) -> Curve:
        """The curve as if every rank's best had been found."""
        return replace(self, edges=())

    def linear(self, weights: Array) -> Interval:
        return self.contrast(weights, self.room)

    def bounds(self, weights: Array, level: float) -> tuple[Array, Array]:
        return self.ends(weights, level, self.room)

    def two_lines(self, min_slope: float) -> TwoLines:
        return self.lines(min_slope, self.room)

    @property
    def edge_text(self) -> str:
        """What is not known at the edges; nothing where there are none."""
        if not self.edges:
            return ""
        most = float(self.room.max())
        return f"{edge_sentence(self.edges)}, so the true best may be higher there, by up to {most:.3g}"


@dataclass(frozen=True)
class Reading:
    """The one shape that a curve is shown to have, if any; the shapes that it is shown not to have; and what was found on the way."""

    shown: Shape | None
    excluded: frozenset[Shape]
    numbers: Mapping[Shape, dict[str, float]] = field(default_factory=dict)
    texts: Mapping[Shape, str] = field(default_factory=dict)


def read_shape(curve: Curve, alpha: float, th: Mapping[str, float]) -> Reading:
    """Which of four shapes that exclude each other a curve (at least 3 ranks) has, by tests at a two-sided `alpha`.

    monotone_decline: the slope over all ranks is below 0, by `min_slope` per doubling or more, and no rank stands above a smaller one
    by more than `min_turn` of the whole fall: a rise that is small beside the fall does not count. monotone_rise: its mirror image.
    inverted_u: the two-lines test finds a rise and a fall, the smaller is at least `min_turn` of the larger, and neither of the above is
    shown. flat: every rank lies within `max_gap` of the mean transfer over ranks, none of the above is shown,
    and no rank has its best at an edge.

    Whatever is shown excludes the others. Besides, a shape is excluded by a test of its own: a slope that is above -`min_slope`, or a
    rise too large for a fall; two lines of which one goes the wrong way at every break; a rank that lies outside the room.
    """
    lines = curve.two_lines(th["min_slope"])
    slope = curve.linear(slope_weights(curve.ranks))
    falls, no_fall, rise = _one_way(curve, alpha, slope, th, -1)
    rises, no_rise, _ = _one_way(curve, alpha, slope, th, 1)
    flat, not_flat, numbers, text = _flat(curve, alpha, th["max_gap"])
    flat = flat and not np.any(curve.room)  # beyond an edge what is flat may still rise or fall
    shown: Shape | None = (
        "monotone_decline"
        if falls
        else "monotone_rise"
        if rises
        else "inverted_u"
        if lines.inverted_u and _both_ways(curve, th["min_turn"])
        else "flat"
        if flat
        else None
    )
    tests: dict[Shape, bool] = {
        "inverted_u": lines.ruled_out,
        "monotone_decline": no_fall,
        "monotone_rise": no_rise,
        "flat": not_flat,
    }
    excluded = frozenset(s for s, out in tests.items() if s != shown and (out or shown is not None))
    sides = {
        "break_rank": lines.break_x,
        "slope_left": lines.left.estimate,
        "slope_right": lines.right.estimate,
        "p_left": lines.p_left,
        "p_right": lines.p_right,
    }
    said = (
        f"per doubling of rank {show(lines.left)} up to rank {lines.break_x:g} and {show(lines.right)} "
        f"after (one-sided p {lines.p_left:.2g}, {lines.p_right:.2g})"
    )
    every = ", and every break of the grid is ruled out" if lines.ruled_out else ""
    whole = {**sides, **interval_numbers("slope", slope), "p": slope.p_value}
    if not lines.ruled_out:
        sides["p"] = max(lines.p_left, lines.p_right)
    fall = f"slope over all ranks {show(slope)} per doubling; {rise}; {said}"
    return Reading(
        shown,
        excluded,
        {"inverted_u": sides, "monotone_decline": whole, "monotone_rise": whole, "flat": numbers},
        {"inverted_u": said + every, "monotone_decline": fall, "flat": text},
    )


def _one_way(
    curve: Curve, alpha: float, slope: Interval, th: Mapping[str, float], sign: int
) -> tuple[bool, bool, str]:
    """Whether the curve goes one way (sign 1: up), is shown not to, and its largest step the other way."""
    ranks = curve.ranks
    weights = slope_weights(ranks)
    whole = weights * float(np.log2(ranks[-1] / ranks[0]))
    unit, pairs = np.eye(len(ranks)), list(itertools.combinations(range(len(ranks)), 2))
    # each step the other way, less the share of the whole way that it may have
    over = np.stack([sign * (unit[i] - unit[j] - th["min_turn"] * whole) for i, j in pairs])
    towards, back = (slope.low, slope.high) if sign > 0 else (-slope.high, -slope.low)
    least = sign * slope.estimate - float(np.maximum(-sign * weights * curve.room, 0).sum())
    small = (curve.bounds(over, 1 - alpha)[1] < 0).all()
    shown = least >= th["min_slope"] and towards > 0 and bool(small)
    other_way = bool((curve.bounds(over, 1 - alpha / len(pairs))[0] > 0).any())
    i, j = max(pairs, key=lambda pair: sign * (curve.means[pair[0]] - curve.means[pair[1]]))
    what = "fall" if sign > 0 else "rise"
    text = (
        f"the largest {what} is {sign * (curve.means[i] - curve.means[j]):+.3g}, from rank {ranks[i]} to {ranks[j]}, and "
        f"{th['min_turn']:g} of the whole way may be"
    )
    return shown, back < th["min_slope"] or other_way, text


def _both_ways(curve: Curve, least: float) -> bool:
    """Whether the smaller of the largest rise and the largest fall is at least this share of the larger, also where the ranks at an edge
    stand higher, each alone or all of them."""
    steps = list(itertools.combinations(range(len(curve.ranks)), 2))
    moves = [0 * curve.room, curve.room, *np.diag(curve.room)[curve.room > 0]]
    for means in (curve.means + move for move in moves):
        rise, fall = (max(s * (means[j] - means[i]) for i, j in steps) for s in (1, -1))
        if min(rise, fall) < least * max(rise, fall):
            return False
    return True


def _flat(curve: Curve, alpha: float, room: float) -> tuple[bool, bool, dict[str, float], str]:
    """Whether every rank is within `room` of the mean over ranks, as a share of it, or one is shown not to be."""
    count = len(curve.ranks)
    unit, mean = np.eye(count), np.full(count, 1 / count)
    over = np.concatenate([unit - (1 + room) * mean, (1 - room) * mean - unit])
    within = bool((curve.bounds(over, 1 - alpha)[1] < 0).all())
    off = bool((curve.bounds(over, 1 - alpha / len(over))[0] > 0).any())
    far = max(range(count), key=lambda k: abs(curve.means[k] - curve.means.mean()))
    gap, level = curve.linear(unit[far] - mean), float(curve.means.mean())
    numbers = {"rank": curve.ranks[far], **interval_numbers("gap", gap), "mean": level}
    if not within:
        numbers["p"] = min(1.0, count * gap.p_value)
    text = (
        f"rank {curve.ranks[far]} lies farthest from the mean over ranks, {level:.3g}, by {show(gap)}; the room is "
        f"{room:g} of the mean"
    )
    return within, off, numbers, text
