"""Students: a pack of them is trained in one pass over the frozen base."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sublora.analysis.effects import Label
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import Labels, TokenRows, labelled, pack_rows, text_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import update_norms
from sublora.packs.student import Student as Training
from sublora.packs.student import Trained
from sublora.packs.student_files import save_student
from sublora.packs.trainer import Checkpoint, train_pack
from sublora.steps.made import Made
from sublora.steps.materials import Mask, free_memory, listed, token_rows
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Rows, Tick, Workshop, total
from sublora.store import artifact_id

KINDS = {"lora": "students (LoRA)", "full": "students (full fine-tune)"}


@dataclass(frozen=True)
class Student(Made):
    """One student of a plan.

    `source`: the trait whose rows it reads, or whose rows stand for it (see `sources`). `labels`: its value on every axis; students with
    equal labels and source are replicates. `twins`: by the name of each trait that it stands for, the id of its control. `take`: the first
    so many rows of the dataset (None: all of its `rows`). `step`: the step after which it is kept (None: the last one), of the training
    that ends in the student `whole`.
    """

    student: StudentSpec
    dataset: str
    heldout: str
    source: str
    data_seed: int
    context: Context
    labels: Mapping[str, Label]
    rows: int
    take: int | None = None
    step: int | None = None
    whole: str = ""
    mask: Mask | None = None
    hop: int = 0  # students before it in a chain, each the teacher of the next
    twins: Mapping[str, str] = field(default_factory=dict)
    noun = "student"

    @property
    def twin(self) -> str | None:
        """The id of the control that it is compared with; None for a control."""
        return next(iter(self.twins.values()), None)

    @property
    def replicate(self) -> tuple[int, int]:
        """(data seed, training seed)."""
        return self.data_seed, self.student.seed

    @property
    def arm(self) -> str:
        """Whose rows it reads: control, neutral (of the plain model) or trait."""
        first = self.source.split(":")[0]
        return first if first in ("control", "neutral") else "trait"

    @property
    def label(self) -> str:
        return f"{self.source}, {self.student.label}"

    def cost(self, sizes: Sizes) -> Cost:
        if self.step is not None:  # kept on the way of a student that is counted
            return Cost()
        return sizes.training(self.student, self.take or self.rows)


@dataclass(frozen=True)
class StudentsStep:
    """One pack of students, each trained in its own context; `soft` are those of their datasets that have soft labels."""

    students: tuple[Student, ...]
    model: str
    sizes: Sizes
    soft: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        return KINDS[self.students[0].student.method]

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
        return listed([s.label for s in self.students])

    @property
    def cost(self) -> Cost:
        return total(s.cost(self.sizes) for s in self.students)

    def trial(self, base: Base, rows: Rows, tick: Tick) -> None:
        """Steps of some such students; of adapters for a full fine-tune of a large model, which takes memory. A batch of few rows shares less
        of a common beginning."""
        few = self.students[: max(1, len(rows) // 8)]
        read = pack_rows(text_rows(base.chat, rows, few[0].context), None, "a trial")
        soft, how = _softly(read), {"targets": ("all-linear",), "init": "default"}
        if len(rows) < 8:
            how |= {"method": "lora", "rank": few[0].student.rank or 8}
        specs = [s.student.model_copy(update=how) for s in few]
        pack = [
            Training(s.id, spec, soft if s.dataset in self.soft else read)
            for s, spec in zip(few, specs, strict=True)
        ]
        mean, batch = float(read.lengths.mean()), specs[0].batch_size
        one, own = (mean - read.shared * (1 - 1 / n) for n in (min(batch, len(rows)), batch))
        row = total(self.sizes.training(s, 1).share(1 / s.passes) for s in specs)
        each = row.share(one / own / mean / len(few))  # of a token
        tell = {"on_step": lambda _, __, tokens: tick(each.share(tokens))}
        train_pack(base.model, pack, lambda _: None, **tell)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        """The whole pack is repeated even if some of it is there, so that every student sees the same products."""
        base = workshop.base_of(self.model)
        kept: dict[str, list[Student]] = {}
        for s in self.students:
            kept.setdefault(s.whole, []).append(s)
        trainings = [_training(workshop, base, whole, alike) for whole, alike in kept.items()]
        path = workshop.checkpoint(self)
        path.parent.mkdir(exist_ok=True)
        notices: list[str] = []

        def keep(trained: Trained) -> None:
            training, steps = trainings[trained.index], len(trained.losses)
            for student in kept[training.name]:
                if student.id in wanted and steps == (student.step or training.steps):
                    about = {"rows": len(training.rows), "label": student.student.label}
                    about |= {"notices": list(notices)}
                    _keep(student, trained, about, workshop, base)
                    wanted.discard(student.id)
                    workshop.made(student.id)

        while wanted:
            # once, and again where a checkpoint is past a student that was lost since
            tell = {"on_progress": workshop.progress, "on_notice": notices.append}
            how = {"checkpoint": Checkpoint(path), "memory": free_memory(base), **tell}
            train_pack(base.model, trainings, keep, **how)


def _softly(rows: TokenRows) -> TokenRows:
    """The rows with soft labels as recipes keep them: 32 tokens at each place, here all alike."""
    counts = (rows.lengths - rows.prompts).astype(np.int32)
    ids = np.tile(np.arange(32, dtype=np.int32), (counts.sum(), 1))
    return labelled(rows, Labels(ids, np.full(ids.shape, -4, np.float16), counts))


def _training(workshop: Workshop, base: Base, whole: str, alike: Sequence[Student]) -> Training:
    """The one training that all these students are kept of."""
    first = alike[0]
    how = (first.take, first.mask, first.student.kl == "reverse")
    rows = token_rows(workshop, base, first.dataset, first.context, *how)
    steps = tuple(s.step for s in alike if s.step is not None)
    return Training(whole, first.student, rows, steps)


def _keep(
    student: Student, trained: Trained, about: Mapping[str, Any], workshop: Workshop, base: Base
) -> None:
    """`about`: what its manifest says of the whole training."""
    steps = len(trained.losses)
    tail = [x for x in trained.losses[-max(1, steps // 10) :] if np.isfinite(x)]
    meta = {"steps": steps, "train_loss": float(np.mean(tail)) if tail else None}
    meta |= {"diverged_at": trained.diverged_at, "optimizer": trained.optimizer}
    meta |= {"trainable_parameters": trained.parameters, **about}
    weights = (trained.group, trained.row, student.student)
    training = {
        "loss": [x if np.isfinite(x) else None for x in trained.losses],
        "gradient_norm": [x if np.isfinite(x) else None for x in trained.norms],
        "update_norm": update_norms(*weights, base.model),
    }
    with workshop.store.create(student.id, student.spec, meta) as folder:
        save_student(*weights, folder, base.model, base.name)
        (folder / "training.json").write_text(json.dumps(training) + "\n", encoding="utf-8")
