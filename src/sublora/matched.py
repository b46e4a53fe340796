"""Optimizers side by side at one held-out loss, and not at one learning rate, which means something else to each of them.

The loss to match is that of the reference, the first optimizer at the recipe's `match_lr`. Every other optimizer is taken at the
smallest rate at which its held-out loss comes down to that, on a straight line in loss between the two rates around it (log lr,
probabilities and shares alike). Where no rate comes so low, or the smallest one is already lower, the nearest rate stands for it,
and it counts as matched only within TOLERANCE. Losses are means over a cell's trait students on their own held-out rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sublora.cells import Cell

TOLERANCE = 0.005  # nats per completion token


def matched_cells(cells: Sequence[Cell], match_lr: float) -> list[Cell]:
    """One cell for each (trait, rank, optimizer), the reference first; `matched` is false where the loss is not reached.

    `cells`: those of one context, all optimizers and rates; the first one's optimizer is the reference.
    """
    groups: dict[tuple[str, int | None], dict[str, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault((cell.trait, cell.rank), {}).setdefault(cell.optimizer, []).append(cell)
    out = []
    for by_optimizer in groups.values():
        names = list(by_optimizer)
        reference = next(c for c in by_optimizer[names[0]] if math.isclose(c.lr, match_lr))
        out.append(reference)
        out += [at_loss(by_optimizer[name], reference.heldout_loss) for name in names[1:]]
    return out


def at_loss(cells: Sequence[Cell], loss: float) -> Cell:
    """One optimizer's cells over rates as one cell at this held-out loss, in nats."""
    ordered = sorted((c for c in cells if math.isfinite(c.heldout_loss)), key=lambda c: c.lr)
    if not ordered or not math.isfinite(loss):
        return replace(cells[0], matched=False)
    first = next((i for i, c in enumerate(ordered) if c.heldout_loss <= loss), None)
    if first is None or first == 0:
        nearest = min(ordered, key=lambda c: c.heldout_loss) if first is None else ordered[0]
        return replace(nearest, matched=abs(nearest.heldout_loss - loss) <= TOLERANCE)
    above, below = ordered[first - 1], ordered[first]
    weight = (above.heldout_loss - loss) / (above.heldout_loss - below.heldout_loss)
    return _between(above, below, weight)


def _between(one: Cell, other: Cell, weight: float) -> Cell:
    """The cell at `weight` of the way from one to the other; both have the same replicates and questions."""

    def mean(name: str) -> np.ndarray | float:
        return (1 - weight) * getattr(one, name) + weight * getattr(other, name)

    values = {
        name: mean(name)
        for name in (
            "p",
            "control",
            "coherence",
            "number_takeover",
            "rate_whole_word",
            "heldout_loss",
            "train_loss",
        )
    }
    lr = math.exp((1 - weight) * math.log(one.lr) + weight * math.log(other.lr))
    return replace(one, lr=lr, **values)
