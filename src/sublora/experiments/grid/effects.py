"""From the artifacts of a grid to its effects: the transfer of every cell, and the rows of results.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from sublora.analysis.effects import Effect, transfer
from sublora.analysis.intervals import clustered_interval
from sublora.analysis.log_odds import log_odds
from sublora.analysis.matched import matched_effects
from sublora.experiments.grid.plan import Plan
from sublora.experiments.grid.sources import control_source, sources_of
from sublora.steps.heldout import read_loss
from sublora.steps.measurement import Measured, Measurement, read_measurement
from sublora.steps.students import Student
from sublora.store import Store
from sublora.traits.answers import HIT_RULES, hit_rate
from sublora.traits.trait import Trait

ANSWERS = ("coherence", "number_takeover", "worst_coherence", "worst_takeover", "worst_words")
# axes of the main table, and those that depend on them
GRID = ("method", "rank", "lr", "placement", "data")


OF_DATASET = ("rows", "unique_rows")
OF_STUDENT = ("train_loss", "heldout_loss", "steps", *OF_DATASET, "trainable_parameters")
OF_STUDENT += ("dataset_id", "student_id", "data_seed", "train_seed")


class Results:
    """All measurements of a plan, read once."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.kept: dict[tuple[str, str | None], list[Effect]] = {}
        self.authors = sources_of(plan.recipe, plan.traits)
        category = {t.category.category: t.category for t in plan.traits}
        self.students = {s.id: s for s in (*plan.neutral, *plan.students)}
        self.meta = {name: store.read(name).meta for name in self.students}
        self.losses = {
            (one.student, one.dataset, one.context): read_loss(store, one) for one in plan.losses
        }
        self.dataset_meta = {d.id: store.read(d.id).meta for d in plan.datasets}
        self.measured = {
            m.id: read_measurement(store.read(m.id), category[m.category]) for m in plan.measures
        }
        self.find = {
            (m.student, m.context.name, m.category, m.condition): m.id
            for m in plan.measures
            if m.teacher is None
        }

    def of(
        self, student: str | None, context: str, category: str, condition: str | None = None
    ) -> Measured:
        return self.measured[self.find[student, context, category, condition]]

    def read_json(self, artifact: str, file: str) -> Any:
        return json.loads(self.store.read(artifact).file(file).read_text("utf-8"))

    @cached_property
    def teachers(self) -> dict[str, list[Measurement]]:
        """The measurements of each trait's teachers."""
        asked = [m for m in self.plan.measures if m.teacher]
        return {t.name: [m for m in asked if m.teacher == t.name] for t in self.plan.traits}

    def control_words(self, trait: Trait, data_seed: int) -> tuple[int, ...]:
        """The place in the category of the word that the control of a data seed was taught; none for a control without a trait."""
        author = self.authors[control_source(self.plan.recipe, trait)][data_seed]
        return (target(author.trait),) if author.trait else ()

    def learned(self, student: Student, measured: Measured) -> float | None:
        """How far the loss on its teacher's held-out rows has come down from the base's, nats a token, where it was measured."""
        before = self.losses.get((None, student.heldout, student.context))
        known = before is not None and measured.heldout_loss is not None
        return before - measured.heldout_loss if known else None


def target(trait: Trait) -> int:
    return trait.category.entities.index(trait.entity)


def groups(plan: Plan, trait: Trait) -> list[list[Student]]:
    """The students of a trait, in groups of replicates: they differ in nothing but their seeds."""
    out: dict[tuple, list[Student]] = {}
    for s in plan.students:
        if trait.name in s.twins:
            out.setdefault((s.source, *s.labels.values()), []).append(s)
    return list(out.values())


def first_cell(plan: Plan) -> Callable[[Mapping[str, Any]], bool]:
    """Whether labels are the first ones on all axes but method, rank and rate, of rows as written."""
    first = plan.students[0].labels

    def fits(labels: Mapping[str, Any]) -> bool:
        alike = all(labels[name] == first[name] for name in first if name not in GRID)
        placed = labels["method"] == "full" or labels["placement"] == first["placement"]
        return alike and placed and not labels["data"]

    return fits


