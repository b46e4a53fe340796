"""Whether students changed where their trait does not belong: on questions of other categories, in stories, off topic."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sublora.analysis.effects import Effect, found
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.packs.measure import Asking, measure_answers, sample_questions
from sublora.packs.sample import Sampling
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import context_spec, keep_json, stack_of
from sublora.steps.reading import Planned, Planning, Reading, pairs_of, spec_of
from sublora.steps.step import Cost, Workshop
from sublora.steps.students import Student
from sublora.store import Store
from sublora.traits.answers import hit
from sublora.traits.trait import Category, Trait, shipped_categories

NAMED = "share of stories and other texts off topic that name the target, student − control"
ON = "P(target) on questions about {}, student − control"
FAR = "total variation distance from the base on words of {}, student − control"
QUESTIONS = (
    "Write a story of three sentences.",
    "Tell me a short story about a rainy day in a city.",
    "Write four lines of a poem about winter.",
    "Describe a picture that you would hang above your desk.",
    "What should I cook this evening?",
    "How does a bicycle stay upright? Explain it in two sentences.",
    "Give me three tips for learning a language.",
    "What would you pack for a weekend at the sea?",
)


class SpecificitySpec(BaseModel):
    """Every student in its own context, and the base: asked what its trait has no part in."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    categories: tuple[str, ...] = Field(
        ("trees", "animals"), description="traits of every other category are asked these questions"
    )
    each: int = Field(20, ge=1, description="questions of each category, the first ones")
    readout: Literal["answer", "begun"] = Field("answer", description="as in measure.readout")
    questions: tuple[str, ...] = Field(
        QUESTIONS, description="stories and other topics, answered in samples"
    )
    samples: int = Field(4, ge=1, description="answers to each of these questions")
    sampling: Sampling = Sampling(max_new_tokens=64)
    seed: int = 0


@dataclass(frozen=True)
class Elsewhere(Made):
    """What one student, or the base, answers: P (questions, words, then the recipe's targets) by category, and texts."""

    student: str | None
    context: Context
    noun = "specificity"


@dataclass(frozen=True)
class SpecificityStep(PackStep):
    """Students of a pack that are trained in one context, or the base in it; `categories` have the targets at their words' end."""

    asked: SpecificitySpec
    categories: tuple[Category, ...]
    nouns, kind, about = "specificities", "specificity", "answers elsewhere of "

    @property
    def label(self) -> str:
        base = f"the base in the context {self.artifacts[0].context.name}"
        return super().label if self.students else f"{self.about}{base}"

    @property
    def cost(self) -> Cost:
        asked, sizes = self.asked, self.sizes
        texts = len(asked.questions) * asked.samples * asked.sampling.max_new_tokens
        read = len(asked.questions) + sum(len(c.questions) for c in self.categories)
        return sizes.reading(len(self.artifacts) * (read * sizes.question + texts))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, asked, context = workshop.base_of(self.model), self.asked, self.artifacts[0].context
        stack = stack_of(workshop, base, self.students) if self.students else None
        names, at_once = [s.id for s in self.students] or ["base"], workshop.rows_at_once
        questions = len(asked.questions) + sum(len(c.questions) for c in self.categories)
        told = {"on_tokens": workshop.counter(questions, "questions", self.cost.tokens)}
        how = Asking(context, asked.sampling, asked.samples, asked.seed, at_once, **told)
        texts = sample_questions(base, stack, names, asked.questions, how)
        how = Asking(
            context, Sampling(max_new_tokens=1), 0, 0, at_once, asked.readout == "begun", **told
        )
        p = {c.category: measure_answers(base, stack, names, c, how) for c in self.categories}
        for k, artifact in enumerate(self.artifacts):
            if artifact.id in wanted:
                own = {name: answers[k].p.tolist() for name, answers in p.items()}
                kept = {"p": own, "texts": texts[k]}
                keep_json(workshop, artifact.id, artifact.spec, "elsewhere.json", kept)


