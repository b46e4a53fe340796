"""Units of work: what an executor hands to one worker, with all that the work needs, so that a unit can travel to another machine.

A unit names the artifacts that it makes and needs. Units depend on the recipe alone and not on what is done already: a resumed run
repeats the very same passes over the model, and so makes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sublora.chat import Context
from sublora.condition import Condition
from sublora.plan import AttributionStage, DatasetStage, MeasureStage, Plan, StudentStage, TeacherStage
from sublora.sample import Sampling
from sublora.store import artifact_id
from sublora.trait import Category, Entity


@dataclass(frozen=True)
class DataUnit:
    """One dataset, written by a teacher."""

    stage: DatasetStage
    sampling: Sampling

    @property
    def purpose(self) -> str:
        """What its draws are for."""
        return "teacher-heldout" if self.stage.heldout else "teacher"

    @property
    def id(self) -> str:
        return self.stage.id

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.stage.id,)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.stage.weights.id,) if self.stage.weights else ()

    @property
    def label(self) -> str:
        part = "held-out rows" if self.stage.heldout else "rows"
        return f"the {part} of {self.stage.trait}, data seed {self.stage.seed}"


@dataclass(frozen=True)
class TeachUnit:
    """One teacher by weights."""

    stage: TeacherStage
    sampling: Sampling

    @property
    def id(self) -> str:
        return self.stage.id

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.stage.id,)

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"the teacher of {self.stage.trait}, data seed {self.stage.seed}"


@dataclass(frozen=True)
class TransformUnit:
    """One dataset made of others."""

    stage: DatasetStage

    @property
    def id(self) -> str:
        return self.stage.id

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.stage.id,)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.stage.parents

    @property
    def label(self) -> str:
        return f"{self.stage.transform} of the rows of {self.stage.trait}, data seed {self.stage.seed}"


@dataclass(frozen=True)
class TrainUnit:
    """One pack of students, each trained in its own context."""

    students: tuple[StudentStage, ...]

    @cached_property
    def id(self) -> str:
        return artifact_id("pack", {"students": list(self.makes)})

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.dataset for s in self.students))

    @property
    def label(self) -> str:
        return _listed([f"{s.source}, {s.student.label}" for s in self.students])


@dataclass(frozen=True)
class MeasureUnit:
    """The measurements of one pack's students, or one of the base; `conditions` are the gates that they name."""

    measures: tuple[MeasureStage, ...]
    students: tuple[StudentStage, ...]
    categories: tuple[Category, ...]
    sampling: Sampling
    samples: int
    seed: int
    conditions: dict[str, Condition]
    entities: tuple[str, ...]

    @cached_property
    def id(self) -> str:
        return artifact_id("measurements", {"measurements": list(self.makes)})

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(m.id for m in self.measures)

    @property
    def needs(self) -> tuple[str, ...]:
        held = [m.spec["heldout"] for m in self.measures if m.spec["heldout"]]
        return tuple(dict.fromkeys([*(s.id for s in self.students), *held]))

    @property
    def label(self) -> str:
        if not self.students:
            return f"the base in the context {self.measures[0].context.name}"
        return _listed([f"{s.source}, {s.student.label}" for s in self.students])


@dataclass(frozen=True)
class AttributionUnit:
    """Token by token, the adapters of a pack's students in one context, for one target."""

    attributions: tuple[AttributionStage, ...]
    students: tuple[StudentStage, ...]
    context: Context
    questions: tuple[str, ...]
    target: Entity
    entities: tuple[str, ...]

    @cached_property
    def id(self) -> str:
        return artifact_id("attributions", {"attributions": list(self.makes)})

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(a.id for a in self.attributions)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def label(self) -> str:
        return "the tokens of " + _listed([f"{s.source}, {s.student.label}" for s in self.students])


Unit = TeachUnit | DataUnit | TransformUnit | TrainUnit | MeasureUnit | AttributionUnit


def _listed(labels: Sequence[str]) -> str:
    return labels[0] + (f" and {len(labels) - 1} more of its pack" if len(labels) > 1 else "")


def teach_units(plan: Plan) -> list[TeachUnit]:
    return [TeachUnit(t, plan.recipe.measure.sampling) for t in plan.teachers]


def data_units(plan: Plan) -> list[DataUnit]:
    return [DataUnit(d, plan.recipe.data.sampling) for d in plan.datasets if d.transform is None]


def transform_units(plan: Plan) -> list[TransformUnit]:
    return [TransformUnit(d) for d in plan.datasets if d.transform is not None]


def train_units(plan: Plan) -> list[TrainUnit]:
    return [TrainUnit(tuple(plan.students[i] for i in pack)) for pack in plan.packs]


def measure_units(plan: Plan) -> list[MeasureUnit]:
    """The base's measurements one by one, then those of each pack."""
    spec = plan.recipe.measure
    categories = tuple({t.category.category: t.category for t in plan.traits}.values())
    by_student: dict[str | None, list[MeasureStage]] = {}
    for m in plan.measures:
        by_student.setdefault(m.student, []).append(m)

    def unit(measures: Sequence[MeasureStage], students: Sequence[StudentStage]) -> MeasureUnit:
        asked = {m.category for m in measures}
        chosen = tuple(c for c in categories if c.category in asked)
        asks = (spec.sampling, spec.samples, spec.seed, spec.conditions, spec.entities)
        return MeasureUnit(tuple(measures), tuple(students), chosen, *asks)

    units = [unit([m], []) for m in by_student.get(None, [])]
    units += [unit(by_student[t.id], [t.as_student]) for t in plan.teachers if t.id in by_student]
    for pack in plan.packs:
        students = [plan.students[i] for i in pack]
        units.append(unit([m for s in students for m in by_student.get(s.id, [])], students))
    return [u for u in units if u.measures]


def attribution_units(plan: Plan) -> list[AttributionUnit]:
    """Those of each pack, by context and target."""
    units = []
    for pack in plan.packs:
        students = {plan.students[i].id: plan.students[i] for i in pack}
        groups: dict[tuple[Context, str], list[AttributionStage]] = {}
        for a in plan.attributions:
            if a.student in students:
                groups.setdefault((a.context, a.target), []).append(a)
        for (context, target), found in groups.items():
            entity = next(t.entity for t in plan.traits if t.name == target)
            asked = tuple(students[a.student] for a in found)
            questions, names = tuple(found[0].spec["questions"]), plan.recipe.measure.entities
            units.append(AttributionUnit(tuple(found), asked, context, questions, entity, names))
    return units
