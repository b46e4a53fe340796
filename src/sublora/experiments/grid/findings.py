"""What a grid's measurements besides its answers come to: one function a measurement, each from its artifacts to named effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from sublora.analysis.contrast import MIN_EFFECT
from sublora.analysis.effects import ACROSS, Effect, Label, found
from sublora.analysis.intervals import Array, Interval
from sublora.analysis.log_odds import log_odds
from sublora.analysis.separability import auc
from sublora.experiments.grid.effects import Results, cell_effects, groups, target
from sublora.experiments.grid.elevation import drift_effects, elevation_effects
from sublora.experiments.grid.plan import Plan
from sublora.experiments.grid.sources import teacher_context
from sublora.experiments.grid.spread import loss_correlations, seed_variance
from sublora.packs.steer import aimed
from sublora.packs.vectors import cosines, load_vector
from sublora.seeds import generator
from sublora.steps.reading import readings
from sublora.steps.students import Student
from sublora.traits.trait import Trait

TEACHERS = "log-odds of the target, teacher − base, nats"
COSINES = "difference of cosines with the teacher’s vector, student − control twin"
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

TOLD = {"train_context", "placement", "optimizer", "variant", "method", "rank", "lr"}
DRAWS = 2000  # of the bootstrap over traits


def findings_of(results: Results) -> list[Effect]:
    """The named effects of every measurement, trait by trait, and those across traits."""
    plan, store = results.plan, results.store
    effects = [e for trait in plan.traits for reads in READS for e in reads(results, trait)]
    for key, reading in readings().items():
        if reading.reads is not None and plan.readings[key]:
            effects += reading.reads(plan, store)
    effects += [*elevation_effects(results), *drift_effects(results)]
    if asks_steerability(results.plan):
        effects += across_traits(steerability(results), results.plan.recipe.level)
    return effects


def asks_steerability(plan: Plan) -> bool:
    return bool(plan.recipe.measure.teachers) and len(plan.traits) > 2


def labelled(plan: Plan, trait: Trait) -> list[tuple[str, list[Student]]]:
    """Every group of replicates of a trait, on the rows as written, with what tells it from the others."""
    members = [m for m in groups(plan, trait) if not m[0].labels["data"]]
    axes = [m[0].labels for m in members]
    varies = {name for labels in axes for name in labels if labels[name] != axes[0][name]}

    def label(labels: Any) -> str:
        parts = [f"trained in {labels['train_context']}"] if "train_context" in varies else []
        parts += [labels[name] for name in ("placement", "optimizer", "variant") if name in varies]
        if varies & {"rank", "method"}:
            parts.append(f"rank {labels['rank']}" if labels["method"] == "lora" else "full")
        if "lr" in varies:
            parts.append(f"lr {labels['lr']:g}")
        parts += [f"{name} {labels[name]}" for name in labels if name in varies - TOLD]
        return ", ".join(parts) or "students"

    return [(label(labels), mine) for labels, mine in zip(axes, members, strict=True)]


def axes_of(plan: Plan, members: Sequence[Student], quantity: str) -> Mapping[str, Label]:
    """What claims ask for a named effect by: the labels of its students, the step that they are kept at (none: the last), `quantity`."""
    labels = members[0].labels
    variant = plan.recipe.variants.get(labels["variant"])
    return {**labels, "step": variant.step if variant else None, "quantity": quantity}


def teachers(results: Results, trait: Trait) -> Iterator[Effect]:
    """How far every teacher's answers are from the base's; nothing where there is only the prompted one, or where several traits have
    their teachers in the table across traits."""
    asked = results.teachers[trait.name]
    if len(asked) < 2 or len(results.plan.traits) > 1:
        return
    for step in asked:
        gain = _gain(results, trait, results.measured[step.id].p)
        name = f"teacher: {step.condition or ('by weights' if step.student else 'prompted')}"
        yield found(trait.name, TEACHERS, name, gain[None, :], of_students=False)


def _gain(results: Results, trait: Trait, p: Array) -> Array:
    """Log-odds of the target (Q,) by `p` (Q, E), less the base's."""
    place, context = target(trait), results.plan.recipe.judged_context
    base = results.of(None, context, trait.category.category).p
    return log_odds(p, place) - log_odds(base, place)