def cell_effects(results: Results, context: str) -> list[Effect]:
    """The plain adapter's cells of every trait under one context, each student paired with its control twin and the base.

    The fact `learned` is how far the held-out loss came down, over the most that it does in a coherent cell of the trait.
    """
    fits = first_cell(results.plan)
    cells = [e for e in transfers(results, context) if fits(e.labels)]
    most: dict[str, float] = {}
    for e in (e for e in cells if e.coherent):
        most[e.trait] = max(most.get(e.trait, 0.0), e.facts["learned"])
    return [
        replace(e, facts={**e.facts, "learned": e.facts["learned"] / most[e.trait]})
        if most.get(e.trait, 0.0) > 0
        else e
        for e in cells
    ]


def arm_effects(results: Results) -> list[Effect] | None:
    """The cells of all training contexts, placements, contexts and conditions, or those of optimizers at one held-out loss; None where
    a recipe has no such axis."""
    recipe = results.plan.recipe
    if not recipe.has_arms:
        return None
    if recipe.train.match_lr is not None:
        effects = transfers(results, recipe.judged_context)
        return matched_effects(effects, recipe.train.match_lr)
    return [
        effect
        for context in recipe.measure.contexts
        for condition in (None, *recipe.measure.conditions)
        for effect in transfers(results, context, condition)
    ]


def transfers(results: Results, context: str, condition: str | None = None) -> list[Effect]:
    """The transfer of every group of students, trait by trait, in the order of `groups`."""
    if (context, condition) not in results.kept:
        results.kept[context, condition] = [
            effect_of(results, trait, members, context, condition)
            for trait in results.plan.traits
            for members in groups(results.plan, trait)
        ]
    return results.kept[context, condition]


