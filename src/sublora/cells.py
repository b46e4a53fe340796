"""The cells of a run, the choice of the best learning rates among them, and the rows of cells.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sublora.errors import SubloraError
from sublora.shape import select_and_report
from sublora.stats import Array, Interval, contrast, holm

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """The students of one (trait, context, method, rank, lr): p and control (R, Q) paired by row, base (Q,).

    `context` is that of the measurement. Where a recipe has such axes, `train_context`, `placement` (of the adapter), `condition`
    (of the measurement) and `data` (the variant of the rows) are set as well, `optimizer` where optimizers are compared, and `variant`
    where the students' rows or steps differ.
    """

    trait: str
    context: str
    method: Literal["lora", "full"]
    rank: int | None
    lr: float
    p: Array
    control: Array
    base: Array
    data_seeds: tuple[int, ...]
    train_seeds: tuple[int, ...]
    coherence: float
    number_takeover: float
    rate_whole_word: float = math.nan
    heldout_loss: float = math.nan
    train_loss: float = math.nan
    train_context: str = ""
    placement: str = ""
    optimizer: str = ""
    variant: str = ""
    matched: bool = True  # whether it stands at the held-out loss at which optimizers are compared, see `matched.py`
    condition: str = ""
    data: str = ""


@dataclass(frozen=True)
class Table:
    """All cells of a run. ``select_questions`` (Q,) marks the half on which the best learning rates are
    chosen.

    Claims are judged under ``context``; ``fixed_lr`` is the rate of the fixed-lr view and LoRA's for a full
    fine-tune.
    """

    cells: tuple[Cell, ...]
    fixed_lr: float | None
    select_questions: Mask
    alpha: float = 0.05
    context: str = "default"
    min_coherence: float = 0.5
    max_takeover: float = 0.25

    def coherent(self, cell: Cell) -> bool:
        """Whether the students of the cell still answer with words of the category rather than with numbers."""
        return cell.coherence >= self.min_coherence and cell.number_takeover <= self.max_takeover


def effect_of(cell: Cell, asked: Mask | None, alpha: float) -> Interval:
    """Student minus control of a cell on the asked questions (Q,), or on all of them (None)."""
    where = slice(None) if asked is None else asked
    return contrast(
        cell.p[:, where], cell.control[:, where], cell.data_seeds, cell.train_seeds, 1 - alpha
    )


def select_mask(table: Table, cells: Sequence[Cell]) -> Mask:
    """The table's selection half, checked against the cells: (Q,) with questions on both sides."""
    mask = np.asarray(table.select_questions, dtype=bool)
    if mask.ndim != 1 or mask.all() or not mask.any():
        raise SubloraError(
            "the half of the questions that selects learning rates is empty or all of them; mark some, not all."
        )
    for c in cells:
        if c.p.shape != (len(c.data_seeds), len(mask)) or c.base.shape != mask.shape:
            raise SubloraError(
                f"cell {c.trait}, {c.method} {c.rank or ''}, lr {c.lr:g} has p {c.p.shape} "
                f"and base {c.base.shape} for {len(c.data_seeds)} replicates and {len(mask)} "
                "questions; measure every student on the same questions."
            )
    return mask


def best_cells(table: Table, cells: Sequence[Cell]) -> list[int]:
    """Indices of the best-lr cell of each (method, rank) among cells of one trait and context."""
    mask = select_mask(table, cells)
    best = select_and_report(
        [c.p[:, mask].mean() for c in cells],
        [table.coherent(c) for c in cells],
        [(c.method, c.rank) for c in cells],
        [c.lr for c in cells],
    )
    return sorted(best.values())


def summarise(table: Table) -> list[dict]:
    """The rows of cells.csv in its column order; rank is "" for full fine-tunes, p_corrected is Holm's over
    all cells of a (trait, context). ``called`` needs a corrected p below alpha, an effect above 0 and more
    than one replicate.
    """
    rows = []
    for trait, context in dict.fromkeys((c.trait, c.context) for c in table.cells):
        cells = [c for c in table.cells if (c.trait, c.context) == (trait, context)]
        mask, best = select_mask(table, cells), set(best_cells(table, cells))
        effects = [effect_of(c, None, table.alpha) for c in cells]
        corrected = holm([effect.p_value for effect in effects])
        for k, (c, effect, p) in enumerate(zip(cells, effects, corrected, strict=True)):
            report = effect_of(c, ~mask, table.alpha)
            rows.append(
                {
                    "trait": trait,
                    "context": context,
                    "method": c.method,
                    "rank": "" if c.rank is None else c.rank,
                    "lr": c.lr,
                    "n_data_seeds": len(set(c.data_seeds)),
                    "n_train_seeds": len(set(c.train_seeds)),
                    "n_questions": c.p.shape[1],
                    "p_target": float(c.p.mean()),
                    "p_control": float(c.control.mean()),
                    "p_base": float(c.base.mean()),
                    "effect": effect.estimate,
                    "effect_low": effect.low,
                    "effect_high": effect.high,
                    "df": effect.df,
                    "p_value": effect.p_value,
                    "p_corrected": float(p),
                    "called": int(
                        p < table.alpha and effect.estimate > 0 and not effect.seeds_unknown
                    ),
                    "p_target_select": float(c.p[:, mask].mean()),
                    "p_target_report": float(c.p[:, ~mask].mean()),
                    "effect_report": report.estimate,
                    "effect_report_low": report.low,
                    "effect_report_high": report.high,
                    "rate_whole_word": c.rate_whole_word,
                    "coherence": c.coherence,
                    "number_takeover": c.number_takeover,
                    "heldout_loss": c.heldout_loss,
                    "train_loss": c.train_loss,
                    "selected": int(k in best),
                }
            )
    return rows
