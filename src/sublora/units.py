"""Units of work: what an executor hands to one worker, with all that the work needs, so that a unit can travel to another machine.

A unit names the artifacts that it makes and needs. Units depend on the recipe alone and not on what is done already: a resumed run
repeats the very same passes over the model, and so makes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sublora.chat import Context
from sublora.condition import Condition
from sublora.plan import (
    PACK_STUDENTS,
    AttributionStage,
    DatasetStage,
    DivergenceStage,
    GradientStage,
    MeasureStage,
    Plan,
    ProbeStage,
    Stage,
    StudentStage,
    TeacherStage,
    VectorStage,
)
from sublora.sample import Sampling
from sublora.store import artifact_id
from sublora.trait import Category, Entity


class _OfOneStage:
    """A unit that makes the one artifact of its stage."""

    stage: Stage

    @property
    def id(self) -> str:
        return self.stage.id

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.stage.id,)


@dataclass(frozen=True)
class DataUnit(_OfOneStage):
    """One dataset, written by a teacher."""

    stage: DatasetStage
    sampling: Sampling

    @property
    def needs(self) -> tuple[str, ...]:
        taught = (self.stage.weights.id,) if self.stage.weights else ()
        return taught if self.stage.steer is None else (*taught, self.stage.steer.vector)

    @property
    def label(self) -> str:
        part = "held-out rows" if self.stage.heldout else "rows"
        return f"the {part} of {self.stage.trait}, data seed {self.stage.seed}"


@dataclass(frozen=True)
class TeachUnit(_OfOneStage):
    """One teacher by weights."""

    stage: TeacherStage
    sampling: Sampling

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"the teacher of {self.stage.trait}, data seed {self.stage.seed}"


@dataclass(frozen=True)
class TransformUnit(_OfOneStage):
    """One dataset made of others."""

    stage: DatasetStage

    @property
    def needs(self) -> tuple[str, ...]:
        return self.stage.parents

    @property
    def label(self) -> str:
        return (
            f"{self.stage.transform} of the rows of {self.stage.trait}, data seed {self.stage.seed}"
        )


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
        marks = [s.mask.divergence for s in self.students if s.mask]
        return tuple(dict.fromkeys([*(s.dataset for s in self.students), *marks]))

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
        vectors = [m.steer.vector for m in self.measures if m.steer]
        return tuple(dict.fromkeys([*(s.id for s in self.students), *held, *vectors]))

    @property
    def label(self) -> str:
        if not self.students:
            first = self.measures[0]
            return f"the base in the context {first.context.name}" + (
                f", {first.condition}" if first.condition else ""
            )
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


@dataclass(frozen=True)
class VectorUnit:
    """The vector of one teacher, or those of a pack's students."""

    vectors: tuple[VectorStage, ...]
    students: tuple[StudentStage, ...]

    @cached_property
    def id(self) -> str:
        return artifact_id("vectors", {"vectors": list(self.makes)})

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(v.id for v in self.vectors)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def label(self) -> str:
        if not self.students:
            return f"the vector of {self.vectors[0].teacher.name}"
        return "the vectors of " + _listed(
            [f"{s.source}, {s.student.label}" for s in self.students]
        )


@dataclass(frozen=True)
class DivergenceUnit(_OfOneStage):
    """The divergent tokens of one dataset."""

    stage: DivergenceStage

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.stage.dataset,)

    @property
    def label(self) -> str:
        return f"the divergent tokens of {self.stage.dataset}"


@dataclass(frozen=True)
class ProbeUnit:
    """The students of a pack that read the same rows in the same context."""

    probes: tuple[ProbeStage, ...]
    students: tuple[StudentStage, ...]

    @cached_property
    def id(self) -> str:
        return artifact_id("probes", {"probes": list(self.makes)})

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(p.id for p in self.probes)

    @property
    def needs(self) -> tuple[str, ...]:
        first = self.probes[0]
        marks = () if first.divergence is None else (first.divergence,)
        return (first.dataset, *marks, *(s.id for s in self.students))

    @property
    def label(self) -> str:
        return "the rows of " + _listed([f"{s.source}, {s.student.label}" for s in self.students])


@dataclass(frozen=True)
class GradientUnit(_OfOneStage):
    """The gradients of one pair of datasets."""

    stage: GradientStage

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.stage.datasets, self.stage.vector)

    @property
    def label(self) -> str:
        return f"the gradients of {self.stage.trait}, data seed {self.stage.data_seed}"


Unit = (
    TeachUnit
    | DataUnit
    | TransformUnit
    | TrainUnit
    | MeasureUnit
    | AttributionUnit
    | VectorUnit
    | DivergenceUnit
    | ProbeUnit
    | GradientUnit
)


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
    """The base's measurements one by one, then those of each pack, of so many students at a time as may train together."""
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
    parts = [
        pack[at : at + PACK_STUDENTS]
        for pack in plan.packs
        for at in range(0, len(pack), PACK_STUDENTS)
    ]
    for part in parts:
        students = [plan.students[i] for i in part]
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


def teacher_vector_units(plan: Plan) -> list[VectorUnit]:
    return [VectorUnit((v,), ()) for v in plan.vectors if v.student is None]


def student_vector_units(plan: Plan) -> list[VectorUnit]:
    """Those of each pack, by training context."""
    of = {v.student: v for v in plan.vectors if v.student is not None}
    units = []
    for pack in plan.packs:
        groups: dict[Context, list[StudentStage]] = {}
        for i in pack:
            if plan.students[i].id in of:
                groups.setdefault(plan.students[i].context, []).append(plan.students[i])
        units += [
            VectorUnit(tuple(of[s.id] for s in found), tuple(found)) for found in groups.values()
        ]
    return units


def divergence_units(plan: Plan) -> list[DivergenceUnit]:
    return [DivergenceUnit(d) for d in plan.divergences]


def probe_units(plan: Plan) -> list[ProbeUnit]:
    """Those of each pack, by rows, context and method."""
    units = []
    for pack in plan.packs:
        students = {plan.students[i].id: plan.students[i] for i in pack}
        groups: dict[tuple, list[ProbeStage]] = {}
        for p in plan.probes:
            if p.student in students:
                s = students[p.student]
                groups.setdefault((p.dataset, p.rows, p.divergence, s.context), []).append(p)
        units += [
            ProbeUnit(tuple(found), tuple(students[p.student] for p in found))
            for found in groups.values()
        ]
    return units


def gradient_units(plan: Plan) -> list[GradientUnit]:
    return [GradientUnit(g) for g in plan.gradients]