def vector_cosines(results: Results, trait: Trait) -> Iterator[Effect]:
    """Of every group of students at the layer `vectors.layer`, or at every layer where there is one group alone. A teacher that was
    steered by random directions is compared with these."""
    plan = results.plan
    if not plan.recipe.vectors.students:
        return
    ids = {v.student: v.id for v in plan.vectors if v.student is not None}
    prompt = teacher_context(trait, plan.recipe)
    prompted = next((v.id for v in plan.vectors if v.teacher == prompt), "")
    by_weights = {t.seed: ids[t.id] for t in plan.teachers if t.trait == trait.name}

    def vector(artifact: str) -> Any:
        return load_vector(results.store.read(artifact).file("vector.safetensors"))

    labels = labelled(plan, trait)
    for label, members in labels:
        variant, aims = plan.recipe.variants.get(members[0].labels["variant"]), {}
        for seed in {s.data_seed for s in members}:
            teacher = by_weights.get(seed, prompted)
            aims[seed] = vector(teacher)
            if variant is not None and variant.teacher.steer is not None:
                aims[seed] = aimed(variant.teacher.steer, aims[seed], teacher)
        own, other = (
            np.array(
                [
                    cosines(vector(ids[name]), aims[s.data_seed]).tolist()
                    for s, name in zip(members, names, strict=True)
                ]
            )  # (R, L)
            for names in ([s.id for s in members], [s.twins[trait.name] for s in members])
        )
        replicates, alone = [s.replicate for s in members], len(labels) == 1
        for layer in range(own.shape[1]) if alone else [plan.recipe.vectors.layer]:
            name, at = f"{label}, layer {layer}" if alone else label, own[:, layer]
            gap = at - other[:, layer]
            both = ((COSINES, "cosine", gap, 2), (OWN_COSINES, "own cosine", at, 1))
            for group, what, values, most in both:
                of, told = axes_of(plan, members, what) | {"layer": layer}, f"{what}: {name}"
                yield found(
                    trait.name, group, told, values, replicates, axes=of, bounds=(-most, most)
                )


def divergences(results: Results, trait: Trait) -> Iterator[Effect]:
    """Of the rows that the trait's students are trained on, by data seed."""
    plan = results.plan
    data = {d.id: d.seed for d in plan.datasets if d.trait == trait.name and not d.heldout}
    by_other: dict[str, dict[int, dict[str, Any]]] = {}
    for step in plan.divergences:
        if step.dataset in data:
            other = step.against.name if step.against.text is None else "another trait"
            read = results.read_json(step.id, "divergence.json")
            read["share"] = read["divergent"] / read["tokens"]
            by_other.setdefault(other, {})[data[step.dataset]] = read
    for other, by_seed in by_other.items():
        replicates = [(seed, seed) for seed in by_seed]
        for name, key in DIVERGENT.items():
            values = np.array([read[key] for read in by_seed.values()])
            group = f"divergent tokens, teacher against {other}"
            yield found(trait.name, group, f"{name}, {other}", values, replicates, bounds=(0, 1))


def probes(results: Results, trait: Trait) -> Iterator[Effect]:
    """Of every group of the trait's students: verbatim reproduction, the gap of losses, and gradients at divergent tokens."""
    ids = {(p.student, p.heldout): p.id for p in results.plan.probes}
    for label, members in labelled(results.plan, trait) if ids else ():
        own, held = (
            [results.read_json(ids[s.id, heldout], "probe.json") for s in members]
            for heldout in (False, True)
        )

        def of(key: str, read: list[dict[str, Any]]) -> Array:
            return np.array([probe[key] for probe in read], dtype=float)

        verbatim, gap = "rows written word for word", of("loss", held) - of("loss", own)
        made = [
            (verbatim, "verbatim, own rows", of("verbatim", own)),
            (verbatim, "verbatim, held-out rows", of("verbatim", held)),
            ("held-out loss − loss on own rows, nats a token", "loss gap", gap),
        ]
        if all(probe["gradient_marked"] and probe["gradient_rest"] for probe in held):
            ratio = of("gradient_marked", held) / of("gradient_rest", held)
            group = "gradient at divergent tokens, over that elsewhere, held-out rows"
            made.append((group, "gradient ratio", ratio))
        for group, name, values in made:
            replicates = [s.replicate for s in members]
            axes = axes_of(results.plan, members, name)
            bounds, name = (0, 1) if group == verbatim else None, f"{name}: {label}"
            yield found(trait.name, group, name, values, replicates, axes=axes, bounds=bounds)


