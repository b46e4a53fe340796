"""The best learning rate of each rank: chosen and read on different seeds, and whether the best may lie beyond the rates that were tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sublora.analysis.effects import Effect, stack
from sublora.analysis.intervals import Array, Interval, cluster_means, hull
from sublora.text import listed, rate

FOLDS = 3  # seeds that cross-fitting needs: with two, a single one would choose
STEPS = 2  # how many further rates beyond an edge are thought of, and proposed
Group = tuple[str, int | None]


@dataclass(frozen=True)
class Edge:
    """A rank whose best rate is the highest or the lowest that it has: the true best transfer is at least the measured one.

    `mean`: the transfer measured there; `inner`: that of the next rate inside, None where there is none. `beyond`: the next rate on the
    other side, which was tried and is not coherent; None where none was tried.
    """

    rank: int
    lr: float
    side: Literal["highest", "lowest"]
    mean: float
    inner: float | None
    beyond: float | None = None


@dataclass(frozen=True)
class Best:
    """The best coherent cell of a method and rank: its place among the effects given, the cell itself, and its effect.

    `crossed`: in `effect` the values of each seed are those at the rate that is best on the other seeds; otherwise, with fewer than
    `FOLDS` seeds, it is the cell, which was chosen where it is read, and reads high.
    """

    place: int
    chosen: Effect
    effect: Effect
    crossed: bool
    edge: Edge | None

    def interval(self, level: float) -> Interval:
        """The crossed estimate, which choosing does not raise, with an interval that also holds that of the chosen cell: where seeds
        disagree about the best rate their crossed values hang together, and their spread alone would be too small."""
        return hull(self.effect.interval(level), self.chosen.interval(level))


def best_rates(effects: Sequence[Effect]) -> dict[Group, Best]:
    """The best of each (method, rank) among the transfers of one trait and context, by the mean effect over seeds and questions; of
    equals the smaller rate. A rank without a coherent cell is absent.

    Seeds are data seeds, or training seeds where there is one data seed. The luck of seeds is what makes the best of several look
    better than it is: all students of a data seed share its rows, while questions are near copies of each other.
    """
    groups: dict[Group, list[int]] = {}
    for place in sorted(range(len(effects)), key=lambda k: effects[k].lr):
        labels = effects[place].labels
        groups.setdefault((str(labels["method"]), effects[place].rank), []).append(place)
    found = {}
    for group, places in groups.items():
        fine = [k for k in places if effects[k].coherent]
        if fine:
            found[group] = _best(effects, places, fine)
    return found


def _best(effects: Sequence[Effect], places: Sequence[int], fine: Sequence[int]) -> Best:
    cells = [effects[k] for k in fine]
    values, data, train = stack(cells)
    means, name = cluster_means(values.mean(axis=2), data, train)
    overall = means.mean(axis=0)
    at = int(np.argmax(overall))
    rates = [effects[k].lr for k in places]
    edge = edge_of(cells[at].rank or 0, [c.lr for c in cells], overall, rates)
    if len(means) < FOLDS:
        chosen = replace(cells[at], facts={**cells[at].facts, "looks": len(cells)})
        return Best(fine[at], chosen, chosen, False, edge)
    seeds = np.asarray(train if name == "train_seed" else data)
    picks = [int(np.argmax(np.delete(means, d, axis=0).mean(axis=0))) for d in range(len(means))]
    which = np.asarray(picks)[np.searchsorted(np.unique(seeds), seeds)]

    def read(part: Callable[[Effect], Array]) -> Array:
        own = stack([replace(c, values=part(c)) for c in cells])[0]
        return own[np.arange(len(which)), which]

    chosen = cells[at]
    parts = {
        n: read(lambda c, n=n: c.parts[n]) if p.shape == chosen.values.shape else p
        for n, p in chosen.parts.items()
    }
    crossed = replace(
        chosen, values=read(lambda c: c.values), data_seeds=data, train_seeds=train, parts=parts
    )
    return Best(fine[at], chosen, crossed, True, edge)


def edge_of(
    rank: int, fine: Sequence[float], means: Sequence[float] | Array, tried: Sequence[float]
) -> Edge | None:
    """Whether the best of the coherent rates `fine`, which rise, by their `means`, is the first or last of them; `tried` are all rates
    of the rank. A rank with one rate has nothing to choose from and counts as given."""
    at = int(np.argmax(means))
    if len(tried) < 2 or 0 < at < len(fine) - 1:
        return None
    top = at == len(fine) - 1
    inner = float(means[at - 1 if top else at + 1]) if len(fine) > 1 else None
    outer = [lr for lr in tried if (lr > fine[at] if top else lr < fine[at])]
    beyond = (min if top else max)(outer, default=None)
    return Edge(rank, fine[at], "highest" if top else "lowest", float(means[at]), inner, beyond)


def room_of(edges: Sequence[Edge], ranks: Sequence[int], means: Array) -> Array:
    """By how much the true best transfer of each rank (C,) may lie above the measured one, for ranks at an edge.

    Transfer over the rate is taken for a log-concave hill, as a bell is: from step to step it grows by a factor that only falls. So
    within the `STEPS` rates that would be tried next it grows at most by the last factor each time. And no rank is thought to come
    further above the largest transfer measured at any rank than by what its last step brought.
    """
    room = np.zeros(len(ranks))
    for edge in edges:
        k, last = ranks.index(edge.rank), edge.mean - (edge.inner or 0.0)
        most = float(means.max() - means[k]) + (0.0 if edge.inner is None else last)
        grown = np.inf
        if edge.inner is not None and edge.inner > 0:
            grown = edge.mean * ((edge.mean / edge.inner) ** STEPS - 1)
        room[k] = max(0.0, min(most, grown))
    return room


def edge_sentence(edges: Sequence[Edge]) -> str:
    """Which ranks are at an edge, and of which rates."""
    groups: dict[tuple[str, float, bool], list[int]] = {}
    for e in edges:
        groups.setdefault((e.side, e.lr, e.beyond is not None), []).append(e.rank)
    parts = [
        f"the best rate of {'ranks' if len(ranks) > 1 else 'rank'} {listed(ranks)} is the {side} "
        f"{'coherent one' if cut else 'of the grid'}, {rate(lr)}"
        for (side, lr, cut), ranks in groups.items()
    ]
    return listed(parts)


def rates_to_add(edges: Sequence[Edge], rates: Sequence[float]) -> list[float]:
    """The learning rates that would show whether bests at an edge are the true ones: two steps of the grid's own ratio beyond its end,
    or one between the last coherent rate and the next."""
    grid, added = sorted(rates), set()
    for edge in edges:
        if edge.beyond is not None:
            added.add((edge.lr * edge.beyond) ** 0.5)
        elif len(grid) > 1:
            added |= set(_onwards(grid if edge.side == "highest" else grid[::-1]))
    return [lr for lr in sorted({float(f"{lr:.2g}") for lr in added}) if lr not in grid]


def _onwards(grid: Sequence[float]) -> list[float]:
    """`STEPS` more rates; a grid such as 1, 3, 10 goes on with 30 and 100."""
    rates = list(grid)
    for _ in range(STEPS):
        back = 2 if len(grid) > 2 else 1
        rates.append(rates[-back] * rates[-1] / rates[-1 - back])
    return rates[-STEPS:]
