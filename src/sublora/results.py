"""From artifacts to tables: results.csv (a row a measurement), cells.csv (a row a cell), answers.json, verdicts.json."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sublora.answers import hit_rate
from sublora.cells import Cell, Table, effect_of
from sublora.matched import matched_cells
from sublora.plan import MeasureStage, Plan, StudentStage, control_source, source_of, twin_of
from sublora.stats import clustered_interval
from sublora.steps.measurement import Measured, read_measurement
from sublora.store import Store
from sublora.trait import Trait

RESULT_COLUMNS = (
    "kind",
    "trait",
    "category",
    "target",
    "method",
    "rank",
    "lr",
    "data_seed",
    "train_seed",
    "context",
    "train_context",
    "placement",
    "optimizer",
    "variant",
    "condition",
    "data",
    "question_set",
    "p_target",
    "p_target_low",
    "p_target_high",
    "rate_first_word",
    "rate_whole_word",
    "rate_substring",
    "coherence",
    "number_takeover",
    "p_category",
    "n_questions",
    "n_samples",
    "train_loss",
    "heldout_loss",
    "steps",
    "rows",
    "unique_rows",
    "trainable_parameters",
    "dataset_id",
    "student_id",
    "measurement_id",
)


def select_half(questions: int) -> np.ndarray:
    """Marks every other question: best learning rates are chosen on these and reported on the rest."""
    return np.arange(questions) % 2 == 0


class Results:
    """All measurements of a plan, read once."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.category = {t.category.category: t.category for t in plan.traits}
        self.students = {s.id: s for s in plan.students}
        self.datasets = {d.id: d for d in plan.datasets}
        self.meta = {s.id: store.read(s.id).meta for s in plan.students}
        self.dataset_meta = {d.id: store.read(d.id).meta for d in plan.datasets}
        self.measured = {
            m.id: read_measurement(store.read(m.id), self.category[m.category])
            for m in plan.measures
        }
        self.find: dict[tuple[str | None, str, str, str | None], MeasureStage] = {
            (m.student, m.context.name, m.category, m.condition): m
            for m in plan.measures
            if m.teacher is None
        }

    def of(
        self, student: str | None, context: str, category: str, condition: str | None = None
    ) -> Measured:
        return self.measured[self.find[student, context, category, condition].id]

    def rows(self) -> list[dict[str, Any]]:
        """results.csv: the base, the teachers and every student, for each trait that the measurement is about."""
        out = []
        traits = {t.name for t in self.plan.traits}
        for stage in self.plan.measures:
            student = self.students.get(stage.student) if stage.student else None
            for trait in self.plan.traits:
                about = trait.category.category == stage.category
                if student is not None and student.source in traits:
                    about = trait.name == student.source
                if stage.teacher is not None:
                    about = trait.name == stage.teacher
                if about:
                    out.append(self._row(stage, student, trait))
        return out

    def _row(
        self, stage: MeasureStage, student: StudentStage | None, trait: Trait
    ) -> dict[str, Any]:
        m = self.measured[stage.id]
        target = trait.category.entities.index(trait.entity)
        p = m.p[:, target]
        interval = clustered_interval(p[None, :], (0,), (0,))
        row: dict[str, Any] = dict.fromkeys(RESULT_COLUMNS, "")
        row |= {
            "kind": "teacher"
            if stage.teacher
            else "base"
            if student is None
            else "control"
            if student.arm == "control"
            else "student",
            "trait": trait.name,
            "category": stage.category,
            "target": trait.name,
            "method": "none",
            "context": _context_name(stage, trait),
            "condition": stage.condition or "",
            "question_set": stage.category,
            "p_target": float(p.mean()),
            "p_target_low": max(0.0, interval.low),
            "p_target_high": min(1.0, interval.high),
            "coherence": m.coherence,
            "number_takeover": m.number_takeover,
            "p_category": float(m.p.sum(1).mean()),
            "n_questions": len(p),
            "n_samples": sum(map(len, m.samples)),
            "measurement_id": stage.id,
        }
        row |= {
            f"rate_{rule}": hit_rate(m.samples, trait.entity, rule)
            for rule in ("first_word", "whole_word", "substring")
        }
        if student is not None:
            meta, data = self.meta[student.id], self.dataset_meta[student.dataset]
            row |= {
                "method": student.student.method,
                "rank": student.student.rank or "",
                "lr": student.student.lr,
                "data_seed": student.data_seed,
                "train_seed": student.student.seed,
                "train_context": student.context.name,
                "placement": student.placement,
                "optimizer": student.optimizer,
                "variant": student.variant,
                "data": student.data,
                "train_loss": meta["train_loss"],
                "heldout_loss": m.heldout_loss,
                "steps": meta["steps"],
                "rows": data["rows"],
                "unique_rows": data["unique_rows"],
                "trainable_parameters": meta["trainable_parameters"],
                "dataset_id": student.dataset,
                "student_id": student.id,
            }
        return row

    def table(self, context: str) -> Table:
        """The plain adapter's cells of every trait under one context, each student paired with its control twin and the base;
        of the first training context, placement, optimizer and variant, where a recipe has several."""
        first = self.plan.students[0]
        cells = self._cells(context, None)
        kept = [
            c
            for c in cells
            if c.train_context == first.context.name
            and c.optimizer == first.optimizer
            and not c.data
            and c.variant == first.variant
            and (c.method == "full" or c.placement == first.placement)
        ]
        return self._table(kept, context)

    def arms(self) -> Table | None:
        """The cells of all training contexts, placements, contexts and conditions, or those of optimizers at one held-out loss; None
        where a recipe has no such axis."""
        recipe = self.plan.recipe
        if not recipe.has_arms:
            return None
        if recipe.train.match_lr is not None:
            sweep = self._cells(recipe.judged_context, None)
            return self._table(matched_cells(sweep, recipe.train.match_lr), recipe.judged_context)
        cells = [
            cell
            for context in recipe.measure.contexts
            for condition in (None, *recipe.measure.conditions)
            for cell in self._cells(context, condition)
        ]
        return self._table(cells, recipe.judged_context)

    def sweep(self) -> list[dict[str, Any]]:
        """The rows of optimizers.csv: every optimizer at every rate, with what really ran and how far it moved each kind of module
        (root of the summed squares of ||W - W_0||, mean over students)."""
        context, alpha = self.plan.recipe.judged_context, self.plan.recipe.level
        out = []
        for cell in self._cells(context, None):
            key = (cell.trait, cell.optimizer, cell.rank, cell.lr)
            mine = [
                s
                for s in self.plan.students
                if (s.source, s.optimizer, s.student.rank, s.student.lr) == key
            ]
            effect, norms = effect_of(cell, None, alpha), [self._update_norms(s) for s in mine]
            row = {
                "trait": cell.trait,
                "optimizer": cell.optimizer,
                "ran": self.meta[mine[0].id]["optimizer"],
                "rank": cell.rank,
                "lr": cell.lr,
                "heldout_loss": cell.heldout_loss,
                "train_loss": cell.train_loss,
                "effect": effect.estimate,
                "effect_low": effect.low,
                "effect_high": effect.high,
                "coherence": cell.coherence,
                "number_takeover": cell.number_takeover,
                "diverged": sum(self.meta[s.id]["diverged_at"] is not None for s in mine),
                "students": len(mine),
            }
            found = [n for n in norms if n]
            kinds = dict.fromkeys(kind for n in found for kind in n)
            out.append(
                row | {f"update {kind}": float(np.mean([n[kind] for n in found])) for kind in kinds}
            )
        columns = dict.fromkeys(name for row in out for name in row)
        return [dict.fromkeys(columns, "") | row for row in out]

    def _update_norms(self, student: StudentStage) -> dict[str, float]:
        """||W - W_0|| of all modules, and of each kind of module by the last part of its name, over layers; nothing for students of an
        older store, which do not say it."""
        kept = json.loads(self.store.read(student.id).file("training.json").read_text("utf-8")).get(
            "update_norm", {}
        )
        if not kept:
            return {}
        kinds: dict[str, float] = {"all": 0.0}
        for name, norm in kept.items():
            for kind in ("all", name.rsplit(".", 1)[-1]):
                kinds[kind] = kinds.get(kind, 0.0) + norm**2
        return {kind: math.sqrt(total) for kind, total in kinds.items()}

    def _table(self, cells: Sequence[Cell], context: str) -> Table:
        questions = len(self.plan.traits[0].category.questions)
        recipe = self.plan.recipe
        return Table(
            tuple(cells),
            recipe.fixed_lr,
            select_half(questions),
            alpha=recipe.level,
            context=context,
        )

    def _cells(self, context: str, condition: str | None) -> list[Cell]:
        recipe = self.plan.recipe
        groups: dict[tuple, list[StudentStage]] = {}
        twins = {}
        for s in self.plan.students:
            key = (
                s.context.name,
                s.placement,
                s.optimizer,
                s.variant,
                s.student.method,
                s.student.rank,
                s.student.lr,
            )
            groups.setdefault((s.source, s.data, *key), []).append(s)
            twins[(s.source, s.data, *key, s.data_seed, s.student.seed)] = s
        cells = []
        for trait in self.plan.traits:
            target, category = trait.category.entities.index(trait.entity), trait.category.category
            base = self.of(None, context, category).p[:, target]
            against = control_source(recipe, trait)
            for (source, data, *key), members in groups.items():
                if source == against or source != source_of(recipe, trait, data):
                    continue
                train_context, placement, optimizer, variant, method, rank, lr = key
                own = [self.of(s.id, context, category, condition) for s in members]
                twin = twin_of(recipe, data)
                control = [twins[against, twin, *key, s.data_seed, s.student.seed] for s in members]
                other = [self.of(s.id, context, category, condition) for s in control]
                losses = [m.heldout_loss for m in own if m.heldout_loss is not None]
                train = [
                    self.meta[s.id]["train_loss"]
                    for s in members
                    if self.meta[s.id]["train_loss"] is not None
                ]
                cells.append(
                    Cell(
                        trait=trait.name,
                        context=context,
                        method=method,
                        rank=rank,
                        lr=lr,
                        p=np.stack([m.p[:, target] for m in own]),
                        control=np.stack([m.p[:, target] for m in other]),
                        base=base,
                        data_seeds=tuple(s.data_seed for s in members),
                        train_seeds=tuple(s.student.seed for s in members),
                        coherence=float(np.mean([m.coherence for m in own])),
                        number_takeover=float(np.mean([m.number_takeover for m in own])),
                        rate_whole_word=float(
                            np.mean([hit_rate(m.samples, trait.entity, "whole_word") for m in own])
                        ),
                        heldout_loss=float(np.mean(losses)) if losses else math.nan,
                        train_loss=float(np.mean(train)) if train else math.nan,
                        train_context=train_context,
                        placement=placement,
                        optimizer=optimizer,
                        variant=variant,
                        condition=condition or "",
                        data=data,
                    )
                )
        return cells

    def answers(self, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For each trait: mean probability of every entity in the base, the teacher, and the cell with the largest effect."""
        context, first = self.plan.recipe.judged_context, self.plan.students[0]
        out = {}
        for trait in self.plan.traits:
            category = trait.category.category
            mine = [c for c in cells if c["trait"] == trait.name and c["context"] == context]
            best = max(mine, key=lambda c: c["effect"])

            def mean(
                name: str, best: Mapping[str, Any] = best, category: str = category
            ) -> list[float]:
                ids = [
                    s.id
                    for s in self.plan.students
                    if s.source == name
                    and not s.data
                    and s.student.method == best["method"]
                    and (s.student.rank or "") == best["rank"]
                    and s.student.lr == best["lr"]
                    and s.context == first.context
                    and (s.optimizer, s.variant) == (first.optimizer, first.variant)
                    and (s.student.method == "full" or s.placement == first.placement)
                ]
                return np.mean(
                    [self.of(i, context, category).p.mean(0) for i in ids], axis=0
                ).tolist()

            teacher = next(
                m for m in self.plan.measures if m.teacher == trait.name and m.condition is None
            )
            what = f"rank {best['rank']}" if best["method"] == "lora" else "full fine-tune"
            out[trait.name] = {
                "categories": [e.name for e in trait.category.entities],
                "base": self.of(None, context, category).p.mean(0).tolist(),
                "control": mean(control_source(self.plan.recipe, trait)),
                "teacher": self.measured[teacher.id].p.mean(0).tolist(),
                "student": mean(trait.name),
                "student_label": f"{what}, lr {best['lr']:g}",
            }
        return out

    def attributions(self) -> dict[str, list[dict[str, Any]]]:
        """For each trait and question: every token's values, in nats, of the students of the first cell less their control twins,
        averaged over replicates."""
        if not self.plan.attributions:
            return {}
        found = {
            (a.student, a.target): json.loads(
                self.store.read(a.id).file("attribution.json").read_text("utf-8")
            )
            for a in self.plan.attributions
        }
        first, recipe = self.plan.students[0], self.plan.recipe
        twins = {(s.source, s.data_seed, s.student): s for s in self.plan.students if not s.data}
        out = {}
        for trait in self.plan.traits:
            mine = [
                s
                for s in self.plan.students
                if s.source == trait.name and s.context == first.context and not s.data
            ]
            alike = {"seed": 0}
            mine = [
                s
                for s in mine
                if s.student.model_copy(update=alike) == mine[0].student.model_copy(update=alike)
            ]  # replicates of the trait's first cell
            against = control_source(recipe, trait)
            pairs = [
                (
                    found[s.id, trait.name],
                    found[twins[against, s.data_seed, s.student].id, trait.name],
                )
                for s in mine
            ]
            out[trait.name] = [
                _mean_attribution([(own[q], other[q]) for own, other in pairs])
                for q in range(len(pairs[0][0]))
            ]
        return out


def _context_name(stage: MeasureStage, trait: Trait) -> str:
    if stage.teacher is not None and stage.student is not None:
        return "teacher's weights"
    return (
        "teacher prompt"
        if stage.teacher == trait.name and stage.context.text
        else stage.context.name
    )


def _mean_attribution(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """One prompt: means over replicates of student minus control."""

    def mean(name: str) -> list[float]:
        return np.mean(
            [np.array(own[name]) - np.array(other[name]) for own, other in pairs], axis=0
        ).tolist()

    first = pairs[0][0]
    return {
        **{name: first[name] for name in ("question", "pieces", "tokens", "classes")},
        "left_out": mean("left_out"),
        "alone": mean("alone"),
        "effect": float(
            np.mean(
                [
                    own["plain"] - own["base"] - other["plain"] + other["base"]
                    for own, other in pairs
                ]
            )
        ),
        "replicates": len(pairs),
    }


def cell_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """CSV text with Unix line ends; eight significant digits, empty where a value does not apply."""
    names = list(columns or rows[0])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([cell_text(row[n]) for n in names] for row in rows)
    return out.getvalue()
