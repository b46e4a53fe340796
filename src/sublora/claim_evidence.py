"""What the trained students of a run say about a claim: ``claim_rules.Evidence`` on the cells of a ``Table``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sublora import shape, stats
from sublora.cells import Cell, Mask, Table, best_cells, effect_of, select_mask
from sublora.claim_rules import Curve, Effect, NotRun, View
from sublora.stats import Array, Interval


class TableEvidence:
    """``Evidence`` on one trait of a ``Table``, under the table's context."""

    def __init__(self, table: Table, trait: str) -> None:
        self.table, self.trait, self.alpha = table, trait, table.alpha
        self.cells = [c for c in table.cells if c.trait == trait and c.context == table.context]
        self.select = select_mask(table, self.cells)
        self.lora = [c for c in self.cells if c.method == "lora"]
        self.n = {
            "data_seeds": min((len(set(c.data_seeds)) for c in self.cells), default=0),
            "train_seeds": min((len(set(c.train_seeds)) for c in self.cells), default=0),
            "questions": len(self.select),
        }

    def _view(self, view: View) -> tuple[list[Cell], Mask]:
        """The cells of a view and the questions (Q,) that they are read on."""
        asked = np.ones(len(self.select), dtype=bool)
        if view == "all":
            cells, lacking = self.cells, "cell"
        elif view == "full":
            cells, lacking = [c for c in self.cells if c.method == "full"], "full fine-tune"
        elif view == "fixed-lr":
            fixed = self.table.fixed_lr
            cells = [
                c
                for c in self.lora
                if fixed is not None and math.isclose(c.lr, fixed, rel_tol=1e-6)
            ]
            lacking = "LoRA cell at a shared learning rate" + (
                "" if fixed is None else f" of {fixed:g}"
            )
        else:
            if len({c.lr for c in self.lora}) < 2:
                raise NotRun(
                    "there are fewer than two learning rates, so there is no best one to choose"
                )
            best = [self.cells[k] for k in best_cells(self.table, self.cells)]
            cells, lacking = [c for c in best if c.method == "lora"], "coherent LoRA cell"
            asked = ~self.select
        if not cells:
            raise NotRun(f"the results hold no {lacking} for {self.trait}")
        return cells, asked

    def effects(self, view: View) -> list[Effect]:
        cells, asked = self._view(view)
        looks = (
            Counter(c.rank for c in self.lora if self.table.coherent(c))
            if view == "best-lr"
            else {}
        )
        return [
            Effect(
                c.rank,
                c.lr,
                effect_of(c, asked, self.alpha),
                self.table.coherent(c),
                looks.get(c.rank, 1),
            )
            for c in cells
        ]

    def pool(self, view: View) -> Interval | None:
        cells, asked = self._view(view)
        if view == "best-lr":  # the mean over what was picked would profit from the picking
            cells, asked = self.lora, None
        fine = [c for c in cells if self.table.coherent(c)]
        if not fine:
            return None
        values, data, train = _stack(fine, asked)
        return stats.clustered_interval(values.mean(axis=1), data, train, 1 - self.alpha)

    def curve(self, view: View) -> Curve:
        cells, asked = self._view(view)
        cells = sorted((c for c in cells if c.method == "lora"), key=lambda c: c.rank or 0)
        if not cells:
            raise NotRun(f"the {view} view holds no LoRA cell for {self.trait}")
        if len({c.rank for c in cells}) < len(cells):
            raise NotRun(
                f"the {view} view holds several learning rates per rank; a curve needs one"
            )
        values, data, train = _stack(cells, asked)
        ranks, level = tuple(c.rank or 0 for c in cells), 1 - self.alpha
        broken = sum(not self.table.coherent(c) for c in cells)
        return Curve(
            ranks,
            values.mean(axis=(0, 2)),
            lambda w: shape.linear(w, values, data, train, level),
            lambda slope: shape.two_lines(ranks, values, data, train, level, slope),
            f"; {broken} of the {len(cells)} cells no longer answer with words" if broken else "",
        )

    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]:
        cells = [c for c in self.lora if self.table.coherent(c)]
        ranks = sorted(
            {c.rank for c in cells if effect_of(c, None, self.alpha).estimate >= min_effect}
        )
        grid = sorted({c.lr for c in self.lora})
        if len({c.rank for c in self.lora}) < 3 or len(grid) < 3:
            raise NotRun(
                "the best learning rate over rank needs at least 3 ranks and 3 learning rates"
            )
        if len(ranks) < 3:
            raise NotRun(
                f"{len(ranks)} ranks have a coherent effect of {min_effect:g} or more; 3 are needed"
            )
        cells = [c for c in cells if c.rank in ranks]
        values, data, train = _stack(cells, None)
        means, name = stats.cluster_means(values.mean(axis=2), data, train)
        slope, edge = shape.best_lr_slope(
            [c.rank for c in cells], [c.lr for c in cells], grid, means, name, 1 - self.alpha
        )
        return slope, edge, len(ranks)

    def full_answers(self, lr_factor: float) -> tuple[float, float, float]:
        fixed, full = self.table.fixed_lr, [c for c in self.cells if c.method == "full"]
        if fixed is None:
            raise NotRun("the recipe names no shared LoRA learning rate")
        near = [c for c in full if abs(math.log(c.lr / fixed)) <= math.log(lr_factor) + 1e-9]
        if not near:
            raise NotRun(f"there is no full fine-tune at LoRA's learning rate {fixed:g}")
        cell = min(near, key=lambda c: abs(math.log(c.lr / fixed)))
        return cell.lr, cell.coherence, cell.number_takeover


def _stack(cells: Sequence[Cell], asked: Mask | None) -> tuple[Array, list[int], list[int]]:
    """Effects (R, C, Q) of the replicates that all cells have, with their data and train seeds."""
    keys = [list(zip(c.data_seeds, c.train_seeds, strict=True)) for c in cells]
    shared = sorted(set(keys[0]).intersection(*keys[1:]))
    if not shared:
        raise NotRun("the cells have no replicate in common")
    values = np.stack(
        [
            (c.p - c.control)[[key.index(pair) for pair in shared]]
            for c, key in zip(cells, keys, strict=True)
        ],
        axis=1,
    )
    return (
        values if asked is None else values[:, :, asked],
        [d for d, _ in shared],
        [t for _, t in shared],
    )
