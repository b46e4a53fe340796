"""Labels: the rows of a dataset with what a teacher says at every token of their completions."""

from dataclasses import dataclass

from sublora.packs.labels import LabelSpec, about_rows, label_rows, write_labels
from sublora.steps.dataset import RowsStep, needs_of, teacher_of
from sublora.steps.materials import LABELS, Steered, texts
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop
from sublora.steps.teacher import TeacherStep


@dataclass(frozen=True)
class LabelStep(RowsStep):
    """The rows of `text`, whoever wrote them, with a teacher's labels. Students of different teachers read the same text."""

    text: str
    how: LabelSpec
    model: str
    sizes: Sizes
    weights: TeacherStep | None = None
    steer: Steered | None = None
    kind = "labels"
    endpoint = None
    heldout = False

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.text, *needs_of(self))

    @property
    def label(self) -> str:
        return f"{self.how.kind} labels of {self.trait}, data seed {self.seed}"

    @property
    def cost(self) -> Cost:
        return self.sizes.forward(self.rows * self.sizes.row, self.rows * self.sizes.completion)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        rows, teacher = texts(workshop, self.text), teacher_of(workshop, self)
        how = (self.seed, workshop.rows_at_once, workshop.progress)
        labels = label_rows(teacher, rows, self.how, *how)
        meta = dict(workshop.store.read(self.text).meta)
        meta |= {"trait": self.trait, "teacher": self.teacher.text, "labels": self.how.kind}
        with workshop.store.create(self.id, self.spec, meta) as folder:
            written = workshop.store.read(self.text).file("rows.jsonl").read_bytes()
            (folder / "rows.jsonl").write_bytes(written)
            write_labels(labels, folder / LABELS, about_rows(teacher.base.chat, rows))
        workshop.made(self.id)
