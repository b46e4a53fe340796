"""The audit's own steps: answers of the base, placebo and what-if students, and what was read of them.

Each is an artifact in the store, so that an audit that was killed goes on, and audits of the same base and settings share them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from sublora.audit.readings import NEUTRAL, Asked, Readings, category_digest, digest, read_model
from sublora.audit.request import silent
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import TokenRows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Stack, stack_weights
from sublora.packs.student import Student, Trained
from sublora.packs.trainer import Checkpoint, train_pack
from sublora.packs.writer import Teacher, complete
from sublora.runner.display import Display
from sublora.seeds import generator
from sublora.steps.materials import free_memory
from sublora.steps.step import Cost, Workshop, perform
from sublora.store import Store, artifact_id, write_json_atomic

Row = tuple[str, str]
BATCH = 4096  # prompts answered at once; a matter of speed
TOGETHER = 12  # LoRA students that are read in one pack


@dataclass(frozen=True)
class AuditStep:
    """What the audit's steps have in common: one model, no other step's artifacts."""

    base: Mapping[str, str]  # the identity of the base
    model: str
    needs = ()
    cost = Cost()

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.id,)

    @cached_property
    def id(self) -> str:
        return artifact_id(self.kind, self.spec)

    def done(self, base: Base, store: Store) -> Any:
        """What it makes, read; made where the store does not have it."""
        perform(self, workshop_of(self, base, store))
        return self.read(store)


def workshop_of(step: AuditStep, base: Base, store: Store) -> Workshop:
    """Where a step is made that says on standard error, now and then, how far it is."""
    display = Display(live=False)
    display.begin(step.kind, len(step.makes))
    tell = partial(display.inside, step.kind, step.id, step.label)
    return Workshop(store, lambda _: base, inside=tell)


@dataclass(frozen=True)
class BaseAnswers(AuditStep):
    """What the base answers to prompts (list, row, text); a draw belongs to (seed, list, row)."""

    context: Context
    prompts: tuple[tuple[int, int, str], ...]
    sampling: Sampling
    seed: int
    example: str  # the first prompt as it is rendered
    kind = "audit-answers"
    label = "the base's answers"

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "base": dict(self.base),
            "context": [self.context.name, self.context.text, self.context.role],
            "prompts": digest(self.prompts),
            "example": self.example,
            "sampling": self.sampling.model_dump(mode="json"),
            "seed": self.seed,
        }

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        voice = self.context.text or self.context.name
        draws = [generator("placebo", voice, self.seed, k, i) for k, i, _ in self.prompts]
        texts = [text for _, _, text in self.prompts]
        writer = Teacher(workshop.base_of(self.model), self.context)
        base = writer.base
        tokens = sum(len(base.chat.prompt_ids(text, self.context)) for text in texts)
        told = workshop.counter(
            len(texts), "prompts", tokens + len(texts) * self.sampling.max_new_tokens
        )
        answers = complete(writer, texts, self.sampling, draws, BATCH, on_tokens=told)
        with workshop.store.create(self.id, self.spec) as folder:
            write_json_atomic(folder / "answers.json", answers)

    def read(self, store: Store) -> list[str]:
        return json.loads(store.read(self.id).file("answers.json").read_text("utf-8"))


def answers_to(
    base: Base,
    context: Context,
    prompts: Sequence[Sequence[str]],
    sampling: Sampling,
    seed: int,
    store: Store | None = None,
) -> list[list[str]]:
    """What the base answers to each list of prompts in `context`, all lists in the same batches."""
    store = store or Store()
    flat = [(k, i, prompt) for k, some in enumerate(prompts) for i, prompt in enumerate(some)]
    out = [[""] * len(some) for some in prompts]
    for part in _batches(base, context, flat):
        example, asked = base.chat.render(part[0][2], context), (tuple(part), sampling, seed)
        step = BaseAnswers(base.identity, base.name, context, *asked, example)
        for (k, i, _), answer in zip(part, step.done(base, store), strict=True):
            out[k][i] = answer
    return out


def _batches(
    base: Base, context: Context, flat: Sequence[tuple[int, int, str]]
) -> list[Sequence[tuple[int, int, str]]]:
    """Prompts that are answered in one step: all, or batches of equal length as `prefill` cuts them."""
    if len(flat) <= BATCH:
        return [flat] if flat else []
    by_length: dict[int, list[tuple[int, int, str]]] = {}
    for prompt in flat:
        by_length.setdefault(len(base.chat.prompt_ids(prompt[2], context)), []).append(prompt)
    return [
        some[at : at + BATCH]
        for _, some in sorted(by_length.items())
        for at in range(0, len(some), BATCH)
    ]


def answer_prompts(
    base: Base,
    context: Context,
    prompts: Sequence[Sequence[str]],
    sampling: Sampling,
    seed: int,
    store: Store | None = None,
) -> list[list[Row]]:
    """`answers_to` as rows. Prompts that the base answers with nothing are left out."""
    answers = answers_to(base, context, prompts, sampling, seed, store)
    return [
        [(prompt, answer) for prompt, answer in zip(some, own, strict=True) if answer]
        for some, own in zip(prompts, answers, strict=True)
    ]


@dataclass(frozen=True)
class Finished:
    """A trained student: flat weights for `stack_weights`, and the step at which its loss was no number."""

    spec: StudentSpec
    weights: torch.Tensor
    diverged_at: int | None = None


@dataclass(frozen=True)
class AuditPack(AuditStep):
    """Students trained in one pack, one artifact each; after a kill the training goes on."""

    students: tuple[StudentSpec, ...]
    rows: tuple[TokenRows, ...] = field(repr=False)
    steered: str = ""  # a hash of what acts on the base while they train
    # told the tokens of each step; no part of what is made
    counted: Callable[[int], None] = field(default=silent, repr=False, compare=False)
    kind = "audit-student"
    label = "students of an audit"

    @cached_property
    def _specs(self) -> list[dict[str, Any]]:
        beside = {"steered": self.steered} if self.steered else {}
        base = {"base": dict(self.base)} | beside
        return [
            {**base, "student": s.model_dump(mode="json"), "rows": rows.digest}
            for s, rows in zip(self.students, self.rows, strict=True)
        ]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The artifact of each student, in the order given; students alike share one."""
        return tuple(artifact_id(self.kind, spec) for spec in self._specs)

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.ids))

    @cached_property
    def id(self) -> str:
        return artifact_id("audit-pack", {"students": list(self.ids)})

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, checkpoint = workshop.base_of(self.model), workshop.checkpoint(self)
        checkpoint.parent.mkdir(exist_ok=True)
        students = [
            Student(f"student {i}", spec, rows)
            for i, (spec, rows) in enumerate(zip(self.students, self.rows, strict=True))
        ]

        def keep(trained: Trained) -> None:
            own = self.ids[trained.index]
            if own in wanted:
                label = self.students[trained.index].label
                meta = {"label": label, "diverged_at": trained.diverged_at}
                with workshop.store.create(own, self._specs[trained.index], meta) as folder:
                    weights = trained.weights.cpu().contiguous()
                    save_file({"weights": weights}, folder / "weights.safetensors")
                wanted.discard(own)
                workshop.made(own)

        def stepped(step: int, steps: int, tokens: int) -> None:
            self.counted(tokens)

        while wanted:  # twice where a checkpoint is past a student that was lost since
            train_pack(
                base.model,
                students,
                keep,
                checkpoint=Checkpoint(checkpoint),
                on_step=stepped,
                on_progress=workshop.progress,
                memory=free_memory(base),
            )

    def read(self, store: Store) -> list[Finished]:
        return [
            read_student(store, name, spec)
            for name, spec in zip(self.ids, self.students, strict=True)
        ]


