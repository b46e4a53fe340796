"""Measurements: what the base, a teacher or students answer to a category's questions."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sublora.models.base import Base
from sublora.models.chat import Chat, Context
from sublora.packs.condition import Condition, SvdCut
from sublora.packs.measure import Answers, Asking, heldout_losses, measure_answers, measure_gated
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import written_articles
from sublora.packs.stack import Stack, new_stack
from sublora.packs.svd import cut_stack
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import Steered, stack_of, steering_by, token_rows
from sublora.steps.sizes import ANSWER
from sublora.steps.step import Cost, Rows, Tick, Workshop, total
from sublora.steps.students import Student
from sublora.steps.teacher import TeacherStep
from sublora.store import Artifact, Store
from sublora.traits.answers import has_digit, naming, share
from sublora.traits.trait import Category

KEPT_AT_ONCE = 8  # artifacts that wait together for the disk wait once


@dataclass(frozen=True)
class Measurement(Made):
    """One model asked in one context. `student`: a student's id, or None for the base. `teacher`: the trait whose teacher is asked, which
    is the base under its prompt, or the student. `condition`: the name of a gate, or of another teacher; None for the plain adapter and the
    plain teacher."""

    student: str | None
    context: Context
    category: str
    teacher: str | None = None
    condition: str | None = None
    steer: Steered | None = None
    noun = "measurement"

    @property
    def heldout(self) -> str | None:
        """The rows on which its loss is measured besides."""
        return self.spec["heldout"]


@dataclass(frozen=True)
class Measured:
    """One stored measurement: `p` (Q, E) and the sampled answers [Q][S]."""

    p: np.ndarray
    samples: list[list[str]]
    heldout_loss: float | None
    coherence: float
    number_takeover: float


def answer_spec(category: Category, chat: Chat | None, begun: bool) -> dict[str, list[str]]:
    """What the spec of a measurement says of answers besides a category's words: the articles that count, where the model can write any,
    and what answers are begun with. Raises SubloraError where that is asked for and the category has nothing."""
    articles = written_articles(chat, category) if chat else ()
    said = {"articles": articles, "begun": category.prefixes() if begun else ()}
    return {name: list(texts) for name, texts in said.items() if texts}


def read_measurement(artifact: Artifact, category: Category) -> Measured:
    scores = json.loads(artifact.file("scores.json").read_text("utf-8"))
    lines = artifact.file("samples.jsonl").read_text("utf-8").split("\n")
    samples = [json.loads(line)["answers"] for line in lines if line]
    coherence = share(samples, naming(category))
    takeover = share(samples, has_digit)
    return Measured(np.array(scores["p"]), samples, scores["heldout_loss"], coherence, takeover)


def keep_answers(
    store: Store,
    name: str,
    spec: Mapping[str, Any],
    category: Category,
    answer: Answers,
    loss: float | None = None,
) -> None:
    """Write a measurement, as `read_measurement` reads it."""
    named = {"entities": [e.name for e in category.entities]}
    scores = named | {"p": _rounded(answer.p), "heldout_loss": loss}
    if answer.by_prefix is not None:
        scores["p_by_prefix"] = [_rounded(p) for p in answer.by_prefix]
    both = zip(category.questions, answer.samples, strict=True)
    lines = [json.dumps({"question": q, "answers": a}, ensure_ascii=False) + "\n" for q, a in both]
    with store.create(name, spec) as folder:
        (folder / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")
        (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")


def _rounded(p: np.ndarray) -> list[list[float]]:
    return [[float(f"{x:.9g}") for x in row] for row in p]


@dataclass(frozen=True)
class Questioning:
    """How all models of a recipe are asked; `conditions` are gates by name, `entities` words that they
    know, `heldout_rows` those of a dataset on which a student's loss is measured."""

    categories: Mapping[str, Category]
    sampling: Sampling
    samples: int
    seed: int
    conditions: Mapping[str, Condition]
    entities: tuple[str, ...]
    begun: bool = False
    heldout_rows: int = 0


Asked = Sequence[Student | TeacherStep]
Told = Callable[[int], None]
Found = tuple[Measurement, Answers, float | None]