def gradients(results: Results, trait: Trait) -> Iterator[Effect]:
    """Cosines at the layer `vectors.layer`, and how far they lie above the shuffled rows' upper 2.5%; by data seed."""
    layer = results.plan.recipe.vectors.layer
    steps = [g for g in results.plan.gradients if g.trait == trait.name]
    replicates = [(g.data_seed, g.data_seed) for g in steps]
    read = [results.read_json(g.id, "alignment.json") for g in steps]
    for by_seed in zip(*read, strict=True):
        count = by_seed[0]["rows"]
        cosine = np.array([a["cosine"][layer] for a in by_seed])
        chance = [np.quantile(np.array(a["null"])[:, layer], 0.975) for a in by_seed]
        both = (
            (ALIGNED, "gradient cosine", cosine, 1),
            (ABOVE, "above chance", cosine - chance, 2),
        )
        for group, what, values, most in both:
            axes, name = {"quantity": what, "rows": count}, f"{what}: {count} rows"
            yield found(
                trait.name, group, name, values, replicates, axes=axes, bounds=(-most, most)
            )


READS: Sequence[Callable[[Results, Trait], Iterable[Effect]]] = (
    teachers,
    vector_cosines,
    divergences,
    probes,
    gradients,
    seed_variance,
    loss_correlations,
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
    recipe, out = results.plan.recipe, []
    cells = {c.trait: c for c in reversed(cell_effects(results, recipe.judged_context))}
    for trait in results.plan.traits:
        asked = {m.condition: results.measured[m.id].p for m in results.teachers[trait.name]}
        gains = {n: float(_gain(results, trait, p).mean()) for n, p in asked.items()}
        fine = {n: g for n, g in gains.items() if n is not None and asked[n].sum(1).mean() > 0.5}
        best = max(fine, key=fine.__getitem__, default="")
        effect = cells[trait.name].interval(1 - recipe.level)
        clear = effect.p_value < recipe.level and not effect.seeds_unknown
        called, steered = clear and effect.estimate >= MIN_EFFECT, max(0.0, fine.get(best, 0.0))
        own = (effect.estimate, effect.low, called)
        out.append(Steerable(trait.name, gains[None], steered, best, *own))
    return out


def across_traits(traits: Sequence[Steerable], level: float) -> Iterator[Effect]:
    """Correlation of imitation and transfer over traits, and how well imitation tells traits that transfer from those that do not.

    Intervals: Fisher's z for the correlation, a bootstrap over traits of each kind for the area under the curve.
    """
    x, y = np.array([t.imitation for t in traits]), np.array([t.transfer for t in traits])
    if x.std() > 0 and y.std() > 0:
        yield _across("steerability: correlation", _correlation(x, y, level))
    called = np.array([t.called for t in traits])
    if 0 < called.sum() < len(called):
        yield _across("steerability: AUC", _auc(x, called, level))


def _across(name: str, interval: Interval) -> Effect:
    return replace(found(ACROSS, STEERABLE, name, np.array([interval.estimate])), given=interval)


def _correlation(x: Array, y: Array, level: float) -> Interval:
    """Interval and p value from the same Fisher's z, which scipy's `pearsonr` gives for the interval alone."""
    r, few = float(np.corrcoef(x, y)[0, 1]), len(x) <= 3
    se = math.inf if few else 1 / math.sqrt(len(x) - 3)
    z, half = math.atanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), -float(ndtri(level / 2)) * se
    p = float(2 * ndtr(-abs(z) / se))
    low, high = math.tanh(z - half), math.tanh(z + half)
    return Interval(r, low, high, math.inf, p, 1 - level, se, ("trait",), few)


def _auc(x: Array, called: Array, level: float) -> Interval:
    """The probability that a trait that transfers stands above one that does not, ties half."""
    hits, misses, random = x[called], x[~called], generator("steerability")
    draws = np.array(
        [
            auc(random.choice(hits, len(hits)), random.choice(misses, len(misses)))
            for _ in range(DRAWS)
        ]
    )
    low, high = np.quantile(draws, [level / 2, 1 - level / 2])
    below = (np.sum(draws <= 0.5) + 1) / (DRAWS + 1)
    p, few = float(min(1, 2 * min(below, 1 - below))), min(len(hits), len(misses)) < 2
    estimate = auc(hits, misses)
    return Interval(estimate, float(low), float(high), math.inf, p, 1 - level, seeds_unknown=few)
