"""From a run's artifacts to its findings: what its teachers answer, how its vectors and gradients lie, what its students do token by token."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri

from sublora.cells import effect_of
from sublora.findings import ACROSS, Finding
from sublora.plan import StudentStage, control_source, teacher_context
from sublora.seeds import generator
from sublora.stats import Array, Interval
from sublora.steer import aimed
from sublora.vectors import cosines, load_vector

if TYPE_CHECKING:
    from sublora.results import Results
    from sublora.trait import Trait

TEACHERS = "the teacher’s P(target) − the base’s"
COSINES = "cosine with the teacher’s vector, student − control twin"
OWN_COSINES = "cosine with the teacher’s vector, student"
ALIGNED = "cosine of the rows’ gradients, trait − clean, with the teacher’s vector"
ABOVE = "that cosine − the upper 2.5% of shuffled rows"
STEERABLE = "imitation of the prompt by a vector, and transfer, over traits"
DIVERGENT = {
    "share of tokens": "share",
    "P_teacher(its choice)": "teacher_sure",
    "P_student(its choice)": "student_sure",
    "P_student(teacher’s choice)": "student_of_teacher",
    "teacher’s choice above 0.5": "teacher_above",
    "student’s choice above 0.5": "student_above",
}


def findings_of(results: Results) -> list[Finding]:
    plan, out = results.plan, []
    for trait in plan.traits:
        if (
            len(plan.traits) == 1
        ):  # with several, each trait's teachers stand in the table across traits
            out += _teachers(results, trait)
        if plan.recipe.vectors.students:
            out += _cosines(results, trait)
        out += [
            *_divergences(results, trait),
            *_probes(results, trait),
            *_gradients(results, trait),
        ]
    if plan.recipe.measure.teachers and len(plan.traits) > 2:
        out += across_traits(steerability(results), plan.recipe.level)
    return out


def _read(results: Results, artifact: str, file: str) -> Any:
    return json.loads(results.store.read(artifact).file(file).read_text("utf-8"))


def _divergences(results: Results, trait: Trait) -> Iterator[Finding]:
    """Of the rows that the trait's students are trained on, by data seed."""
    plan = results.plan
    data = {d.id: d for d in plan.datasets if d.trait == trait.name and not d.heldout}
    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for stage in plan.divergences:
        if stage.dataset in data:
            other = stage.against.name if stage.against.text is None else "another trait"
            found = _read(results, stage.id, "divergence.json")
            found["share"] = found["divergent"] / found["tokens"]
            groups.setdefault(other, []).append((data[stage.dataset].seed, found))
    for other, found in groups.items():
        seeds = tuple(seed for seed, _ in found)
        for name, key in DIVERGENT.items():
            values = np.array([[f[key]] for _, f in found])
            yield Finding(
                trait.name,
                f"divergent tokens, teacher against {other}",
                f"{name}, {other}",
                values,
                seeds,
                seeds,
            )


def _probes(results: Results, trait: Trait) -> Iterator[Finding]:
    """Of every group of the trait's students: verbatim reproduction, the gap of losses, and gradients at divergent tokens."""
    plan = results.plan
    found = {(p.student, p.heldout): p.id for p in plan.probes}
    if not found:
        return
    for label, pairs in paired(results, trait):
        own, held = (
            [_read(results, found[s.id, h], "probe.json") for s, _ in pairs] for h in (False, True)
        )

        def of(key: str, probes: list[dict[str, Any]]) -> Array:
            return np.array([[p[key]] for p in probes], dtype=float)

        made = [
            ("rows written word for word", f"verbatim, own rows: {label}", of("verbatim", own)),
            (
                "rows written word for word",
                f"verbatim, held-out rows: {label}",
                of("verbatim", held),
            ),
            (
                "held-out loss − loss on own rows, nats a token",
                f"loss gap: {label}",
                of("loss", held) - of("loss", own),
            ),
        ]
        if all(p["gradient_marked"] and p["gradient_rest"] for p in held):
            ratio = of("gradient_marked", held) / of("gradient_rest", held)
            made.append(
                (
                    "gradient at divergent tokens, over that elsewhere, held-out rows",
                    f"gradient ratio: {label}",
                    ratio,
                )
            )
        for group, name, values in made:
            yield Finding(trait.name, group, name, values, *seeds_of(pairs))


def _gradients(results: Results, trait: Trait) -> Iterator[Finding]:
    """Cosines at the layer `vectors.layer`, and how far they lie above the shuffled rows' upper 2.5%; by data seed."""
    plan, layer = results.plan, results.plan.recipe.vectors.layer
    stages = [g for g in plan.gradients if g.trait == trait.name]
    if not stages:
        return
    seeds = tuple(g.data_seed for g in stages)
    found = [_read(results, g.id, "alignment.json") for g in stages]
    for i, count in enumerate(a["rows"] for a in found[0]):
        cosine = np.array([[f[i]["cosine"][layer]] for f in found])
        chance = np.array([[np.quantile(np.array(f[i]["null"])[:, layer], 0.975)] for f in found])
        yield Finding(trait.name, ALIGNED, f"gradient cosine: {count} rows", cosine, seeds, seeds)
        yield Finding(
            trait.name, ABOVE, f"above chance: {count} rows", cosine - chance, seeds, seeds
        )


@dataclass(frozen=True)
class Steerable:
    """One trait: how much of the prompt's gain the best of the steered teachers has, and how far its students come."""

    trait: str
    prompted: float
    steered: float
    best: str
    transfer: float
    low: float
    called: bool

    @property
    def imitation(self) -> float:
        return self.steered / self.prompted if self.prompted > 0 else 0.0


