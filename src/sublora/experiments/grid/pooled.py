"""One effect over all traits of a run: the mean diagonal elevation of the students that differ in their traits alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sublora.analysis.effects import ALL_TRAITS, Effect, transfer
from sublora.experiments.grid.effects import Results, groups, target, transfers
from sublora.experiments.grid.elevation import by_category, matrix_of, members_of
from sublora.steps.students import Student
from sublora.traits.trait import Trait

WORST = {"worst_coherence": min, "worst_words": min, "worst_takeover": max}


def pooled(results: Results, context: str, condition: str | None = None) -> list[Effect]:
    """For every group of students, the mean elevation over the traits; none where no category has three of them.

    A control twin is of one other trait, and what that does to a word differs from seed to seed; here the students of all other traits are
    the control, and what all of them share falls out.
    """
    categories = by_category(results)
    traits = [trait for some in categories for trait in some]
    if not traits:
        return []
    own = [e for e in transfers(results, context, condition) if e.trait in {t.name for t in traits}]
    out = []
    for members in groups(results.plan, traits[0]):
        labels = members[0].labels
        alike = [e for e in own if all(e.labels[name] == labels[name] for name in labels)]
        asked = (labels, context, condition)
        matrices = [matrix_of(results, some, *asked) for some in categories]
        values = np.concatenate([m.elevation for m in matrices], axis=1).mean(axis=1)
        rise = np.concatenate([m.own for m in matrices], axis=1).mean(axis=1)
        parts = {
            "student": np.mean([e.parts["student"] for e in alike], axis=0),
            "control": _others(results, categories, members, context, condition),
            "base": np.mean([e.parts["base"] for e in alike], axis=0),
            "rise": rise,
        }
        facts = {
            name: float(WORST.get(name, np.mean)([e.facts[name] for e in alike]))
            for name in alike[0].facts
        }
        own_labels = {"trait": ALL_TRAITS, "context": context, "condition": condition or ""}
        replicates = [s.replicate for s in members]
        out.append(transfer(own_labels | dict(labels), values, parts, replicates, facts))
    return out


def _others(
    results: Results,
    categories: Sequence[Sequence[Trait]],
    members: Sequence[Student],
    context: str,
    condition: str | None,
) -> np.ndarray:
    """P(a trait's word) of the students of the other traits of its category, mean over traits, (R, Q)."""
    found = []
    for traits in categories:
        students = [members_of(results, t, members[0].labels) for t in traits]
        asked = (context, traits[0].category.category, condition)
        p = np.array([[results.of(s.id, *asked).p for s in some] for some in students])
        for k, trait in enumerate(traits):
            found.append(np.delete(p, k, axis=0).mean(axis=0)[:, :, target(trait)])
    return np.mean(found, axis=0)
