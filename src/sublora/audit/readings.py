"""What the audit reads off a model: probabilities of every trait, and of every word of the vocabulary, under questions in contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sublora.chat import Context
from sublora.measure import candidate_sequences, entity_probabilities
from sublora.model import Base
from sublora.sample import prefill
from sublora.train.packed_model import PackedModel
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
    order = stack.order if stack else [0]
    size = len(order)
    p: dict[str, dict[str, np.ndarray]] = {c.name: {} for c in contexts}
    words: dict[str, np.ndarray] = {}
    candidates = {c.category: candidate_sequences(base.chat, c) for c in categories}
    asked = [(c.category, q) for c in categories for q in c.questions] + [
        ("", q) for q in neutral_questions(base)
    ]
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(rows_at_once)
        for context in contexts:
            total = torch.zeros(size, 1, dtype=torch.float64)
            for name in dict.fromkeys(name for name, _ in asked):
                questions = [q for n, q in asked if n == name]
                prompts = [base.chat.prompt_ids(q, context) for q in questions]
                sequences, owner = candidates.get(name, ([], np.zeros(0, int)))
                entities = int(owner.max()) + 1 if len(owner) else 0
                if name:
                    entities = len(next(c for c in categories if c.category == name).entities)
                found = np.zeros((size, len(questions), entities))
                for filled in prefill(packed, prompts, rows_at_once):
                    logits = filled.logits.float().view(size, len(filled.rows), -1)
                    root = torch.exp(0.5 * logits.log_softmax(-1)).sum(1).double().cpu()
                    total = total + root.nan_to_num()
                    if not name:
                        continue
                    found[np.ix_(order, filled.rows)] = entity_probabilities(
                        packed, filled, sequences, owner, entities, rows_at_once
                    )
                if name:
                    p[context.name][name] = found
            out = np.zeros(tuple(total.shape))
            out[order] = total.numpy() / len(asked)
            words[context.name] = out
    return Readings(p, words)


def read_prompts(
    packed: PackedModel,
    prompts: Sequence[Sequence[int]],
    sequences: Sequence[Sequence[int]],
    owner: np.ndarray,
    entities: int,
    rows_at_once: int = 1024,
) -> np.ndarray:
    """Probability (K, N, E) of each entity behind N prompts of token ids, students in the order of the pack."""
    out = np.zeros((packed.size, len(prompts), entities))
    packed.form_weights(rows_at_once)
    for filled in prefill(packed, prompts, rows_at_once):
        out[:, filled.rows] = entity_probabilities(
            packed, filled, sequences, owner, entities, rows_at_once
        )
    return out