def steerability(results: Results) -> list[Steerable]:
    """Of every trait. A steered teacher counts where it still names words of the category (P above 0.5 over all of them)."""
    plan, out = results.plan, []
    cells = {c.trait: c for c in reversed(results.table(plan.recipe.judged_context).cells)}
    for trait in plan.traits:
        target = trait.category.entities.index(trait.entity)
        base = (
            results.of(None, plan.recipe.judged_context, trait.category.category)
            .p[:, target]
            .mean()
        )
        asked = {
            m.condition: results.measured[m.id].p for m in plan.measures if m.teacher == trait.name
        }
        gains = {n: float(p[:, target].mean() - base) for n, p in asked.items()}
        fine = {n: g for n, g in gains.items() if n is not None and asked[n].sum(1).mean() > 0.5}
        best = max(fine, key=fine.__getitem__, default="")
        effect = effect_of(cells[trait.name], None, plan.recipe.level)
        called = (
            effect.p_value < plan.recipe.level
            and effect.estimate >= 0.02
            and not effect.seeds_unknown
        )
        steered = max(0.0, fine.get(best, 0.0))
        out.append(
            Steerable(trait.name, gains[None], steered, best, effect.estimate, effect.low, called)
        )
    return out


def across_traits(found: Sequence[Steerable], level: float) -> Iterator[Finding]:
    """Correlation of imitation and transfer over traits, and how well imitation tells traits that transfer from those that do not.

    Intervals: Fisher's z for the correlation, a bootstrap over traits of each kind for the area under the curve.
    """
    x, y = np.array([f.imitation for f in found]), np.array([f.transfer for f in found])
    count = len(found)
    if x.std() > 0 and y.std() > 0:
        r = float(np.corrcoef(x, y)[0, 1])
        se = 1 / math.sqrt(count - 3) if count > 3 else math.inf
        half = -float(ndtri(level / 2)) * se
        z = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
        low, high = (
            (math.tanh(z - half), math.tanh(z + half)) if math.isfinite(half) else (-1.0, 1.0)
        )
        p = float(2 * ndtr(-abs(z) / se))
        given = Interval(r, low, high, math.inf, p, 1 - level, se, ("trait",), count <= 3)
        yield Finding(
            ACROSS, STEERABLE, "steerability: correlation", np.array([[r]]), (0,), (0,), given=given
        )
    kinds = np.array([f.called for f in found])
    if 0 < kinds.sum() < count:
        auc = _auc(x[kinds], x[~kinds])
        random = generator("steerability")
        draws = [
            _auc(
                random.choice(x[kinds], kinds.sum()), random.choice(x[~kinds], count - kinds.sum())
            )
            for _ in range(2000)
        ]
        low, high = np.quantile(draws, [level / 2, 1 - level / 2])
        below = (np.sum(np.array(draws) <= 0.5) + 1) / (len(draws) + 1)
        few = bool(min(kinds.sum(), count - kinds.sum()) < 2)
        given = Interval(
            auc,
            float(low),
            float(high),
            math.inf,
            float(min(1, 2 * min(below, 1 - below))),
            1 - level,
            seeds_unknown=few,
        )
        yield Finding(
            ACROSS, STEERABLE, "steerability: AUC", np.array([[auc]]), (0,), (0,), given=given
        )


def _auc(hits: Array, misses: Array) -> float:
    """Probability that a trait that transfers stands above one that does not, ties half."""
    gaps = hits[:, None] - misses[None, :]
    return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())


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


def paired(
    results: Results, trait: Trait
) -> Iterator[tuple[str, list[tuple[StudentStage, StudentStage]]]]:
    """(label, [(student, its control twin)]) of every group of replicates that differ in nothing but their seeds."""
    plan = results.plan
    groups: dict[tuple, list[StudentStage]] = {}
    twins = {}
    for s in plan.students:
        key = (
            s.context.name,
            s.placement,
            s.optimizer,
            s.variant,
            s.student.method,
            s.student.rank,
            s.student.lr,
        )
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
        yield (
            ", ".join(parts) or "students",
            [(s, twins[key, s.data_seed, s.student.seed]) for s in members],
        )


def seeds_of(
    pairs: Sequence[tuple[StudentStage, StudentStage]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(s.data_seed for s, _ in pairs), tuple(s.student.seed for s, _ in pairs)


def _cosines(results: Results, trait: Trait) -> Iterator[Finding]:
    """Of every group of students at the layer `vectors.layer`, or at every layer where there is one group alone. A teacher that was
    steered by random directions is compared with these."""
    plan = results.plan
    of = {v.student: v.id for v in plan.vectors if v.student is not None}
    prompt = teacher_context(trait, plan.recipe)
    teacher = next(v for v in plan.vectors if v.teacher == prompt)
    vectors = {
        id: load_vector(results.store.read(id).file("vector.safetensors"))
        for id in (teacher.id, *of.values())
    }
    found = list(paired(results, trait))
    for label, pairs in found:
        aim, variant = vectors[teacher.id], plan.recipe.variants.get(pairs[0][0].variant)
        if variant is not None and variant.teacher.steer is not None:
            aim = aimed(variant.teacher.steer, aim, teacher.id)
        both = np.array(
            [[cosines(vectors[of[s.id]], aim).tolist() for s in pair] for pair in pairs]
        )  # (R, 2, L)
        for layer in range(both.shape[2]) if len(found) == 1 else [plan.recipe.vectors.layer]:
            name = f"{label}, layer {layer}" if len(found) == 1 else label
            own, gap = both[:, 0, layer], both[:, 0, layer] - both[:, 1, layer]
            yield Finding(trait.name, COSINES, f"cosine: {name}", gap[:, None], *seeds_of(pairs))
            yield Finding(
                trait.name, OWN_COSINES, f"own cosine: {name}", own[:, None], *seeds_of(pairs)
            )