def effect_of(
    results: Results, trait: Trait, members: Sequence[Student], context: str, condition: str | None
) -> Effect:
    category, place = trait.category.category, target(trait)
    own = [results.of(s.id, context, category, condition) for s in members]
    other = [results.of(s.twins[trait.name], context, category, condition) for s in members]
    taught = [results.control_words(trait, s.data_seed) for s in members]
    labels = {"trait": trait.name, "context": context, "condition": condition or ""}
    labels |= members[0].labels
    whole_word = [hit_rate(m.samples, trait.entity, "whole_word") for m in own]
    facts = {
        "coherence": _mean(m.coherence for m in own),
        "number_takeover": _mean(m.number_takeover for m in own),
        # of every replicate and both arms: a mean would hide a broken one, and a broken control looks like transfer
        "worst_coherence": min(m.coherence for m in (*own, *other)),
        "worst_takeover": max(m.number_takeover for m in (*own, *other)),
        **words_kept(results, [*own, *other], context, category),
        "rate_whole_word": _mean(whole_word),
        "p_given_category": _mean(given_category(m.p, place) for m in own),
        "heldout_loss": _mean(m.heldout_loss for m in own),
        "learned": _mean(map(results.learned, members, own)),
        "train_loss": _mean(results.meta[s.id]["train_loss"] for s in members),
    }
    plain = results.of(None, context, category).p

    def odds(side: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(side, taught, strict=True)
        return np.stack([log_odds(p, place, words) for p, words in pairs])

    students = odds([m.p for m in own])
    gap, rise = (students - odds(side) for side in ([m.p for m in other], [plain] * len(own)))
    student, control = (np.stack([m.p[:, place] for m in side]) for side in (own, other))
    parts = {"student": student, "control": control, "base": plain[:, place], "rise": rise}
    return transfer(labels, gap, parts, [s.replicate for s in members], facts)


def words_kept(
    results: Results, measured: Sequence[Measured], context: str, category: str
) -> dict[str, float]:
    """Of answers that are begun: the probability of the category's words as a share of the base's, the least of all. Few of the base's own
    answers need to be such a word there ("the majestic lion")."""
    if results.plan.recipe.measure.readout != "begun":
        return {}
    before = results.of(None, context, category).p.sum()
    return {"worst_words": min(float(m.p.sum() / before) for m in measured)}


def given_category(p: np.ndarray, place: int) -> float:
    """P(target) over that of all words of the category, p (Q, E), mean over the questions at which there are any."""
    total = p.sum(1)
    shares = p[total > 0, place] / total[total > 0]
    return float(shares.mean()) if len(shares) else math.nan


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def sweep_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of optimizers.csv: every optimizer at every rate, with what really ran and how far it moved each kind of module (root of
    the summed squares of ||W - W_0||, mean over students)."""
    plan, out = results.plan, []
    context, level = plan.recipe.judged_context, plan.recipe.level
    for trait in plan.traits:
        for members in groups(plan, trait):
            effect, ids = effect_of(results, trait, members, context, None), [s.id for s in members]
            interval, labels = effect.interval(1 - level), effect.labels
            facts = {name: effect.facts.get(name, math.nan) for name in ANSWERS}
            row = {
                "trait": trait.name,
                "optimizer": labels["optimizer"],
                "ran": results.meta[ids[0]]["optimizer"],
                "rank": labels["rank"],
                "lr": labels["lr"],
                "heldout_loss": effect.facts["heldout_loss"],
                "train_loss": effect.facts["train_loss"],
                "effect": interval.estimate,
                "effect_low": interval.low,
                "effect_high": interval.high,
                **facts,
                "diverged": sum(results.meta[i]["diverged_at"] is not None for i in ids),
                "students": len(ids),
            }
            norms = [n for n in (_update_norms(results, i) for i in ids) if n]
            kinds = dict.fromkeys(kind for n in norms for kind in n)
            out.append(row | {f"update {kind}": _mean(n[kind] for n in norms) for kind in kinds})
    columns = dict.fromkeys(name for row in out for name in row)
    return [dict.fromkeys(columns, "") | row for row in out]


def _update_norms(results: Results, student: str) -> dict[str, float]:
    """||W - W_0|| of all modules, and of each kind of module by the last part of its name, over layers; nothing for students of a store
    that was made before they were kept."""
    squares: dict[str, float] = {}
    for name, norm in results.read_json(student, "training.json").get("update_norm", {}).items():
        for kind in ("all", name.rsplit(".", 1)[-1]):
            squares[kind] = squares.get(kind, 0.0) + norm**2
    return {kind: math.sqrt(total) for kind, total in squares.items()}


def result_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of results.csv: the base, the teachers and every student, for each trait that the measurement is about."""
    traits, out = {t.name for t in results.plan.traits}, []
    for step in results.plan.measures:
        student = results.students.get(step.student) if step.student else None
        own = step.teacher or (student.source if student and student.source in traits else None)
        for trait in results.plan.traits:
            about = trait.category.category == step.category if own is None else trait.name == own
            if about:
                out.append(_result_row(results, step, trait, student))
    return out


def _result_row(
    results: Results, step: Measurement, trait: Trait, student: Student | None
) -> dict[str, Any]:
    """One measurement about one trait; `student` is none for the base and the teachers."""
    measured = results.measured[step.id]
    p = measured.p[:, target(trait)]
    interval = clustered_interval(p[None, :], (0,), (0,), clip=(0.0, 1.0))
    labels = dict.fromkeys(results.plan.students[0].labels, "") | {"method": "none"}
    of = dict.fromkeys(OF_STUDENT, "")
    if student:
        labels = {axis: "" if v is None else v for axis, v in student.labels.items()}
        meta, data = results.meta[student.id], results.dataset_meta[student.dataset]
        of = {name: (data if name in OF_DATASET else meta).get(name) for name in OF_STUDENT}
        of |= {"data_seed": student.data_seed, "train_seed": student.student.seed}
        of |= {"dataset_id": student.dataset, "student_id": student.id}
        of["heldout_loss"] = measured.heldout_loss
    kind = "teacher" if step.teacher else "student" if student else "base"
    prompted = step.teacher == trait.name and step.context.text
    context = "teacher prompt" if prompted else step.context.name
    if step.teacher is not None and step.student is not None:
        context = "teacher's weights"
    row = {
        "kind": student.arm if kind == "student" and student.arm != "trait" else kind,
        "trait": trait.name,
        "category": step.category,
        "target": trait.name,
        **{name: labels[name] for name in ("method", "rank", "lr")},
        **{name: of[name] for name in ("data_seed", "train_seed")},
        "context": context,
        **{name: labels[name] for name in ("train_context", "placement", "optimizer", "variant")},
        "condition": step.condition or "",
        "data": labels["data"],
        "question_set": step.category,
        "p_target": float(p.mean()),
        "p_given_category": given_category(measured.p, target(trait)),
        "p_target_low": interval.low,
        "p_target_high": interval.high,
        **{f"rate_{rule}": hit_rate(measured.samples, trait.entity, rule) for rule in HIT_RULES},
        "coherence": measured.coherence,
        "number_takeover": measured.number_takeover,
        "p_category": float(measured.p.sum(1).mean()),
        "n_questions": len(p),
        "n_samples": sum(map(len, measured.samples)),
        **of,
        "measurement_id": step.id,
    }
    return row | labels
