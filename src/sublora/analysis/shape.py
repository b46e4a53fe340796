"""Tests of the shape of transfer over rank: linear contrasts, the two-lines test, and the trend of the best learning rate.

Every interval comes from the rule of `intervals`. Ranks enter as log2, so slopes are per doubling. `room` (C,) says by how much
the true value of each rank may lie above the measured one, see `best_rate.py`; what is found holds for every value in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.analysis.intervals import (
    Array,
    Interval,
    cluster_means,
    combine,
    finite,
    half_width,
    interval_of_means,
)
from sublora.errors import SubloraError


@dataclass(frozen=True)
class TwoLines:
    """Two-lines test of an inverted U over log2(x). Slopes are per doubling; p values are one-sided, towards
    the U.

    `inverted_u`: the left slope is above 0 and the right one below 0, both sides beyond `min_slope`.
    `ruled_out`: at every break one of the sides is shown not to move the U's way by `min_slope` per
    doubling.
    """

    break_x: float
    left: Interval
    right: Interval
    p_left: float
    p_right: float
    inverted_u: bool
    ruled_out: bool


def both(one: TwoLines, other: TwoLines) -> TwoLines:
    """What two tests of one curve agree on."""
    found, out = one.inverted_u and other.inverted_u, one.ruled_out and other.ruled_out
    p_left, p_right = max(one.p_left, other.p_left), max(one.p_right, other.p_right)
    return replace(one, p_left=p_left, p_right=p_right, inverted_u=found, ruled_out=out)


def slope_weights(x: ArrayLike) -> Array:
    """Weights w (C,) with sum(w * y) = least-squares slope of y over log2(x), per doubling."""
    x = finite("x", x, (1,))
    if (x <= 0).any() or len(np.unique(x)) < 2:
        raise SubloraError(
            "a slope over log2(x) needs at least two different positive values of x."
        )
    centred = np.log2(x) - np.log2(x).mean()
    return centred / np.square(centred).sum()


def _by_question(values: ArrayLike) -> Array:
    values = finite("values", values, (2, 3))
    return values if values.ndim == 3 else values[:, :, None]


def _range(weights: Array, room: ArrayLike) -> tuple[float, float]:
    """How far below and above its estimate a contrast (C,) may lie where each value may be higher by its room."""
    moved = weights * np.asarray(room, dtype=float)
    return -float(np.minimum(moved, 0).sum()), float(np.maximum(moved, 0).sum())


def linear(
    weights: ArrayLike,
    values: ArrayLike,
    data_seeds: ArrayLike,
    train_seeds: ArrayLike | None = None,
    level: float = 0.95,
    room: ArrayLike = 0.0,
) -> Interval:
    """sum_c w_c values[:, c] for values (R, C) or (R, C, Q): clustered by seed and, with Q, by question."""
    weights = np.asarray(weights, dtype=float)
    combined = np.einsum("c,rcq->rq", weights, _by_question(values))
    means, name = cluster_means(combined, data_seeds, train_seeds)
    return interval_of_means(means, name, level, 0.0, _range(weights, room))


def linear_points(
    weights: ArrayLike,
    estimate: ArrayLike,
    se: ArrayLike,
    df: ArrayLike = np.inf,
    level: float = 0.95,
    room: ArrayLike = 0.0,
) -> Interval:
    """sum_c w_c estimate_c for results (C,) with independent standard errors, each known with `df`."""
    weights, estimate = np.asarray(weights, dtype=float), finite("estimate", estimate, (1,))
    variances = np.square(weights * np.asarray(se, dtype=float))
    used = weights != 0
    return combine(
        float(weights @ estimate),
        variances[used].tolist(),
        np.broadcast_to(np.asarray(df, dtype=float), estimate.shape)[used].tolist(),
        level,
        clusters=("point",),
        room=_range(weights, room),
    )


def bounds(
    weights: Array,
    values: ArrayLike,
    data_seeds: ArrayLike,
    train_seeds: ArrayLike | None = None,
    level: float = 0.95,
    room: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """The ends of the intervals that `linear` gives for many weights (K, C) at once: low and high (K,)."""
    means, _ = cluster_means(_by_question(values), data_seeds, train_seeds)
    sides = means.mean(axis=2) @ weights.T, (weights @ means.mean(axis=0)).T  # by seed, by question
    parts = [side.var(axis=0, ddof=1) / len(side) for side in sides if len(side) > 1]
    dfs = [len(side) - 1 for side in sides if len(side) > 1]
    half = half_width(np.stack(parts, axis=-1), dfs, 1 - level) if parts else np.inf
    return _ends(sides[0].mean(axis=0), half, weights, room)


def bounds_points(
    weights: Array,
    estimate: Array,
    se: ArrayLike,
    df: ArrayLike = np.inf,
    level: float = 0.95,
    room: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """As `bounds`, of the intervals that `linear_points` gives."""
    df = np.broadcast_to(np.asarray(df, dtype=float), estimate.shape)
    half = half_width(
        np.square(weights * np.asarray(se, dtype=float)), np.maximum(df, 1).tolist(), 1 - level
    )
    unknown = ((weights != 0) & (df <= 0)).any(axis=1)
    return _ends(weights @ estimate, np.where(unknown, np.inf, half), weights, room)


def _ends(estimate: Array, half: ArrayLike, weights: Array, room: ArrayLike) -> tuple[Array, Array]:
    moved = weights * np.asarray(room, dtype=float)
    down, up = np.minimum(moved, 0).sum(axis=1), np.maximum(moved, 0).sum(axis=1)
    return estimate + down - half, estimate + up + half


def _sides(x: Array, at: int) -> tuple[Array, Array]:
    left, right = np.zeros(len(x)), np.zeros(len(x))
    left[: at + 1], right[at:] = slope_weights(x[: at + 1]), slope_weights(x[at:])
    return left, right


def _sorted_ranks(x: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    x = finite("x", x, (1,))
    order = np.argsort(x)
    if len(x) < 3 or (np.diff(x[order]) <= 0).any():
        raise SubloraError(
            f"a test of shape needs at least 3 ranks, each of them once, not {x.tolist()}."
        )
    return x[order], order


def _towards(interval: Interval, sign: int) -> float:
    return interval.p_value / 2 if interval.estimate * sign > 0 else 1 - interval.p_value / 2


def _two_lines(
    break_x: float,
    left: Interval,
    right: Interval,
    looks: int,
    ruled_out: bool,
    min_slope: float,
    room: tuple[float, float],
) -> TwoLines:
    """`looks`: how many breaks were tried, 0 where nothing can be settled; `room`: by how much less the left slope, and more the right
    one, may be than estimated."""
    sides = ((left, 1), (right, -1))
    p_left, p_right = (min(1.0, max(looks, 1) * _towards(side, sign)) for side, sign in sides)
    steep = min(left.estimate - room[0], -right.estimate - room[1]) >= min_slope
    found = steep and max(p_left, p_right) < (1 - left.level) / 2
    settled = looks > 0
    inverted_u = bool(found and settled and not ruled_out)
    ruled_out = bool(ruled_out and settled)
    return TwoLines(float(break_x), left, right, p_left, p_right, inverted_u, ruled_out)


def two_lines(
    x: ArrayLike,
    values: ArrayLike,
    data_seeds: ArrayLike,
    train_seeds: ArrayLike | None = None,
    level: float = 0.95,
    min_slope: float = 0.0,
    room: ArrayLike = 0.0,
) -> TwoLines:
    """Two-lines test (Simonsohn 2018) of an inverted U in values (R, C) or (R, C, Q) over ranks x (C,).

    The break of each seed's lines is the peak of the mean of the OTHER seeds, so no seed's noise picks its
    own break and nothing has to be paid for looking (Bonferroni over breaks is out of reach of the 1 to 3 df
    of few seeds). An interior break is forced: on a decline from the first rank the left line then falls, and
    no U is found. `ruled_out` needs no choice: the true peak is among the breaks, so a true U is ruled out
    at all of them at most as often as at that one. With one replicate neither is ever stated.
    """
    x, order = _sorted_ranks(x)
    means, name = cluster_means(_by_question(values)[:, order], data_seeds, train_seeds)
    curve = means.mean(axis=-1)
    last, clusters = len(x) - 2, len(means)
    room = np.broadcast_to(np.asarray(room, dtype=float), x.shape)[order]

    def interval(rows: Sequence[Array]) -> Interval:
        lines = np.stack(rows)
        combined = np.einsum("dc,dcq->dq", lines, means)
        return interval_of_means(combined, name, level, 0.0, _range(lines.mean(axis=0), room))

    others = [
        np.delete(curve, d, axis=0).mean(axis=0) if clusters > 1 else curve[0]
        for d in range(clusters)
    ]
    folds = [_sides(x, int(np.clip(np.argmax(mean), 1, last))) for mean in others]
    left, right = (interval([fold[side] for fold in folds]) for side in (0, 1))
    mean = [np.mean([fold[side] for fold in folds], axis=0) for side in (0, 1)]
    free = (_range(mean[0], room)[0], _range(mean[1], room)[1])
    at = int(np.clip(np.argmax(curve.mean(axis=0)), 1, last))
    lines = np.stack([side for k in range(1, last + 1) for side in _sides(x, k)])
    low, high = bounds(lines, means, range(clusters), None, level, room)
    ruled_out = bool(((high[::2] < min_slope) | (low[1::2] > -min_slope)).all())
    return _two_lines(x[at], left, right, int(clusters > 1), ruled_out, min_slope, free)


def two_lines_points(
    x: ArrayLike,
    estimate: ArrayLike,
    se: ArrayLike,
    df: ArrayLike = np.inf,
    level: float = 0.95,
    min_slope: float = 0.0,
    room: ArrayLike = 0.0,
) -> TwoLines:
    """`two_lines` of results (C,) with independent errors: tries every interior break, Bonferroni."""
    x, order = _sorted_ranks(x)
    estimate = finite("estimate", estimate, (1,))[order]
    se, df, room = (
        np.broadcast_to(np.asarray(v, dtype=float), x.shape)[order] for v in (se, df, room)
    )
    sides = [_sides(x, k) for k in range(1, len(x) - 1)]
    pairs = [tuple(linear_points(w, estimate, se, df, level, room) for w in both) for both in sides]
    worse = [max(_towards(left, 1), _towards(right, -1)) for left, right in pairs]
    peak = int(np.argmax(estimate)) - 1
    best = min(range(len(pairs)), key=lambda k: (worse[k], abs(k - peak)))
    ruled_out = all(left.high < min_slope or right.low > -min_slope for left, right in pairs)
    free = (_range(sides[best][0], room)[0], _range(sides[best][1], room)[1])
    return _two_lines(x[best + 1], *pairs[best], len(pairs), ruled_out, min_slope, free)


def best_lr_slope(
    ranks: Sequence[int],
    lrs: Sequence[float],
    grid: Sequence[float],
    means: Array,
    name: str,
    level: float,
) -> tuple[Interval, float]:
    """Slope of log2(best lr) over log2(rank) from means (D, C) of C cells, and the share of ranks whose best is the first or the last
    of their rates.

    Each seed picks its own bests. A grid rounds the best lr by up to half a step, alike for all seeds; that
    (uniform) rounding is added as a known variance, so that seeds which agree on a coarse grid do not look
    certain. The interval holds for all that `best_lr_room` leaves open.
    """
    unique, rank_of = sorted(set(ranks)), np.asarray(ranks)
    log_lr = np.log2(np.asarray(lrs, dtype=float))

    def bests(row: Array) -> Array:
        return np.array([log_lr[rank_of == r][np.argmax(row[rank_of == r])] for r in unique])

    weights, picks = slope_weights(unique), np.stack([bests(row) for row in means])
    slopes = picks @ weights
    rounding = float(np.square(weights).sum() * np.median(np.diff(np.log2(grid))) ** 2 / 12)
    known, variances, dfs = len(means) > 1, [rounding], [np.inf]
    if known:
        variances = [float(slopes.var(ddof=1) / len(slopes)), rounding]
        dfs = [len(slopes) - 1, np.inf]
    room, edge = best_lr_room(ranks, lrs, grid, means.mean(axis=0))
    factors = (name or "grid",)
    found = combine(float(slopes.mean()), variances, dfs, level, 0.0, factors, not known, room)
    return found, edge


def best_lr_room(
    ranks: Sequence[int], lrs: Sequence[float], grid: Sequence[float], means: Array
) -> tuple[tuple[float, float], float]:
    """By how much the slope of the best lr may be smaller and larger than estimated from means (C,), and the share of ranks at an edge.

    Beyond the first or last rate of a rank the best may lie anywhere, here as far out as the grid is wide.
    """
    unique, log_lr, width = sorted(set(ranks)), np.log2(lrs), float(np.log2(grid[-1] / grid[0]))
    mine = [np.equal(ranks, rank) for rank in unique]
    best = [log_lr[of][np.argmax(means[of])] for of in mine]
    last = np.array([log_lr[of].max() for of in mine]) == best
    first = np.array([log_lr[of].min() for of in mine]) == best
    weights = slope_weights(unique)
    (down, up), (above, below) = _range(weights, last * width), _range(weights, first * width)
    return (down + below, up + above), float(np.mean(last | first))