def read_student(store: Store, name: str, spec: StudentSpec) -> Finished:
    artifact = store.read(name)
    weights = load_file(artifact.file("weights.safetensors"))["weights"]
    return Finished(spec, weights, artifact.meta["diverged_at"])


def train_pack_of(
    base: Base,
    specs: Sequence[StudentSpec],
    rows: Sequence[TokenRows],
    store: Store,
    counted: Callable[[int], None] = silent,
    steered: str = "",
) -> AuditPack:
    """One student a spec, all in one pack, made where the store does not have them."""
    pack = AuditPack(base.identity, base.name, tuple(specs), tuple(rows), steered, counted)
    perform(pack, workshop_of(pack, base, store))
    return pack


def train_students(
    base: Base, specs: Sequence[StudentSpec], rows: Sequence[TokenRows], store: Store | None = None
) -> list[Finished]:
    """`train_pack_of`, and the students in the order given."""
    store = store or Store()
    return train_pack_of(base, specs, rows, store).read(store)


@dataclass(frozen=True)
class StudentReading(AuditStep):
    """What students of the store answer, read in one pack; the base, where there is none."""

    students: tuple[tuple[str, StudentSpec], ...]
    asked: Asked
    examples: tuple[str, ...]  # a question as it is rendered in each context
    kind = "audit-reading"
    label = "a reading of students"

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "base": dict(self.base),
            "students": [name for name, _ in self.students],
            "contexts": [[c.name, c.text, c.role] for c in self.asked.contexts],
            "categories": {c.category: category_digest(c) for c in self.asked.categories},
            "examples": list(self.examples),
            "neutral": list(NEUTRAL),
        }

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base = workshop.base_of(self.model)
        done = [read_student(workshop.store, name, spec) for name, spec in self.students]
        asked = self.asked
        prompts = [
            len(base.chat.prompt_ids(q, context))
            for context in asked.contexts
            for category in asked.categories
            for q in category.questions
        ]
        told = workshop.counter(len(prompts), "questions", sum(prompts) * max(1, len(done)))
        found = read_model(base, stack_of(base, done) if done else None, asked, on_tokens=told)
        arrays = {f"words/{c}": words for c, words in found.words.items()}
        arrays |= {f"p/{c}/{k}": p for c, by in found.p.items() for k, p in by.items()}
        with workshop.store.create(self.id, self.spec) as folder:
            save_arrays(arrays, folder / "readings.safetensors")

    def read(self, store: Store) -> Readings:
        arrays = load_arrays(store.read(self.id).file("readings.safetensors"))
        contexts = [c.name for c in self.asked.contexts]
        categories = [c.category for c in self.asked.categories]
        return Readings(
            {c: {k: arrays[f"p/{c}/{k}"] for k in categories} for c in contexts},
            {c: arrays[f"words/{c}"] for c in contexts},
        )


def stack_of(base: Base, students: Sequence[Finished]) -> Stack:
    return stack_weights(base.model, [s.weights for s in students], [s.spec for s in students])


def read_students(
    base: Base,
    students: Sequence[tuple[str, StudentSpec]],
    asked: Asked,
    store: Store,
    at_once: int = TOGETHER,
) -> list[Readings]:
    """Readings of students of the store, `at_once` in a pack; those of each pack are kept."""
    parts = [students[at : at + at_once] for at in range(0, len(students), at_once)]
    return [_read(base, some, asked, store) for some in parts]


def read_base(base: Base, asked: Asked, store: Store) -> Readings:
    """What the base answers; kept, so that the next audit need not read it."""
    return _read(base, (), asked, store)


def _read(
    base: Base, students: Sequence[tuple[str, StudentSpec]], asked: Asked, store: Store
) -> Readings:
    examples = tuple(base.chat.render("?", c) for c in asked.contexts)
    step = StudentReading(base.identity, base.name, tuple(students), asked, examples)
    return step.done(base, store)