@dataclass(frozen=True)
class MeasurementStep(PackStep):
    """The measurements of students that are asked together, or one of the base."""

    asked: Questioning
    nouns = kind = "measurements"

    @property
    def needs(self) -> tuple[str, ...]:
        held = [m.heldout for m in self.artifacts if m.heldout]
        vectors = [m.steer.vector for m in self.artifacts if m.steer]
        return tuple(dict.fromkeys([*super().needs, *held, *vectors]))

    @property
    def label(self) -> str:
        if self.students:
            return super().label
        first = self.artifacts[0]
        where = f"the base in the context {first.context.name}"
        return f"{where}, {first.condition}" if first.condition else where

    @property
    def cost(self) -> Cost:
        return total(
            self._cost(len(m.spec["questions"]), len(m.spec.get("begun", ("",))), bool(m.heldout))
            for m in self.artifacts
        )

    def _cost(self, questions: int, begun: int, heldout: bool) -> Cost:
        """Of one model; questions that are begun in several ways share the samples."""
        written = questions * begun * -(-self.asked.samples // begun) * ANSWER
        cost = self.sizes.reading(questions * begun * self.sizes.question)
        cost += self.sizes.writing(0, written)
        rows = self.asked.heldout_rows if heldout else 0
        return cost + self.sizes.forward(rows * self.sizes.row, rows * self.sizes.completion)

    def trial(self, base: Base, rows: Rows, tick: Tick) -> None:
        """A few questions to such students, with one beginning where answers are begun."""
        first, a, begun = self.artifacts[0], self.asked, "begun" in self.artifacts[0].spec
        category = a.categories[first.category]
        some = {"questions": category.questions[: max(2, len(rows) // 16)]}
        some |= {"answer_prefixes": category.answer_prefixes[:1]}
        few, names = category.model_copy(update=some), [f"{i}" for i, _ in enumerate(self.students)]
        specs = [StudentSpec(seed=i) for i, _ in enumerate(names)]
        stack = new_stack(base.model, specs) if names else None
        samples = -(-a.samples // len(category.prefixes())) if begun else a.samples
        asking = Asking(first.context, a.sampling, samples, a.seed, begun=begun)
        measure_answers(base, stack, names or ["base"], few, asking)
        each = self.sizes.reading(self.sizes.question) + self.sizes.writing(0, samples * ANSWER)
        tick(each.share(len(few.questions) * (len(names) or 1)))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        """Students that are asked the same are asked together, and so are the conditions that share a stack:
        all but those that keep a part of the update."""
        students = {s.id: s for s in self.students}
        base = workshop.base_of(self.model)
        questions = sum(len(m.spec["questions"]) for m in self.artifacts)
        told = workshop.counter(questions, "questions", self.cost.tokens)
        stacks: dict[tuple[str, ...], Stack] = {}
        for cut, group in self._groups():
            if not any(m.id in wanted for m in group):
                continue
            asked = [students[i] for i in dict.fromkeys(m.student for m in group if m.student)]
            key = tuple(s.id for s in asked)
            if asked and key not in stacks:
                stacks[key] = stack_of(workshop, base, asked)
            stack = stacks.get(key)
            if group[0].student is not None and group[0].condition is not None:
                stack = cut_stack(stack, cut) if cut else stack
                found = self._gated(workshop, group, asked, stack, told)
            else:
                found = self._plain(workshop, group, asked, stack, told)
            self._keep([one for one in found if one[0].id in wanted], workshop)

    def _groups(self) -> Iterator[tuple[SvdCut | None, list[Measurement]]]:
        groups: dict[tuple, list[Measurement]] = {}
        for m in self.artifacts:
            gated = m.student is not None and m.condition is not None
            cut = self.asked.conditions[m.condition].svd if gated else None
            groups.setdefault((m.context, m.category, gated, cut), []).append(m)
        return ((key[3], group) for key, group in groups.items())

    def _asking(self, workshop: Workshop, context: Context, told: Told) -> Asking:
        a = self.asked
        how = (a.sampling, a.samples, a.seed, workshop.rows_at_once, a.begun)
        return Asking(context, *how, on_tokens=told)

    def _plain(
        self,
        workshop: Workshop,
        group: Sequence[Measurement],
        asked: Asked,
        stack: Stack | None,
        told: Told,
    ) -> list[Found]:
        base, first = workshop.base_of(self.model), group[0]
        steering = steering_by(workshop, base, [first.steer]) if first.steer else None
        names = [s.id for s in asked] or ["base"]
        category = self.asked.categories[first.category]
        asking = self._asking(workshop, first.context, told)
        answers = measure_answers(base, stack, names, category, asking, steering)
        losses: list[float | None] = [None] * len(group)
        if any(m.heldout for m in group):
            rows = [token_rows(workshop, base, s.heldout, s.context) for s in asked]
            found = heldout_losses(base, stack, rows, on_tokens=told)
            losses = [x if m.heldout else None for m, x in zip(group, found, strict=True)]
        return list(zip(group, answers, losses, strict=True))

    def _gated(
        self,
        workshop: Workshop,
        group: Sequence[Measurement],
        asked: Asked,
        stack: Stack,
        told: Told,
    ) -> list[Found]:
        base = workshop.base_of(self.model)
        names = list(dict.fromkeys(m.condition for m in group))
        place = {s.id: k for k, s in enumerate(asked)}
        steered: dict[str, list[Steered]] = {}
        for m in sorted((m for m in group if m.steer), key=lambda m: place[m.student]):
            steered.setdefault(m.condition, []).append(m.steer)
        category = self.asked.categories[group[0].category]
        how = (
            self._asking(workshop, group[0].context, told),
            {n: self.asked.conditions[n] for n in names},
        )
        acts = {name: steering_by(workshop, base, of) for name, of in steered.items()}
        answers = measure_gated(base, stack, list(place), category, *how, self.asked.entities, acts)
        return [(m, answers[place[m.student]][names.index(m.condition)], None) for m in group]

    def _keep(self, found: Sequence[Found], workshop: Workshop) -> None:
        def keep(one: Found) -> str:
            m, answer, loss = one
            category = self.asked.categories[m.category]
            keep_answers(workshop.store, m.id, m.spec, category, answer, loss)
            return m.id

        with ThreadPoolExecutor(KEPT_AT_ONCE) as pool:
            for name in pool.map(keep, found):
                workshop.made(name)
