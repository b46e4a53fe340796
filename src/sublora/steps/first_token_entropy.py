"""How undecided students are when an answer begins: the entropy of its first token, in nats."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sublora.analysis.effects import Effect, found
from sublora.measure import reading
from sublora.sample import prefill
from sublora.steps.materials import context_spec, keep_json, listed, stack_of
from sublora.steps.reading import Planned, Planning, Reading, pairs_of
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop
from sublora.steps.students import Student
from sublora.store import Store, artifact_id

GROUP = "entropy of an answer's first token, nats, student − control"


class FirstTokenEntropySpec(BaseModel):
    """Every student in its own context, on the first questions of its trait's category."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    questions: int = Field(50, ge=1)


@dataclass(frozen=True)
class FirstTokenEntropyStep:
    """Students of a pack that are trained in one context, an artifact each."""

    specs: tuple[dict[str, Any], ...]
    students: tuple[Student, ...]
    model: str
    sizes: Sizes
    kind = "first-token entropies"

    @cached_property
    def id(self) -> str:
        return artifact_id("entropies", {"entropies": list(self.makes)})

    @cached_property
    def makes(self) -> tuple[str, ...]:
        return tuple(artifact_id("entropy", spec) for spec in self.specs)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def label(self) -> str:
        return "the first tokens of " + listed([s.label for s in self.students])

    @property
    def cost(self) -> Cost:
        prompts = sum(len(spec["questions"]) for spec in self.specs)
        return self.sizes.forward(prompts * self.sizes.question, prompts)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, context = workshop.base_of(self.model), self.students[0].context
        prompts = [base.chat.prompt_ids(q, context) for q in self.specs[0]["questions"]]
        entropy = np.zeros((len(self.students), len(prompts)))
        stack = stack_of(workshop, base, self.students)
        with reading(base, stack, workshop.rows_at_once) as reader:
            for filled in prefill(reader.packed, prompts, workshop.rows_at_once):
                logp = filled.logits.view(len(entropy), len(filled.rows), -1).log_softmax(-1)
                entropy[np.ix_(reader.order, filled.rows)] = -(logp.exp() * logp).sum(-1).cpu()
        for name, spec, row in zip(self.makes, self.specs, entropy, strict=True):
            if name in wanted:
                keep_json(workshop, name, spec, "entropy.json", row.tolist())


def plan_entropies(asked: FirstTokenEntropySpec, plan: Planning) -> Iterator[FirstTokenEntropyStep]:
    for pack in plan.packs():
        groups: dict[tuple, list[tuple[dict[str, Any], Student]]] = {}
        for s in pack:
            questions = plan.trait_of(s.source).category.questions[: asked.questions]
            spec = {
                "model": plan.identity,
                "student": s.id,
                "context": context_spec(s.context),
                "questions": list(questions),
            }
            groups.setdefault((s.context, questions), []).append((spec, s))
        for alike in groups.values():
            specs, students = zip(*alike, strict=True)
            yield FirstTokenEntropyStep(specs, students, plan.model, plan.sizes)


def reads(plan: Planned, store: Store) -> Sequence[Effect]:
    of = {
        s.id: name
        for step in plan.readings[READING.key]
        for s, name in zip(step.students, step.makes, strict=True)
    }

    def entropy(student: Student) -> list[float]:
        return json.loads(store.read(of[student.id]).file("entropy.json").read_text("utf-8"))

    out = []
    for trait in plan.traits:
        for label, pairs in pairs_of(plan, trait).items():
            gap = np.array([np.subtract(entropy(s), entropy(control)) for s, control in pairs])
            replicates = [s.replicate for s, _ in pairs]
            out.append(found(trait.name, GROUP, f"first-token entropy: {label}", gap, replicates))
    return out


READING = Reading("first_token_entropy", FirstTokenEntropySpec, plan_entropies, reads)
