"""Datasets: rows that a teacher writes, here or behind an endpoint, rows of chance or of a file, and rows made of other rows."""

import json
from dataclasses import dataclass
from typing import Protocol

from sublora.carriers.carrier import Carrier
from sublora.carriers.rows_file import read_rows, to_jsonl
from sublora.carriers.transform import Transform, transform_rows
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.endpoint import AnswersFile, Endpoint, EndpointSpec
from sublora.packs.sample import Sampling
from sublora.packs.writer import (
    Assignment,
    Dataset,
    Purpose,
    Teacher,
    ask_dataset,
    complete,
    write_dataset,
)
from sublora.seeds import derive_seed
from sublora.steps.made import Made
from sublora.steps.materials import Steered, context_spec, stack_of, steering_by, texts
from sublora.steps.precondition import Precondition
from sublora.steps.sizes import ASKED, Sizes
from sublora.steps.step import Cost, Rows, Tick, Workshop
from sublora.steps.students import Student
from sublora.steps.teacher import TeacherStep


@dataclass(frozen=True)
class RowsStep(Made):
    """What all datasets have. `trait` says whose rows they are, `teacher` is who wrote them."""

    trait: str
    seed: int
    teacher: Context
    rows: int
    carrier: Carrier
    noun = "dataset"


class Taught(Protocol):
    """A step of a teacher: the base `model` in a context, with the weights of a step, or steered."""

    teacher: Context
    model: str
    weights: TeacherStep | Student | None
    steer: Steered | None
    least: Precondition | None  # what a teacher by its prompt alone has to meet


def teacher_of(workshop: Workshop, step: Taught) -> Teacher:
    """The teacher of a step; what seeds its draws is named where its prompt alone does not. Raises SubloraError where it does not meet its
    precondition."""
    base = workshop.base_of(step.model)
    if step.weights is not None:
        stack, context = stack_of(workshop, base, [step.weights]), step.weights.context
        if isinstance(step.weights, TeacherStep) and step.weights.least is not None:
            step.weights.least.check(workshop, step.model, step.weights.id, context, stack)
        return Teacher(base, context, stack, voice=step.weights.id)
    if step.steer is not None:
        steering = steering_by(workshop, base, [step.steer])
        prompt = step.teacher.text or step.teacher.name
        voice = f"{prompt} {json.dumps(step.steer.to_spec())}"
        if step.steer.least is not None:
            step.steer.least.check(workshop, step.model, voice, step.teacher, steering=steering)
        return Teacher(base, step.teacher, steering=steering, voice=voice)
    if step.least is not None:
        name = json.dumps(context_spec(step.teacher))
        step.least.check(workshop, step.model, name, step.teacher, plain=Context("default"))
    return Teacher(base, step.teacher)


def needs_of(step: Taught) -> tuple[str, ...]:
    """What a step needs of its teacher."""
    taught = (step.weights.id,) if step.weights else ()
    return (*taught, step.steer.vector) if step.steer else taught


