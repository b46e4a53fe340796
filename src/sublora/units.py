"""Units of work: what an executor hands to one worker, with all that the work needs, so that a unit can travel to another machine.

A unit names the artifacts that it makes and needs. Units depend on the recipe alone and not on what is done already: a resumed run
repeats the very same passes over the model, and so makes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sublora.carriers.numbers import NumbersSpec
from sublora.chat import Context
from sublora.plan import DatasetStage, MeasureStage, Plan, StudentStage, contexts_of
from sublora.sample import Sampling
from sublora.store import artifact_id
from sublora.trait import Category


@dataclass(frozen=True)
class DataUnit:
    """One dataset, written by a teacher."""

    stage: DatasetStage
    carrier: NumbersSpec
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
        part = "held-out rows" if self.stage.heldout else "rows"
        return f"the {part} of {self.stage.trait}, data seed {self.stage.seed}"


@dataclass(frozen=True)
class TrainUnit:
    """One pack of students, trained in one context."""

    students: tuple[StudentStage, ...]
    context: Context

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
    """The measurements of one pack's students, or one of the base; `trained_in` is the context in which held-out loss is taken."""

    measures: tuple[MeasureStage, ...]
    students: tuple[StudentStage, ...]
    trained_in: Context
    categories: tuple[Category, ...]
    sampling: Sampling
    samples: int
    seed: int

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


Unit = DataUnit | TrainUnit | MeasureUnit


def _listed(labels: Sequence[str]) -> str:
    return labels[0] + (f" and {len(labels) - 1} more of its pack" if len(labels) > 1 else "")


def data_units(plan: Plan) -> list[DataUnit]:
    data = plan.recipe.data
    return [DataUnit(d, data.carrier, data.sampling) for d in plan.datasets]


def train_units(plan: Plan) -> list[TrainUnit]:
    context = contexts_of(plan.recipe)[plan.recipe.train.context]
    return [TrainUnit(tuple(plan.students[i] for i in pack), context) for pack in plan.packs]


def measure_units(plan: Plan) -> list[MeasureUnit]:
    """The base's measurements one by one, then those of each pack."""
    spec, trained_in = plan.recipe.measure, contexts_of(plan.recipe)[plan.recipe.train.context]
    categories = tuple({t.category.category: t.category for t in plan.traits}.values())
    by_student: dict[str | None, list[MeasureStage]] = {}
    for m in plan.measures:
        by_student.setdefault(m.student, []).append(m)

    def unit(measures: Sequence[MeasureStage], students: Sequence[StudentStage]) -> MeasureUnit:
        asked = {m.category for m in measures}
        chosen = tuple(c for c in categories if c.category in asked)
        return MeasureUnit(tuple(measures), tuple(students), trained_in, chosen, spec.sampling, spec.samples, spec.seed)

    units = [unit([m], []) for m in by_student.get(None, [])]
    for pack in plan.packs:
        students = [plan.students[i] for i in pack]
        units.append(unit([m for s in students for m in by_student.get(s.id, [])], students))
    return [u for u in units if u.measures]
