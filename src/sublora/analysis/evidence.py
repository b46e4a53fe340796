"""What the students of a grid of ranks and learning rates say about a claim, for the rules of `rules.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Literal, Protocol

import numpy as np

from sublora.analysis import shape
from sublora.analysis.best_rate import FOLDS, Best, best_rates
from sublora.analysis.curve import Curve
from sublora.analysis.effects import Effect, NotRun, mean_of, stack
from sublora.analysis.intervals import Array, Interval, cluster_means, hull
from sublora.analysis.shape import TwoLines, both

View = Literal["all", "fixed-lr", "best-lr", "full"]


class Evidence(Protocol):
    """What the rules may ask of one trait's grid. Each method raises NotRun where the results lack it."""

    trait: str
    alpha: float
    n: Mapping[str, int | None]

    def effects(self, view: View) -> list[Effect]:
        """The cells of a view; the fact `looks` says of how many cells one was picked as the best on its own seeds."""

    def pool(self, view: View) -> Interval | None: ...
    def curve(self, view: View) -> Curve: ...
    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]: ...
    def full_answers(self, lr_factor: float) -> tuple[float, float, float, int]:
        """Of the full fine-tunes nearest to LoRA's rate: theirs, coherence and number takeover, means over so many replicates."""


def check_curve(ranks: Sequence[int | None], view: View, trait: str) -> None:
    if not ranks:
        raise NotRun(f"the {view} view holds no LoRA cell for {trait}")
    if len(set(ranks)) < len(ranks):
        raise NotRun(f"the {view} view holds several learning rates per rank; a curve needs one")


def check_best_lr(
    lora: Sequence[tuple[int | None, float]], fit: int, min_effect: float
) -> list[float]:
    """The learning rates of (rank, lr) cells, where they are enough for the best one over rank to be told."""
    grid = sorted({lr for _, lr in lora})
    if len(set(lora)) == len({rank for rank, _ in lora}):
        raise NotRun("no rank has two learning rates, so none is shown to be its best one")
    if len({rank for rank, _ in lora}) < 3 or len(grid) < 3:
        raise NotRun("the best learning rate over rank needs at least 3 ranks and 3 learning rates")
    if fit < 3:
        raise NotRun(f"{fit} ranks have a coherent effect of {min_effect:g}, and 3 are needed")
    return grid


@dataclass(frozen=True)
class Grid:
    """The cells of a run under the context that claims are judged in. `fixed_lr`: LoRA's rate of the fixed-lr view."""

    cells: Sequence[Effect]
    fixed_lr: float | None = None
    alpha: float = 0.05

    def of(self, trait: str) -> GridEvidence:
        return GridEvidence(self, trait)

    @property
    def traits(self) -> list[str]:
        return list(dict.fromkeys(c.trait for c in self.cells))


