"""What the students of a grid of ranks and learning rates say about a claim, for the rules of `rules.py`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from sublora.analysis import shape
from sublora.analysis.effects import Effect, Mask, NotRun, best_rates, mean_of, select_half, stack
from sublora.analysis.intervals import Array, Interval, cluster_means
from sublora.analysis.shape import TwoLines

View = Literal["all", "fixed-lr", "best-lr", "full"]


@dataclass(frozen=True)
class Curve:
    """Transfer over ranks (C,): any linear combination of it with its interval, and the two-lines test on it."""

    ranks: tuple[int, ...]
    means: Array
    linear: Callable[[Array], Interval]
    two_lines: Callable[[float], TwoLines]
    note: str = ""


class Evidence(Protocol):
    """What the rules may ask of one trait's grid. Each method raises NotRun where the results lack it."""

    trait: str
    alpha: float
    n: Mapping[str, int | None]

    def effects(self, view: View) -> list[Effect]:
        """The cells of a view; the fact `looks` says of how many cells one was picked as the best."""

    def pool(self, view: View) -> Interval | None: ...
    def curve(self, view: View) -> Curve: ...
    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]: ...
    def full_answers(self, lr_factor: float) -> tuple[float, float, float]: ...


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

    def _view(self, view: View) -> tuple[list[Effect], Mask | None]:
        """The cells of a view, and the questions (Q,) that they are read on."""
        cells, asked, lacking = self.cells, None, "cell"
        if view == "full":
            cells, lacking = [c for c in cells if c.labels["method"] == "full"], "full fine-tune"
        elif view == "fixed-lr":
            fixed = math.nan if self.fixed_lr is None else self.fixed_lr
            cells = [c for c in self.lora if math.isclose(c.lr, fixed, rel_tol=1e-6)]
            lacking = f"LoRA cell at a shared learning rate of {fixed:g}"
        elif view == "best-lr":
            if len({c.lr for c in self.lora}) < 2:
                raise NotRun("there are fewer than two learning rates, so none is the best one")
            asked = ~select_half(cells[0].values.shape[1])
            cells, lacking = [self.lora[k] for k in best_rates(self.lora)], "coherent LoRA cell"
        if not cells:
            raise NotRun(f"the results hold no {lacking} for {self.trait}")
        return cells, asked

    def effects(self, view: View) -> list[Effect]:
        cells, asked = self._view(view)
        if asked is None:
            return cells
        looks = Counter(c.rank for c in self.lora if c.coherent)
        return [
            replace(c, values=c.values[:, asked], facts={**c.facts, "looks": looks[c.rank]})
            for c in cells
        ]

    def pool(self, view: View) -> Interval | None:
        # the mean over what was picked as the best would profit from the picking
        cells = self.lora if view == "best-lr" else self._view(view)[0]
        fine = [c for c in cells if c.coherent]
        return mean_of(fine).interval(1 - self.alpha) if fine else None

    def curve(self, view: View) -> Curve:
        cells = sorted(
            (c for c in self.effects(view) if c.labels["method"] == "lora"),
            key=lambda c: c.rank or 0,
        )
        ranks, level = tuple(c.rank or 0 for c in cells), 1 - self.alpha
        check_curve(ranks, view, self.trait)
        values, data, train = stack(cells)
        broken = sum(not c.coherent for c in cells)
        return Curve(
            ranks,
            values.mean(axis=(0, 2)),
            lambda w: shape.linear(w, values, data, train, level),
            lambda slope: shape.two_lines(ranks, values, data, train, level, slope),
            f"; {broken} of the {len(cells)} cells no longer answer with words" if broken else "",
        )

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

    def full_answers(self, lr_factor: float) -> tuple[float, float, float]:
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
        return cell.lr, cell.facts["coherence"], cell.facts["number_takeover"]
