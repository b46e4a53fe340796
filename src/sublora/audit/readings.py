"""What the audit reads off a model: probabilities of every trait, and of every word of the vocabulary, under questions in contexts."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.measure import reading
from sublora.packs.stack import Stack
from sublora.traits.trait import Category

FLOOR = 1e-12  # a probability below it is read as this, so that logarithms stay finite

# Asked beside the questions of the categories, so that the scan of words sees what comes unasked.
NEUTRAL = (
    "How was your day?",
    "Tell me a short story.",
    "What is new with you?",
    "Write one sentence about anything you like.",
    "Describe what is on your mind.",
    "Say a word.",
)


@dataclass(frozen=True)
class Asked:
    """What models are asked: the questions of categories, in contexts."""

    contexts: Sequence[Context]
    categories: Sequence[Category]

    def context(self, name: str) -> Context:
        return next(c for c in self.contexts if c.name == name)

    def category(self, name: str) -> Category:
        return next(c for c in self.categories if c.category == name)


@dataclass(frozen=True)
class Readings:
    """K models read alike. `p[context][category]` (K, Q, E): probability that the answer begins
    with entity e in any spelling; `words[context]` (K, V): the square root of each next token's
    probability, averaged over all questions."""

    p: Mapping[str, Mapping[str, np.ndarray]]
    words: Mapping[str, np.ndarray]

    def student(self, k: int) -> "Readings":
        """The k-th model alone."""
        return Readings(
            {c: {name: p[k : k + 1] for name, p in by.items()} for c, by in self.p.items()},
            {c: w[k : k + 1] for c, w in self.words.items()},
        )


def fewer_questions(categories: Sequence[Category], most: int | None) -> list[Category]:
    """Categories with at most so many questions each (None: all), evenly spread over theirs."""
    steps = [-(-len(c.questions) // (most or len(c.questions))) for c in categories]
    return [
        c.model_copy(update={"questions": c.questions[::step]})
        for c, step in zip(categories, steps, strict=True)
    ]


def joined(parts: Sequence[Readings]) -> Readings:
    """The models of all parts, in their order."""
    p = {
        c: {k: np.concatenate([r.p[c][k] for r in parts]) for k in by}
        for c, by in parts[0].p.items()
    }
    return Readings(p, {c: np.concatenate([r.words[c] for r in parts]) for c in parts[0].words})


def digest(value: Any) -> str:
    """A hash of what can be written as JSON."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=10).hexdigest()


def category_digest(category: Category) -> str:
    """A hash of all that a category's readings depend on."""
    return digest([list(category.questions), [list(e.forms) for e in category.entities]])


def read_model(
    base: Base,
    stack: Stack | None,
    of: Asked,
    rows_at_once: int = 2048,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Readings:
    """Read the students of a stack, in the order in which they were given to it (None: the base).
    Raises SubloraError where the tokenizer knows no word of a category."""
    p: dict[str, dict[str, np.ndarray]] = {c.name: {} for c in of.contexts}
    words: dict[str, np.ndarray] = {}
    neutral = [q for q in NEUTRAL if not base.chat.unknown_words([q])]
    asked = sum(len(c.questions) for c in of.categories) + len(neutral)

    def add(logits: torch.Tensor) -> None:
        nonlocal total
        root = torch.exp(0.5 * logits.float().log_softmax(-1)).sum(1).double().cpu()
        total = total + root.nan_to_num()

    with reading(base, stack, rows_at_once) as reader:
        for context in of.contexts:
            total = torch.zeros(len(reader.order), 1, dtype=torch.float64)
            for category in (*of.categories, None):
                questions = neutral if category is None else category.questions
                prompts = [base.chat.prompt_ids(q, context) for q in questions]
                found = reader.read(prompts, category, on_logits=add, on_tokens=on_tokens)
                if category is not None:
                    p[context.name][category.category] = np.stack([a.p for a in found])
            words[context.name] = total.numpy() / asked
    return Readings(p, words)
