"""Arms: cells that differ in training context, context, condition, placement, optimizer, variant or rows, and what claims may ask of them.

An arm's effect is student minus control under the same training context, context, condition and placement, paired by replicate and
question. Differences between arms are paired in the same way, so what the seeds and questions share drops out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from sublora.cells import Cell, Table, effect_of
from sublora.claim_rules import NotRun
from sublora.stats import Array, Interval, clustered_interval, holm

_STRICT = ConfigDict(extra="forbid", frozen=True)
Names = str | tuple[str, ...]


class ArmPick(BaseModel):
    """Which cells make up an arm of a claim; several are averaged.

    `train`, `eval`, `condition`, `placement`, `optimizer`, `variant`, `data`: a name or several; `rank`: one or several, or `full`. `eval`
    may also be `same` (the training context) or `other` (any but that). Left out: every training context, placement, optimizer, variant
    and rank there is, the same context, the plain adapter, the rows as written.
    """

    model_config = _STRICT
    train: Names | None = None
    eval: Names | Literal["same", "other"] = "same"
    condition: Names = ""
    placement: Names | None = None
    optimizer: Names | None = None
    variant: Names | None = None
    rank: int | tuple[int, ...] | Literal["full"] | None = None
    data: Names = ""

    def takes(self, cell: Cell) -> bool:
        same = cell.context == cell.train_context
        context = {"same": same, "other": not same}.get(
            str(self.eval), _among(cell.context, self.eval)
        )
        return (
            context
            and _among(cell.condition, self.condition)
            and _among(cell.data, self.data)
            and (self.train is None or _among(cell.train_context, self.train))
            and (self.placement is None or _among(cell.placement, self.placement))
            and (self.optimizer is None or _among(cell.optimizer, self.optimizer))
            and (self.variant is None or _among(cell.variant, self.variant))
            and (self.rank is None or self._has_rank(cell))
        )

    def _has_rank(self, cell: Cell) -> bool:
        if self.rank == "full" or cell.method == "full":
            return self.rank == cell.method
        return cell.rank in (self.rank if isinstance(self.rank, tuple) else (self.rank,))


def _among(name: str, names: Names) -> bool:
    return name == names if isinstance(names, str) else name in names


class ArmEvidence:
    """The arms of one trait."""

    def __init__(self, table: Table, trait: str) -> None:
        self.table, self.trait, self.alpha = table, trait, table.alpha
        self.cells = [c for c in table.cells if c.trait == trait]
        self.n: Mapping[str, int | None] = {
            "data_seeds": min((len(set(c.data_seeds)) for c in self.cells), default=0),
            "train_seeds": min((len(set(c.train_seeds)) for c in self.cells), default=0),
            "questions": self.cells[0].p.shape[1] if self.cells else 0,
        }

    def pick(self, name: str, pick: ArmPick) -> list[Cell]:
        """The cells of an arm. Raises NotRun where the run has none."""
        found = [c for c in self.cells if pick.takes(c)]
        if not found:
            raise NotRun(f"the run has no arm that could be '{name}'")
        return found

    def broken(self, name: str, pick: ArmPick) -> bool:
        """Whether a cell of the arm no longer answers with words."""
        return not all(self.table.coherent(c) for c in self.pick(name, pick))

    def unmatched(self, name: str, pick: ArmPick) -> bool:
        """Whether a cell of the arm does not stand at the held-out loss that optimizers are compared at."""
        return not all(c.matched for c in self.pick(name, pick))

    def values(self, name: str, pick: ArmPick) -> Array:
        """Effects (R, Q) of an arm, on the replicates of the trait's first cell."""
        first = self.cells[0]
        keys = list(zip(first.data_seeds, first.train_seeds, strict=True))
        rows = []
        for cell in self.pick(name, pick):
            place = {
                pair: i
                for i, pair in enumerate(zip(cell.data_seeds, cell.train_seeds, strict=True))
            }
            rows.append((cell.p - cell.control)[[place[pair] for pair in keys]])
        return np.mean(rows, axis=0)

    def interval(self, values: Array) -> Interval:
        """The interval of a linear combination of arms, from its values (R, Q)."""
        first = self.cells[0]
        return clustered_interval(values, first.data_seeds, first.train_seeds, 1 - self.alpha)


ARM_COLUMNS = (
    "trait",
    "data",
    "train_context",
    "context",
    "condition",
    "placement",
    "method",
    "rank",
    "lr",
    "n_data_seeds",
    "n_train_seeds",
    "n_questions",
    "p_target",
    "p_control",
    "p_base",
    "effect",
    "effect_low",
    "effect_high",
    "p_value",
    "p_corrected",
    "called",
    "rate_whole_word",
    "coherence",
    "number_takeover",
    "optimizer",
    "variant",
    "heldout_loss",
    "matched",
)


def summarise_arms(table: Table, plain: str, as_written: str) -> list[dict[str, Any]]:
    """The rows of arms.csv; p_corrected is Holm's over all arms of a trait. `plain` and `as_written` name the condition without a gate
    and the rows as the teacher wrote them."""
    rows = []
    for trait in dict.fromkeys(c.trait for c in table.cells):
        cells = [c for c in table.cells if c.trait == trait]
        effects = [effect_of(c, None, table.alpha) for c in cells]
        for c, effect, p in zip(cells, effects, holm([e.p_value for e in effects]), strict=True):
            rows.append(
                {
                    "trait": trait,
                    "data": c.data or as_written,
                    "train_context": c.train_context,
                    "context": c.context,
                    "condition": c.condition or plain,
                    "placement": c.placement,
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
                    "p_value": effect.p_value,
                    "p_corrected": float(p),
                    "called": int(
                        p < table.alpha and effect.estimate > 0 and not effect.seeds_unknown
                    ),
                    "rate_whole_word": c.rate_whole_word,
                    "coherence": c.coherence,
                    "number_takeover": c.number_takeover,
                    "optimizer": c.optimizer,
                    "variant": c.variant,
                    "heldout_loss": c.heldout_loss,
                    "matched": int(c.matched),
                }
            )
    return rows
