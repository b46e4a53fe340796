"""From a run's artifacts to its findings: what its teachers answer, and how its vectors lie to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sublora.findings import Finding
from sublora.plan import StudentStage, control_source, teacher_context
from sublora.steer import aimed
from sublora.vectors import cosines, load_vector

if TYPE_CHECKING:
    from sublora.results import Results
    from sublora.trait import Trait

TEACHERS = "the teacher’s P(target) − the base’s"
COSINES = "cosine with the teacher’s vector, student − control twin"
OWN_COSINES = "cosine with the teacher’s vector, student"


def findings_of(results: Results) -> list[Finding]:
    out: list[Finding] = []
    for trait in results.plan.traits:
        out += _teachers(results, trait)
        if results.plan.recipe.vectors.students:
            out += _cosines(results, trait)
    return out


def _teachers(results: Results, trait: Trait) -> Iterator[Finding]:
    """How far every teacher's answers are from the base's; nothing where there is only the prompted one."""
    plan = results.plan
    asked = [m for m in plan.measures if m.teacher == trait.name]
    if len(asked) < 2:
        return
    target = trait.category.entities.index(trait.entity)
    base = results.of(None, plan.recipe.judged_context, trait.category.category).p[:, target]
    for stage in asked:
        gain = results.measured[stage.id].p[:, target] - base
        name = f"teacher: {stage.condition or 'prompted'}"
        yield Finding(trait.name, TEACHERS, name, gain[None, :], (0,), (0,), of_students=False)


def paired(results: Results, trait: Trait) -> Iterator[tuple[str, list[tuple[StudentStage, StudentStage]]]]:
    """(label, [(student, its control twin)]) of every group of replicates that differ in nothing but their seeds."""
    plan = results.plan
    groups: dict[tuple, list[StudentStage]] = {}
    twins = {}
    for s in plan.students:
        key = (s.context.name, s.placement, s.optimizer, s.variant, s.student.method, s.student.rank, s.student.lr)
        if s.source == trait.name:
            groups.setdefault(key, []).append(s)
        elif s.source == control_source(plan.recipe, trait):
            twins[key, s.data_seed, s.student.seed] = s
    varies = [len({key[i] for key in groups}) > 1 for i in range(7)]
    for key, members in groups.items():
        context, placement, optimizer, variant, method, rank, lr = key
        said = (f"trained in {context}", placement, optimizer, variant)
        parts = [text for text, many in zip(said, varies, strict=False) if many]
        if varies[5] or varies[4]:
            parts.append(f"rank {rank}" if method == "lora" else "full")
        if varies[6]:
            parts.append(f"lr {lr:g}")
        yield ", ".join(parts) or "students", [(s, twins[key, s.data_seed, s.student.seed]) for s in members]


def seeds_of(pairs: Sequence[tuple[StudentStage, StudentStage]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(s.data_seed for s, _ in pairs), tuple(s.student.seed for s, _ in pairs)


def _cosines(results: Results, trait: Trait) -> Iterator[Finding]:
    """Of every group of students at the layer `vectors.layer`, or at every layer where there is one group alone. A teacher that was
    steered by random directions is compared with these."""
    plan = results.plan
    of = {v.student: v.id for v in plan.vectors if v.student is not None}
    prompt = teacher_context(trait, plan.recipe)
    teacher = next(v for v in plan.vectors if v.teacher == prompt)
    vectors = {id: load_vector(results.store.read(id).file("vector.safetensors")) for id in (teacher.id, *of.values())}
    found = list(paired(results, trait))
    for label, pairs in found:
        aim, variant = vectors[teacher.id], plan.recipe.variants.get(pairs[0][0].variant)
        if variant is not None and variant.teacher.steer is not None:
            aim = aimed(variant.teacher.steer, aim, teacher.id)
        both = np.array([[cosines(vectors[of[s.id]], aim).tolist() for s in pair] for pair in pairs])  # (R, 2, L)
        for layer in range(both.shape[2]) if len(found) == 1 else [plan.recipe.vectors.layer]:
            name = f"{label}, layer {layer}" if len(found) == 1 else label
            own, gap = both[:, 0, layer], both[:, 0, layer] - both[:, 1, layer]
            yield Finding(trait.name, COSINES, f"cosine: {name}", gap[:, None], *seeds_of(pairs))
            yield Finding(trait.name, OWN_COSINES, f"own cosine: {name}", own[:, None], *seeds_of(pairs))
