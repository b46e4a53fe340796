"""How well models know rows that a teacher kept back: the base, and controls on the rows of the trait that they stand against.

A student's loss on its own teacher's held-out rows is part of its measurement.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sublora.models.chat import Context
from sublora.packs.measure import heldout_losses
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import context_spec, keep_json, stack_of, token_rows
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop
from sublora.steps.students import Student
from sublora.store import Store

FILE = "heldout.json"


@dataclass(frozen=True)
class HeldoutLoss(Made):
    """Mean loss per completion token, in nats, of a student (None: the base) on a dataset of `rows` rows, read in a context."""

    student: str | None
    dataset: str
    context: Context
    rows: int
    noun = "heldout"


def heldout_loss(
    model: Mapping[str, str], student: str | None, of: Student, rows: int
) -> HeldoutLoss:
    """On the held-out rows of the student `of`, in its context."""
    spec = {"model": model, "student": student, "dataset": of.heldout}
    spec |= {"context": context_spec(of.context)}
    return HeldoutLoss(spec, student, of.heldout, of.context, rows)


def read_loss(store: Store, loss: HeldoutLoss) -> float:
    return json.loads(store.read(loss.id).file(FILE).read_text("utf-8"))["loss"]


@dataclass(frozen=True)
class HeldoutStep(PackStep):
    """Losses of students of a pack, one of each, or one of the base."""

    nouns, kind, about = "heldouts", "held-out losses", "held-out rows read by "

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *(a.dataset for a in self.artifacts)]))

    @property
    def label(self) -> str:
        return super().label if self.students else self.about + "the base"

    @property
    def cost(self) -> Cost:
        return self.sizes.reading(sum(a.rows for a in self.artifacts) * self.sizes.row)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base = workshop.base_of(self.model)
        rows = [token_rows(workshop, base, a.dataset, a.context) for a in self.artifacts]
        stack = stack_of(workshop, base, self.students) if self.students else None
        told = workshop.counter(sum(map(len, rows)), "rows", self.cost.tokens)
        found = heldout_losses(base, stack, rows, on_tokens=told)
        for one, loss in zip(self.artifacts, found, strict=True):
            if one.id in wanted:
                keep_json(workshop, one.id, one.spec, FILE, {"loss": loss})


def heldout_steps(
    losses: Iterable[HeldoutLoss], packs: Sequence[Sequence[Student]], model: str, sizes: Sizes
) -> Iterator[HeldoutStep]:
    """The base's one by one, then those of each pack; a student that reads several datasets is in a step for each."""
    by_student: dict[str | None, list[HeldoutLoss]] = {}
    for loss in {loss.id: loss for loss in losses}.values():
        by_student.setdefault(loss.student, []).append(loss)
    yield from (HeldoutStep((loss,), (), model, sizes) for loss in by_student.get(None, []))
    for pack in packs:
        queues = [(s, by_student.get(s.id, [])) for s in pack]
        for turn in range(max((len(q) for _, q in queues), default=0)):
            mine = [(q[turn], s) for s, q in queues if len(q) > turn]
            found, students = zip(*mine, strict=True)
            yield HeldoutStep(found, students, model, sizes)