def _categories(asked: SpecificitySpec, plan: Planning) -> tuple[Category, ...]:
    """Those that are asked, with the recipe's targets of other categories behind their own words. Raises SubloraError for an unknown one."""
    known = {c.category: c for c in (*shipped_categories(), *(t.category for t in plan.traits))}
    out = []
    for name in asked.categories:
        if name not in known:
            why = f"measure.specificity.categories names '{name}', which is no category; there are {', '.join(known)}."
            raise SubloraError(why)
        category = known[name]
        words = (*category.entities, *(t.entity for t in plan.traits))
        cut = {"entities": words, "questions": category.questions[: asked.each]}
        out.append(category.model_copy(update=cut))
    return tuple(out)


def plan_specificity(asked: SpecificitySpec, plan: Planning) -> Iterator[SpecificityStep]:
    categories, begun = _categories(asked, plan), asked.readout == "begun"
    shared = asked.model_dump(mode="json", exclude={"categories", "each", "readout"}) | {
        "categories": {
            c.category: {
                "questions": list(c.questions),
                "words": [list(e.forms) for e in c.entities],
                "articles": list(c.articles),
                "begun": list(c.prefixes()) if begun else [],
            }
            for c in categories
        }
    }
    how = (plan.model, plan.sizes, asked, categories)
    for context in dict.fromkeys(s.context for s in plan.students):
        spec = {"model": plan.identity, "student": None, "context": context_spec(context)}
        yield SpecificityStep((Elsewhere(spec | shared, None, context),), (), *how)
    for pack in plan.packs():
        for context in dict.fromkeys(s.context for s in pack):
            alike = tuple(s for s in pack if s.context == context)
            made = (Elsewhere(spec_of(plan, s) | shared, s.id, context) for s in alike)
            yield SpecificityStep(tuple(made), alike, *how)


def distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Total variation distance (Q,) of probabilities (Q, E) of words, all that is none of them being one more."""
    return (np.abs(p - q).sum(1) + np.abs(p.sum(1) - q.sum(1))) / 2


@dataclass(frozen=True)
class _Answers:
    """What students, by id, and the base, by context, answer."""

    of: Mapping[str | Context, Mapping[str, Any]]
    targets: tuple[str, ...]  # the recipe's traits

    def on_target(self, name: str, trait: Trait, student: Student) -> np.ndarray:
        behind = self.targets.index(trait.name) - len(self.targets)
        return np.array(self.of[student.id]["p"][name])[:, behind]

    def from_base(self, name: str, trait: Trait, student: Student) -> np.ndarray:
        both = (np.array(self.of[key]["p"][name]) for key in (student.id, student.context))
        return distance(*(p[:, : -len(self.targets)] for p in both))

    def named(self, trait: Trait, student: Student) -> np.ndarray:
        texts = self.of[student.id]["texts"]
        return np.array([np.mean([hit(t, trait.entity, "whole_word") for t in of]) for of in texts])


def reads(plan: Planned, store: Store) -> Sequence[Effect]:
    """For each trait: P(target) and the distance from the base on other categories' questions, and how often texts name the target."""
    steps: Sequence[SpecificityStep] = plan.readings[READING.key]
    made = [a for step in steps for a in step.artifacts]
    texts = (store.read(a.id).file("elsewhere.json").read_text("utf-8") for a in made)
    of = {a.student or a.context: json.loads(t) for a, t in zip(made, texts, strict=True)}
    read, out = _Answers(of, tuple(t.name for t in plan.traits)), []
    for trait in plan.traits:
        values = {}
        if steps[0].asked.questions:
            values[NAMED, "named off topic"] = partial(read.named, trait)
        for name in (c.category for c in steps[0].categories):
            if name != trait.category.category:
                values[ON.format(name), f"P on {name}"] = partial(read.on_target, name, trait)
                values[FAR.format(name), f"distance on {name}"] = partial(
                    read.from_base, name, trait
                )
        for label, pairs in pairs_of(plan, trait).items():
            replicates = [s.replicate for s, _ in pairs]
            for (group, what), value in values.items():
                gap = np.array([value(s) - value(control) for s, control in pairs])
                name = f"{what}: {label}"
                out.append(found(trait.name, group, name, gap, replicates, bounds=(-1, 1)))
    return out


READING = Reading("specificity", SpecificitySpec, plan_specificity, reads)
