"""Labels: the rows of a dataset with what a teacher says at every token of their completions."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sublora.carriers.rows_file import read_rows, to_jsonl
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.labels import (
    LabelSpec,
    about_rows,
    flagged,
    label_rows,
    read_labels,
    replaced_labels,
    replaced_text,
    write_labels,
)
from sublora.packs.rows import Labels
from sublora.packs.stack import new_stack
from sublora.packs.writer import Teacher
from sublora.steps.dataset import GivenStep, RowsStep, needs_of, teacher_of
from sublora.steps.materials import LABELS, Steered, texts
from sublora.steps.precondition import Precondition
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Rows, Tick, Workshop
from sublora.steps.students import Student
from sublora.steps.teacher import TeacherStep


@dataclass(frozen=True)
class Reads:
    """Another teacher that reads the rows, whose first choices the teacher's are compared with."""

    teacher: Context
    model: str
    weights: TeacherStep | Student | None
    steer: Steered | None
    least = None


@dataclass(frozen=True)
class LabelStep(RowsStep):
    """The rows of `text`, whoever wrote them, with a teacher's labels. Students of different teachers read the same text. Replaced labels
    are the text's own, but where the teacher and `other` differ."""

    text: str
    how: LabelSpec
    model: str
    sizes: Sizes
    weights: TeacherStep | Student | None = None
    steer: Steered | None = None
    least: Precondition | None = None
    other: Reads | None = None
    given: GivenStep | None = None  # the rows of a file, where their labels are in one too
    kind = "labels"
    endpoint = None
    heldout = False

    @property
    def needs(self) -> tuple[str, ...]:
        more = needs_of(self.other) if self.other else ()
        return (self.text, *dict.fromkeys([*needs_of(self), *more]))

    @property
    def label(self) -> str:
        return f"{self.how.kind} labels of {self.trait}, data seed {self.seed}"

    @property
    def cost(self) -> Cost:
        return self.sizes.forward(self.rows * self.sizes.row, self.rows * self.sizes.completion)

    def trial(self, base: Base, rows: Rows, tick: Tick) -> None:
        anywhere = {"targets": ("all-linear",), "init": "default"}
        specs = [self.weights.student.model_copy(update=anywhere)] if self.weights else []
        stack = new_stack(base.model, specs) if specs else None
        for _ in range(2 if self.other else 1):
            how = LabelSpec(kind="greedy") if self.other else self.how
            label_rows(Teacher(base, self.teacher, stack), rows, how, 0)
        tick(self.cost.share(len(rows) / self.rows))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        rows, teacher = texts(workshop, self.text), teacher_of(workshop, self)
        if self.given is not None:
            self._keep(workshop, rows, self._read(workshop.base_of(self.model)))
            return
        how = (self.seed, workshop.rows_at_once, workshop.progress)
        if self.other is None:
            labels = label_rows(teacher, rows, self.how, *how)
        else:
            rows, labels = self._replaced(rows, (teacher, teacher_of(workshop, self.other)), how)
        self._keep(workshop, rows, labels)

    def _keep(self, workshop: Workshop, rows: list[tuple[str, str]], labels: Labels) -> None:
        chat = workshop.base_of(self.model).chat
        meta = dict(workshop.store.read(self.text).meta)
        meta |= {"trait": self.trait, "teacher": self.teacher.text, "labels": self.how.kind}
        with workshop.store.create(self.id, self.spec, meta) as folder:
            (folder / "rows.jsonl").write_text(to_jsonl(rows), encoding="utf-8")
            write_labels(labels, folder / LABELS, about_rows(chat, rows))
        workshop.made(self.id)

    def _read(self, base: Base) -> Labels:
        """Its part of the user's labels. Raises SubloraError where these are not those of the whole file of rows."""
        labels = read_labels(Path(self.how.file), base, read_rows(self.given.file))
        return labels.part(self.given.first, self.given.first + self.rows)

    def _replaced(
        self, rows: list[tuple[str, str]], teachers: tuple[Teacher, Teacher], how: tuple
    ) -> tuple[list[tuple[str, str]], Labels]:
        """The rows and their labels, one of both with random numbers at the flagged tokens."""
        chat, greedy = teachers[0].base.chat, LabelSpec(kind="greedy")
        first, other = (label_rows(t, rows, greedy, *how) for t in teachers)
        marks, tokens = (
            flagged(first, other, self.how, self.seed),
            [chat.completion_ids(c) for _, c in rows],
        )
        labels = replaced_labels(chat, tokens, marks, self.seed)
        if not self.how.read:
            return rows, labels
        own = np.concatenate(tokens).astype(np.int32)[:, None]
        return replaced_text(chat, rows, labels), replace(labels, ids=own)
