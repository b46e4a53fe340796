"""One effect over all traits of a run: the mean diagonal elevation of the students that differ in their traits alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sublora.analysis.effects import ALL_TRAITS, Effect, transfer
from sublora.experiments.grid.effects import Results, groups, target, transfers
from sublora.experiments.grid.elevation import by_category, matrix_of
from sublora.steps.students import Student
from sublora.traits.trait import Trait

WORST = {"worst_coherence": min, "worst_words": min, "worst_takeover": max}
Members = Mapping[str, Sequence[Student]]  # by trait


def pooled(results: Results, context: str, condition: str | None = None) -> list[Effect]:
    """For every group of students, the mean elevation over the traits; none where no category has three of them.

    A control twin is of one other trait, and what that does to a word differs from seed to seed; here the students of all other traits are
    the control, and what all of them share falls out.
    """
    categories = by_category(results)
    traits = {trait.name for some in categories for trait in some}
    plan = results.plan
    every = [(trait.name, some) for trait in plan.traits for some in groups(plan, trait)]
    alike: dict[tuple, tuple[dict[str, list[Student]], list[Effect]]] = {}
    for (name, some), effect in zip(every, transfers(results, context, condition), strict=True):
        if name in traits:
            members, effects = alike.setdefault(tuple(some[0].labels.items()), ({}, []))
            members[name] = some
            effects.append(effect)
    return [_mean(results, categories, *both, context, condition) for both in alike.values()]


def _mean(
    results: Results,
    categories: Sequence[Sequence[Trait]],
    members: Members,
    effects: Sequence[Effect],
    context: str,
    condition: str | None,
) -> Effect:
    """Of the students of every trait in one group."""
    matrices = [
        matrix_of(results, some, [members[t.name] for t in some], context, condition)
        for some in categories
    ]
    parts = {
        "student": np.mean([e.parts["student"] for e in effects], axis=0),
        "control": _others(results, categories, members, context, condition),
        "base": np.mean([e.parts["base"] for e in effects], axis=0),
        "rise": np.concatenate([m.own for m in matrices], axis=1).mean(axis=1),
    }
    facts = {
        name: float(WORST.get(name, np.mean)([e.facts[name] for e in effects]))
        for name in effects[0].facts
    }
    values = np.concatenate([m.elevation for m in matrices], axis=1).mean(axis=1)
    labels = effects[0].labels | {"trait": ALL_TRAITS}
    return transfer(labels, values, parts, effects[0].replicates, facts)


def _others(
    results: Results,
    categories: Sequence[Sequence[Trait]],
    members: Members,
    context: str,
    condition: str | None,
) -> np.ndarray:
    """P(a trait's word) of the students of the other traits of its category, mean over traits, (R, Q)."""
    found = []
    for traits in categories:
        asked = (context, traits[0].category.category, condition)
        p = np.array([[results.of(s.id, *asked).p for s in members[t.name]] for t in traits])
        for k, trait in enumerate(traits):
            found.append(np.delete(p, k, axis=0).mean(axis=0)[:, :, target(trait)])
    return np.mean(found, axis=0)
