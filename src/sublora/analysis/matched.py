"""Optimizers side by side at one held-out loss, and not at one learning rate, which means something else to each of them.

The loss to match is that of the reference, the first optimizer at the recipe's `match_lr`. Every other optimizer is taken at the
smallest rate at which its held-out loss comes down to that, on a straight line in loss between the two rates around it (log lr,
log-odds, probabilities and shares alike). Where no rate comes so low, or the smallest one is already lower, the nearest rate stands for it,
and it counts as matched only within TOLERANCE. Losses are means over a cell's trait students on their own held-out rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sublora.analysis.effects import Effect

TOLERANCE = 0.005  # nats per completion token


def matched_effects(effects: Sequence[Effect], match_lr: float) -> list[Effect]:
    """One effect for each (trait, rank, optimizer), the reference first; the fact `matched` is 0 where the loss is not reached.

    `effects`: those of one context, all optimizers and rates; the first one's optimizer is the reference.
    """
    groups: dict[tuple[str, int | None], dict[Any, list[Effect]]] = {}
    for e in effects:
        by_optimizer = groups.setdefault((e.trait, e.rank), {})
        by_optimizer.setdefault(e.labels["optimizer"], []).append(e)
    out = []
    for first, *others in (list(by_optimizer.values()) for by_optimizer in groups.values()):
        reference = next(e for e in first if math.isclose(e.lr, match_lr))
        out += [reference, *(at_loss(mine, _loss(reference)) for mine in others)]
    return out


def at_loss(effects: Sequence[Effect], loss: float) -> Effect:
    """One optimizer's effects over rates as one at this held-out loss, in nats."""
    ordered = sorted((e for e in effects if math.isfinite(_loss(e))), key=lambda e: e.lr)
    if not ordered or not math.isfinite(loss):
        return _marked(effects[0], False)
    first = next((i for i, e in enumerate(ordered) if _loss(e) <= loss), None)
    if first is None or first == 0:
        nearest = min(ordered, key=_loss) if first is None else ordered[0]
        return _marked(nearest, abs(_loss(nearest) - loss) <= TOLERANCE)
    above, below = ordered[first - 1], ordered[first]
    return _between(above, below, (_loss(above) - loss) / (_loss(above) - _loss(below)))


def _loss(effect: Effect) -> float:
    return effect.facts.get("heldout_loss", math.nan)


def _marked(effect: Effect, matched: bool) -> Effect:
    return replace(effect, facts={**effect.facts, "matched": matched})


def _between(one: Effect, other: Effect, weight: float) -> Effect:
    """The effect at `weight` of the way from one to the other; both have the same replicates and questions."""

    def mean(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
        return {name: (1 - weight) * a[name] + weight * b[name] for name in a}

    lr = math.exp((1 - weight) * math.log(one.lr) + weight * math.log(other.lr))
    return replace(
        one,
        labels={**one.labels, "lr": lr},
        values=(1 - weight) * one.values + weight * other.values,
        parts=mean(one.parts, other.parts),
        facts=mean(one.facts, other.facts),
    )
