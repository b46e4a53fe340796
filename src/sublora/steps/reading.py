"""What a recipe can ask for under `measure:` besides questions: every file of this package with a READING adds one."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from pydantic import BaseModel

from sublora.analysis.effects import Effect
from sublora.models.chat import Context
from sublora.steps.dataset import DatasetStep, TransformStep
from sublora.steps.materials import context_spec
from sublora.steps.sizes import Sizes
from sublora.steps.step import Step
from sublora.steps.students import Student
from sublora.store import Store
from sublora.traits.trait import Trait


class Planning(Protocol):
    """What is planned already when the readings are."""

    model: str
    identity: Mapping[str, str]
    sizes: Sizes
    traits: Sequence[Trait]
    students: Sequence[Student]
    datasets: Mapping[str, DatasetStep | TransformStep]
    entities: tuple[str, ...]  # the words of measure.entities
    begun: bool  # whether answers are begun, as measure.readout says
    train_contexts: Sequence[Context]

    def packs(self) -> Sequence[Sequence[Student]]:
        """The students that are trained together, in the order of `students` within each pack."""

    def divergence(
        self, source: str, data: DatasetStep | TransformStep, against: str, context: Context
    ) -> str:
        """The id of the divergent tokens of a dataset, which are then planned."""

    def teacher_vector(self, trait: Trait) -> str:
        """The id of the vector of a trait's teacher, which is then planned."""

    def trait_of(self, source: str) -> Trait:
        """The trait that a student's rows are of, or stand against."""

    def rows_of(self, trait: Trait, data_seed: int) -> tuple[str, str]:
        """The ids of the datasets, as written, of a trait and of its control."""

    @property
    def data_seeds(self) -> Sequence[int]: ...


class Planned(Protocol):
    """What a reading may know of the whole plan when it is read."""

    traits: Sequence[Trait]
    students: Sequence[Student]
    readings: Mapping[str, Sequence[Any]]  # the steps of each reading, by its key


@dataclass(frozen=True)
class Reading:
    """One entry of `measure:`, called `key`, with its values. `plan` makes its steps; `reads` makes effects of what these made, where the
    grid's findings do not do that themselves. `for_adapters`: whether it cannot take full fine-tunes."""

    key: str
    spec: type[BaseModel]
    plan: Callable[[Any, Planning], Iterable[Step]]
    reads: Callable[[Planned, Store], Sequence[Effect]] | None = None
    for_adapters: bool = False


@cache
def readings() -> dict[str, Reading]:
    """All readings by their keys."""
    package = import_module("sublora.steps")
    modules = [
        import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    found = [m.READING for m in modules if hasattr(m, "READING")]
    return {r.key: r for r in found}


def spec_of(plan: Planning, student: Student) -> dict[str, Any]:
    """What every reading of a student depends on: the model, the student, and its context."""
    context = context_spec(student.context)
    return {"model": plan.identity, "student": student.id, "context": context}


def pairs_of(plan: Planned, trait: Trait) -> dict[str, list[tuple[Student, Student]]]:
    """The students that stand for a trait, each with its control: replicates, by what tells them from others."""
    of = {s.id: s for s in plan.students}
    mine = [s for s in plan.students if trait.name in s.twins]
    varies = [a for a in mine[0].labels if len({s.labels[a] for s in mine}) > 1]
    groups: dict[str, list[tuple[Student, Student]]] = {}
    for s in mine:
        label = ", ".join(f"{axis} {s.labels[axis]}" for axis in varies) or "students"
        groups.setdefault(label, []).append((s, of[s.twins[trait.name]]))
    return groups
