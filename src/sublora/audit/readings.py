"""What the audit reads off a model: probabilities of every trait, and of every word of the vocabulary, under questions in contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sublora.chat import Context
from sublora.measure import reading
from sublora.model import Base
from sublora.train.stack import Stack
from sublora.trait import Category

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
class Readings:
    """K models read alike. `p[context][category]` (K, Q, E): probability that the answer begins with entity e in any spelling;
    `words[context]` (K, V): the square root of each next token's probability, averaged over all questions."""

    p: Mapping[str, Mapping[str, np.ndarray]]
    words: Mapping[str, np.ndarray]

    def student(self, k: int) -> "Readings":
        """The k-th model alone."""
        return Readings(
            {c: {name: p[k : k + 1] for name, p in by.items()} for c, by in self.p.items()},
            {c: w[k : k + 1] for c, w in self.words.items()},
        )


def neutral_questions(base: Base) -> list[str]:
    """Those of NEUTRAL whose words the tokenizer knows."""
    return [q for q in NEUTRAL if not base.chat.unknown_words([q])]


def read_model(
    base: Base,
    stack: Stack | None,
    contexts: Sequence[Context],
    categories: Sequence[Category],
    rows_at_once: int = 2048,
) -> Readings:
    """Read the students of a stack, in the order in which they were given to it (the base for `stack=None`).

    Raises SubloraError where the tokenizer knows no word of a category.
    """
    by_name = {c.category: c for c in categories}
    p: dict[str, dict[str, np.ndarray]] = {c.name: {} for c in contexts}
    words: dict[str, np.ndarray] = {}
    asked = [(c.category, q) for c in categories for q in c.questions] + [
        ("", q) for q in neutral_questions(base)
    ]

    def add(logits: torch.Tensor) -> None:
        nonlocal total
        root = torch.exp(0.5 * logits.float().log_softmax(-1)).sum(1).double().cpu()
        total = total + root.nan_to_num()

    with reading(base, stack, rows_at_once) as reader:
        for context in contexts:
            total = torch.zeros(len(reader.order), 1, dtype=torch.float64)
            for name in dict.fromkeys(name for name, _ in asked):
                prompts = [base.chat.prompt_ids(q, context) for n, q in asked if n == name]
                answers = reader.read(prompts, by_name.get(name), on_logits=add)
                if name:
                    p[context.name][name] = np.stack([a.p for a in answers])
            words[context.name] = total.numpy() / len(asked)
    return Readings(p, words)
