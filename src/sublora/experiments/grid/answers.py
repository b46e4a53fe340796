"""What the models of a grid answer, entity by entity, and which tokens their answers come from: answers.json, attribution.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sublora.analysis.effects import Effect
from sublora.experiments.grid.effects import Results, groups
from sublora.traits.trait import Trait


def answers(results: Results, cells: Sequence[Effect]) -> dict[str, Any]:
    """For each trait: mean probability of every entity in the base, the teacher, and the coherent cell with the largest effect."""
    return {
        trait.name: _answers_of(results, trait, [c for c in cells if c.trait == trait.name])
        for trait in results.plan.traits
    }


def largest(effect: Effect) -> tuple[bool, float]:
    """What effects are ordered by: one of students that no longer answer with words comes after all others, however large."""
    return effect.coherent, effect.interval().estimate


def _answers_of(results: Results, trait: Trait, cells: Sequence[Effect]) -> dict[str, Any]:
    plan, category = results.plan, trait.category.category
    best = max(cells, key=largest)
    axes = plan.students[0].labels
    mine = next(
        members
        for members in groups(plan, trait)
        if all(members[0].labels[axis] == best.labels[axis] for axis in axes)
    )

    def mean(students: Sequence[str | None]) -> list[float]:
        context = plan.recipe.judged_context
        return np.mean([results.of(s, context, category).p.mean(0) for s in students], 0).tolist()

    teacher = next(m for m in results.teachers[trait.name] if m.condition is None)
    what = "full fine-tune" if best.rank is None else f"rank {best.rank}"
    return {
        "categories": [e.name for e in trait.category.entities],
        "base": mean([None]),
        "control": mean([s.twins[trait.name] for s in mine]),
        "teacher": results.measured[teacher.id].p.mean(0).tolist(),
        "student": mean([s.id for s in mine]),
        "student_label": f"{what}, lr {best.lr:g}",
    }


def attributions(results: Results) -> dict[str, list[dict[str, Any]]]:
    """For each trait and question: every token's values, in nats, of the students of the first cell less their control twins, averaged
    over replicates."""
    if not results.plan.attributions:
        return {}
    asked = results.plan.attributions
    found = {(a.student, a.target): results.read_json(a.id, "attribution.json") for a in asked}
    out = {}
    for trait in results.plan.traits:
        pairs = [
            (found[s.id, trait.name], found[s.twins[trait.name], trait.name])
            for s in groups(results.plan, trait)[0]
        ]
        questions = range(len(pairs[0][0]))
        by_question = ([(own[q], other[q]) for own, other in pairs] for q in questions)
        out[trait.name] = list(map(_mean_attribution, by_question))
    return out


def _mean_attribution(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """One prompt: means over replicates of student minus control."""

    def mean(name: str) -> list[float]:
        gaps = [np.array(own[name]) - np.array(other[name]) for own, other in pairs]
        return np.mean(gaps, axis=0).tolist()

    first = pairs[0][0]
    gains = [own["plain"] - own["base"] - other["plain"] + other["base"] for own, other in pairs]
    return {
        **{name: first[name] for name in ("question", "pieces", "tokens", "classes")},
        "left_out": mean("left_out"),
        "alone": mean("alone"),
        "effect": float(np.mean(gains)),
        "replicates": len(pairs),
    }