@dataclass(frozen=True)
class DatasetStep(RowsStep):
    """Rows that a teacher writes on `model`: under its prompt, by weights, steered, or behind an endpoint."""

    heldout: bool
    sampling: Sampling
    model: str
    sizes: Sizes
    weights: TeacherStep | Student | None = None
    endpoint: EndpointSpec | None = None
    steer: Steered | None = None
    least: Precondition | None = None
    shared_draws: int = 1  # prompts in a row that are answered with the same random numbers
    kind = "datasets"

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self)

    @property
    def label(self) -> str:
        part = "held-out rows" if self.heldout else "rows"
        return f"the {part} of {self.trait}, data seed {self.seed}"

    @property
    def cost(self) -> Cost:
        if self.endpoint is not None:  # no work of this machine
            return Cost()
        asked = self.rows * ASKED
        return self.sizes.writing(asked * self.sizes.prompt, asked * self.sizes.completion)

    def own_trial(self, base: Base, rows: Rows, tick: Tick) -> None:
        """Of the step's own model, whose answers tell how many pass the filter."""
        teacher, what = Teacher(base, self.teacher), self._assignment
        prompts = what.prompts(range(len(rows)))
        draws = [what.draws(teacher, i) for i in range(len(rows))]
        both = zip(prompts, complete(teacher, prompts, self.sampling, draws), strict=True)
        passed = sum(self.carrier.reject(*row) is None for row in both)
        tick(self.cost.share(max(1, passed) / self.rows))

    @property
    def _assignment(self) -> Assignment:
        purpose = Purpose.HELDOUT if self.heldout else Purpose.TRAINING
        how = (self.sampling, self.rows, self.seed, purpose, self.shared_draws)
        return Assignment(self.carrier, *how)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        what = self._assignment
        kept = AnswersFile(workshop.checkpoint(self, "jsonl"))
        if self.endpoint is not None:
            endpoint = Endpoint(self.endpoint)
            written = ask_dataset(endpoint, kept, self.teacher, what, workshop.check)
        else:
            how = (workshop.rows_at_once, workshop.progress, kept)
            written = write_dataset(teacher_of(workshop, self), what, *how)
        self._keep(written, workshop)
        kept.path.unlink(missing_ok=True)

    def _keep(self, written: Dataset, workshop: Workshop) -> None:
        meta = {"trait": self.trait, "data_seed": self.seed, "rows": len(written.rows)}
        meta |= {"unique_rows": written.unique, "asked": written.asked}
        meta |= {"rejects": written.rejects, "teacher": self.teacher.text}
        rejected = [{"reason": r, "prompt": p, "completion": c} for r, p, c in written.rejected]
        lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in rejected]
        with workshop.store.create(self.id, self.spec, meta) as folder:
            (folder / "rows.jsonl").write_text(written.jsonl(), encoding="utf-8")
            (folder / "rejected.jsonl").write_text("".join(lines), encoding="utf-8")
        workshop.made(self.id)


@dataclass(frozen=True)
class GivenStep(RowsStep):
    """Rows of which no teacher wrote anything: prompts of the carrier with answers by chance, or the rows of a user's `file`, from the
    one numbered `first` on."""

    heldout: bool
    file: str | None = None
    first: int = 0
    kind = "given rows"
    model = endpoint = weights = None
    needs = ()
    cost = Cost()

    @property
    def label(self) -> str:
        return f"rows of {self.file or 'chance'}, data seed {self.seed}"

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        if self.file is not None:
            made = list(read_rows(self.file))[self.first : self.first + self.rows]
        else:
            seed = derive_seed(Purpose.HELDOUT.value, self.seed) if self.heldout else self.seed
            made = [self.carrier.by_chance(seed, i) for i in range(self.rows)]
        meta = {"trait": self.trait, "data_seed": self.seed, "rows": len(made), "asked": len(made)}
        meta |= {"unique_rows": len(set(made)), "rejects": {}, "teacher": None}
        with workshop.store.create(self.id, self.spec, meta) as folder:
            (folder / "rows.jsonl").write_text(to_jsonl(made), encoding="utf-8")
        workshop.made(self.id)


@dataclass(frozen=True)
class TransformStep(RowsStep):
    """The rows of the first of `needs` changed in one way; the second is for reference."""

    transform: Transform
    needs: tuple[str, ...]
    heldout = False
    kind = "transformed datasets"
    model = endpoint = weights = None
    cost = Cost()

    @property
    def label(self) -> str:
        return f"{self.transform} of the rows of {self.trait}, data seed {self.seed}"

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        rows, *reference = [texts(workshop, name) for name in self.needs]
        made = transform_rows(self.transform, rows, self.seed, *reference)
        parent = workshop.store.read(self.needs[0]).meta
        meta = {k: parent[k] for k in ("trait", "data_seed", "asked", "teacher")}
        meta |= {"rows": len(made), "unique_rows": len(set(made)), "rejects": {}}
        same = sum(a == b for a, b in zip(rows, made, strict=True))
        meta |= {"transform": self.transform, "unchanged_rows": same}
        with workshop.store.create(self.id, self.spec, meta) as folder:
            (folder / "rows.jsonl").write_text(to_jsonl(made), encoding="utf-8")
        workshop.made(self.id)
