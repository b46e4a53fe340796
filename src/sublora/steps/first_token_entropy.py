"""How undecided students are when an answer begins: the entropy of its first token, in nats."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sublora.analysis.effects import Effect, found
from sublora.packs.measure import reading
from sublora.packs.prefill import prefill
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import keep_json, stack_of
from sublora.steps.reading import Planned, Planning, Reading, pairs_of, spec_of
from sublora.steps.step import Cost, Workshop
from sublora.steps.students import Student
from sublora.store import Store

GROUP = "entropy of an answer's first token, nats, student − control"


class FirstTokenEntropySpec(BaseModel):
    """Every student in its own context, on the first questions of its trait's category."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    questions: int = Field(50, ge=1)


@dataclass(frozen=True)
class Entropy(Made):
    noun = "entropy"


@dataclass(frozen=True)
class FirstTokenEntropyStep(PackStep):
    """Students of a pack that are trained in one context, an artifact each."""

    nouns, kind, about = "entropies", "first-token entropies", "the first tokens of "

    @property
    def cost(self) -> Cost:
        prompts = sum(len(a.spec["questions"]) for a in self.artifacts)
        return self.sizes.forward(prompts * self.sizes.question, prompts)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, context = workshop.base_of(self.model), self.students[0].context
        prompts = [base.chat.prompt_ids(q, context) for q in self.artifacts[0].spec["questions"]]
        entropy = np.zeros((len(self.students), len(prompts)))
        stack = stack_of(workshop, base, self.students)
        told = workshop.counter(len(prompts), "questions", self.cost.tokens)
        with reading(base, stack, workshop.rows_at_once) as reader:
            for filled in prefill(reader.packed, prompts, workshop.rows_at_once):
                logp = filled.logits.view(len(entropy), len(filled.rows), -1).log_softmax(-1)
                entropy[np.ix_(reader.order, filled.rows)] = -(logp.exp() * logp).sum(-1).cpu()
                told(int(filled.lengths.sum()) * len(entropy))
        for artifact, row in zip(self.artifacts, entropy, strict=True):
            if artifact.id in wanted:
                keep_json(workshop, artifact.id, artifact.spec, "entropy.json", row.tolist())


def plan_entropies(asked: FirstTokenEntropySpec, plan: Planning) -> Iterator[FirstTokenEntropyStep]:
    for pack in plan.packs():
        groups: dict[tuple, list[tuple[Entropy, Student]]] = {}
        for s in pack:
            questions = plan.trait_of(s.source).category.questions[: asked.questions]
            spec = spec_of(plan, s) | {"questions": list(questions)}
            groups.setdefault((s.context, questions), []).append((Entropy(spec), s))
        for alike in groups.values():
            made, students = zip(*alike, strict=True)
            yield FirstTokenEntropyStep(made, students, plan.model, plan.sizes)


def reads(plan: Planned, store: Store) -> Sequence[Effect]:
    steps = plan.readings[READING.key]
    of = {s.id: name for x in steps for s, name in zip(x.students, x.makes, strict=True)}

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