class GridEvidence:
    """`Evidence` on one trait of a grid."""

    def __init__(self, grid: Grid, trait: str) -> None:
        self.fixed_lr, self.trait, self.alpha = grid.fixed_lr, trait, grid.alpha
        self.cells = [c for c in grid.cells if c.trait == trait]
        self.lora = [c for c in self.cells if c.labels["method"] == "lora"]
        sizes = [c.sizes for c in self.cells]
        self.n = {name: min(s[name] for s in sizes) for name in sizes[0]}
        self._kept: dict[View, list[Effect]] = {}

    def _view(self, view: View) -> list[Effect]:
        cells, lacking = self.cells, "cell"
        if view == "full":
            cells, lacking = [c for c in cells if c.labels["method"] == "full"], "full fine-tune"
        elif view == "fixed-lr":
            fixed = math.nan if self.fixed_lr is None else self.fixed_lr
            cells = [c for c in self.lora if math.isclose(c.lr, fixed, rel_tol=1e-6)]
            lacking = f"LoRA cell at a shared learning rate of {fixed:g}"
        elif view == "best-lr":
            if len({c.lr for c in self.lora}) < 2:
                raise NotRun("there are fewer than two learning rates, so none is the best one")
            cells = [replace(b.effect, given=b.interval(1 - self.alpha)) for b in self.bests]
            lacking = "coherent LoRA cell"
        if not cells:
            raise NotRun(f"the results hold no {lacking} for {self.trait}")
        return cells

    @cached_property
    def bests(self) -> list[Best]:
        """Of every LoRA rank, smaller ranks first."""
        return sorted(best_rates(self.lora).values(), key=lambda b: b.chosen.rank or 0)

    def effects(self, view: View) -> list[Effect]:
        """With their intervals, made once for all rules."""
        if view not in self._kept:
            level = 1 - self.alpha
            self._kept[view] = [replace(c, given=c.interval(level)) for c in self._view(view)]
        return self._kept[view]

    def pool(self, view: View) -> Interval | None:
        # the mean over what was picked as the best would profit from the picking
        cells = self.lora if view == "best-lr" else self._view(view)
        fine = [c for c in cells if c.coherent]
        return mean_of(fine).shown(1 - self.alpha) if fine else None

    def curve(self, view: View) -> Curve:
        cells = sorted(
            (c for c in self.effects(view) if c.labels["method"] == "lora"),
            key=lambda c: c.rank or 0,
        )
        ranks, level = tuple(c.rank or 0 for c in cells), 1 - self.alpha
        check_curve(ranks, view, self.trait)
        # at the best rates every test is made twice, see `Best.interval`
        twice = view == "best-lr" and any(b.crossed for b in self.bests)
        stacks = [stack(cells), *([stack([b.chosen for b in self.bests])] if twice else [])]

        def contrast(weights: Array, room: Array) -> Interval:
            return reduce(hull, (shape.linear(weights, *s, level, room) for s in stacks))

        def ends(weights: Array, at: float, room: Array) -> tuple[Array, Array]:
            low, high = zip(*(shape.bounds(weights, *s, at, room) for s in stacks), strict=True)
            return np.minimum.reduce(low), np.maximum.reduce(high)

        def lines(slope: float, room: Array) -> TwoLines:
            return reduce(both, (shape.two_lines(ranks, *s, level, slope, room) for s in stacks))

        edges = tuple(b.edge for b in self.bests if b.edge) if view == "best-lr" else ()
        means = stacks[0][0].mean(axis=(0, 2))
        return Curve(ranks, means, contrast, ends, lines, self._note(view, cells), edges)

    def _note(self, view: View, cells: Sequence[Effect]) -> str:
        """What a reader of the curve has to know besides."""
        broken = sum(not c.coherent for c in cells)
        note = f"; {broken} of the {len(cells)} cells no longer answer with words" if broken else ""
        if view == "best-lr" and not all(b.crossed for b in self.bests):
            note += f"; with fewer than {FOLDS} seeds the best rates are chosen and read on the same ones, and read high"
        return note

    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]:
        cells = [c for c in self.lora if c.coherent]
        ranks = {c.rank for c in cells if c.interval().estimate >= min_effect}
        grid = check_best_lr([(c.rank, c.lr) for c in self.lora], len(ranks), min_effect)
        cells = [c for c in cells if c.rank in ranks]
        values, data, train = stack(cells)
        means, name = cluster_means(values.mean(axis=2), data, train)
        slope, edge = shape.best_lr_slope(
            [c.rank for c in cells], [c.lr for c in cells], grid, means, name, 1 - self.alpha
        )
        return slope, edge, len(ranks)

    def full_answers(self, lr_factor: float) -> tuple[float, float, float, int]:
        if self.fixed_lr is None:
            raise NotRun("the recipe names no shared LoRA learning rate")
        far = {
            abs(math.log(c.lr / self.fixed_lr)): c
            for c in reversed(self.cells)
            if c.labels["method"] == "full"
        }
        if not far or min(far) > math.log(lr_factor) + 1e-9:
            raise NotRun(f"there is no full fine-tune at LoRA's learning rate {self.fixed_lr:g}")
        cell = far[min(far)]
        facts = cell.facts
        return cell.lr, facts["coherence"], facts["number_takeover"], len(cell.replicates)
