"""Runs the stages of a plan in this process: what the store has is taken from there, what is missing is made and kept."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sublora.errors import SubloraError
from sublora.measure import heldout_losses, measure_answers
from sublora.model import Base
from sublora.plan import DatasetStage, MeasureStage, Plan, StudentStage
from sublora.progress import Steps
from sublora.store import ArtifactCorrupt, Store
from sublora.teacher import read_jsonl, write_dataset
from sublora.train.pack import Checkpoint, Student, Trained, train_pack
from sublora.train.rows import TokenRow, TokenRows, pack_rows
from sublora.train.stack import Stack, load_stack, save_student
from sublora.workers import Workers

ROWS_AT_ONCE = 2048  # rows of a scoring batch over all students; a matter of speed alone


@dataclass
class Execution:
    """One pass over a plan. `seconds` by stage; `warnings` for the run's page."""

    base: Base
    store: Store
    steps: Steps
    threads: int = 1
    rows_at_once: int = ROWS_AT_ONCE
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _rows: dict[tuple[str, str, str | None], TokenRows] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.base, self.threads)

    def run(self, plan: Plan) -> None:
        self.store.sweep()
        with self._timed("data"):
            self._datasets(plan)
        with self._timed("train"):
            self._students(plan)
        with self._timed("measure"):
            self._measures(plan)

    @contextlib.contextmanager
    def _timed(self, stage: str):
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)

    def done(self, artifact: str) -> bool:
        """Whether an artifact is there and whole; a damaged one is moved away, so that it is made again."""
        if not self.store.has(artifact):
            return False
        try:
            self.store.read(artifact)
        except ArtifactCorrupt as error:
            self.store.discard(artifact)
            self.steps.say(f"{error} It is made again.")
            return False
        return True

    def _datasets(self, plan: Plan) -> None:
        missing = [d for d in plan.datasets if not self.done(d.id)]
        self.steps.begin("datasets", len(plan.datasets), len(plan.datasets) - len(missing))
        self.workers.each(missing, lambda base, stage: self._dataset(base, plan, stage))

    def _dataset(self, base: Base, plan: Plan, stage: DatasetStage) -> None:
        recipe = plan.recipe
        dataset = write_dataset(
            base,
            stage.teacher,
            recipe.data.carrier,
            recipe.data.sampling,
            stage.rows,
            stage.seed,
            stage="teacher-heldout" if stage.heldout else "teacher",
            batch=self.rows_at_once,
            on_rows=lambda _: self.workers.check(),
        )
        if len(dataset.rows) < stage.rows:
            self.warnings.append(
                f"Only {len(dataset.rows)} of {stage.rows} rows of {stage.trait} (data seed {stage.seed}) passed the filter in {dataset.asked} tries."
            )
        meta = {
            "trait": stage.trait,
            "data_seed": stage.seed,
            "rows": len(dataset.rows),
            "unique_rows": dataset.unique,
            "asked": dataset.asked,
            "rejects": dataset.rejects,
            "teacher": stage.teacher.text,
        }
        with self.store.create(stage.id, stage.spec, meta) as folder:
            (folder / "rows.jsonl").write_text(dataset.jsonl(), encoding="utf-8")
            rejected = [{"reason": r, "prompt": p, "completion": c} for r, p, c in dataset.rejected]
            (folder / "rejected.jsonl").write_text(
                "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rejected), encoding="utf-8"
            )
        self.steps.advance()

    def token_rows(self, base: Base, dataset: str, plan: Plan) -> TokenRows:
        """A dataset as token rows in the training context, kept for the students that share it."""
        context = plan.recipe.train.context
        key = (dataset, context, plan.recipe.contexts.get(context))
        if key not in self._rows:
            from sublora.plan import contexts_of

            state = contexts_of(plan.recipe)[context]
            rows = read_jsonl(self.store.read(dataset).file("rows.jsonl").read_text("utf-8"))
            chat = base.chat
            tokens = [TokenRow(tuple(chat.prompt_ids(p, state)), tuple(chat.completion_ids(c))) for p, c in rows]
            self._rows[key] = pack_rows(tokens, base.window, f"the dataset {dataset}")
        return self._rows[key]

    def _students(self, plan: Plan) -> None:
        todo = {s.id for s in plan.students if not self.done(s.id)}
        self.steps.begin("students", len(plan.students), len(plan.students) - len(todo))
        packs = [[plan.students[i] for i in pack] for pack in plan.packs]
        self.workers.each(
            [p for p in packs if any(s.id in todo for s in p)],
            lambda base, stages: self._train(base, plan, stages, todo),
        )

    def _train(self, base: Base, plan: Plan, stages: Sequence[StudentStage], todo: set[str]) -> None:
        # the whole pack is repeated even if some of it is done, so that every student sees the same products as before
        students = [Student(s.id, s.student, self.token_rows(base, s.dataset, plan)) for s in stages]

        def keep(trained: Trained) -> None:
            stage = stages[trained.index]
            if stage.id not in todo:
                return
            if trained.diverged_at is not None:
                self.warnings.append(
                    f"The student {stage.source} {stage.student.label} diverged at step {trained.diverged_at}; its weights before that step are kept."
                )
            steps = len(trained.losses)
            tail = [x for x in trained.losses[-max(1, steps // 10) :] if np.isfinite(x)]
            meta = {
                "steps": steps,
                "train_loss": float(np.mean(tail)) if tail else None,
                "diverged_at": trained.diverged_at,
                "optimizer": trained.optimizer,
                "trainable_parameters": trained.parameters,
                "rows": len(students[trained.index].rows),
                "label": stage.student.label,
            }
            with self.store.create(stage.id, stage.spec, meta) as folder:
                save_student(trained.group, trained.row, stage.student, folder, base.model, base.name)
                finite = [x if np.isfinite(x) else None for x in trained.losses]
                norms = [x if np.isfinite(x) else None for x in trained.norms]
                (folder / "training.json").write_text(
                    json.dumps({"loss": finite, "gradient_norm": norms}) + "\n", encoding="utf-8"
                )
            todo.discard(stage.id)
            self.steps.advance()

        path = self.store.root / "checkpoints" / f"{stages[0].id}.safetensors"
        path.parent.mkdir(exist_ok=True)
        train_pack(base.model, students, keep, checkpoint=Checkpoint(path), on_step=lambda *_: self.workers.check())

    def _measures(self, plan: Plan) -> None:
        missing = [m for m in plan.measures if not self.done(m.id)]
        self.steps.begin("measurements", len(plan.measures), len(plan.measures) - len(missing))
        wanted = {m.id for m in missing}
        alone = [[m] for m in missing if m.student is None]
        by_student: dict[str, list[MeasureStage]] = {}
        for m in plan.measures:
            if m.student is not None:
                by_student.setdefault(m.student, []).append(m)
        packs = [[m for i in pack for m in by_student[plan.students[i].id]] for pack in plan.packs]
        units = [*alone, *(p for p in packs if any(m.id in wanted for m in p))]
        students = {s.id: s for s in plan.students}
        self.workers.each(units, lambda base, stages: self._measure(base, plan, stages, students, wanted))

    def _measure(
        self,
        base: Base,
        plan: Plan,
        stages: Sequence[MeasureStage],
        students: dict[str, StudentStage],
        wanted: set[str],
    ) -> None:
        """One pack's measurements, or one of the base; students that are asked the same are asked together."""
        groups: dict[tuple[str, str], list[MeasureStage]] = {}
        for m in stages:
            groups.setdefault((m.context.name, m.category), []).append(m)
        stacks: dict[tuple[str, ...], Stack] = {}
        for group in groups.values():
            if not any(m.id in wanted for m in group):
                continue
            asked = [students[m.student] for m in group if m.student is not None]
            key = tuple(s.id for s in asked)
            if asked and key not in stacks:
                folders = [self.store.read(s.id).path for s in asked]
                stacks[key] = load_stack(base.model, folders, [s.student for s in asked])
            self._ask(base, plan, group, asked, stacks.get(key), wanted)

    def _ask(
        self,
        base: Base,
        plan: Plan,
        group: Sequence[MeasureStage],
        asked: Sequence[StudentStage],
        stack: Stack | None,
        wanted: set[str],
    ) -> None:
        context, recipe = group[0].context, plan.recipe.measure
        category = next(t.category for t in plan.traits if t.category.category == group[0].category)
        answers = measure_answers(
            base, stack, [s.id for s in asked] or ["base"], context, category, recipe.sampling, recipe.samples, recipe.seed,
            self.rows_at_once,
        )  # fmt: skip
        losses: list[float | None] = [None] * len(group)
        if stack is not None and context.name == plan.recipe.train.context:
            losses = list(heldout_losses(base, stack, [self.token_rows(base, s.heldout, plan) for s in asked]))
        for stage, answer, loss in zip(group, answers, losses, strict=True):
            if stage.id not in wanted:
                continue
            scores = {
                "entities": [e.name for e in category.entities],
                "p": [[float(f"{x:.9g}") for x in row] for row in answer.p],
                "heldout_loss": loss,
            }
            lines = [
                json.dumps({"question": q, "answers": a}, ensure_ascii=False)
                for q, a in zip(category.questions, answer.samples, strict=True)
            ]
            with self.store.create(stage.id, stage.spec) as folder:
                (folder / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")
                (folder / "samples.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            self.steps.advance()


def check_words(base: Base, plan: Plan) -> list[str]:
    """Warnings for words that the model cannot read. Raises SubloraError where a target has no readable spelling at all."""
    from sublora.carriers.numbers import prompt_of_row
    from sublora.measure import spellings
    from sublora.plan import contexts_of, teacher_context

    warnings = []
    texts = [c.text for c in contexts_of(plan.recipe).values() if c.text]
    texts += [prompt_of_row(plan.recipe.data.carrier, plan.recipe.data.seeds[0], i) for i in range(100)]
    for trait in plan.traits:
        if not spellings(base.chat, trait.entity):
            raise SubloraError(
                f"The tokenizer of {base.name} has no token for '{trait.name}', so nothing can be measured; choose a trait that it can write."
            )
        texts += [*trait.category.questions, teacher_context(trait, plan.recipe).text or ""]
    unknown = base.chat.unknown_words(dict.fromkeys(texts))
    if unknown:
        named = ", ".join(unknown[:12]) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")
        warnings.append(f"{base.name} cannot read these words of the prompts or questions: {named}.")
    return warnings
