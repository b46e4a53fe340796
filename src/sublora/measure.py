"""Measurements: what a pack of students answers to a category's questions, teacher-forced and sampled, and its held-out loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sublora.chat import Chat, Context
from sublora.errors import SubloraError
from sublora.model import Base
from sublora.sample import Sampling, prefill, sample_answers, score_sequences
from sublora.seeds import generator
from sublora.train.packed_model import PackedModel
from sublora.train.rows import TokenRows, assemble
from sublora.train.stack import Stack
from sublora.trait import Category, Entity


@dataclass(frozen=True)
class Answers:
    """One student in one context. `p` (Q, E): probability that the answer begins with entity e in any of its spellings;
    0 where a diverged student's logits are no numbers. `samples` [Q][S]: sampled answers as text."""

    p: np.ndarray
    samples: list[list[str]]


def spellings(chat: Chat, entity: Entity) -> list[tuple[int, ...]]:
    """All token sequences that spell an entity: name, plural, aliases, as given, lower case and capitalised, with and without
    a space before. None begins with another one, so their probabilities add up without counting anything twice.

    Spellings that the tokenizer cannot represent are left out; the list may be empty.
    """
    unknown = chat.tokenizer.unk_token_id
    found: set[tuple[int, ...]] = set()
    for form in entity.forms:
        for cased in (form, form.lower(), form[0].upper() + form[1:]):
            for text in (cased, " " + cased):
                ids = tuple(chat.answer_ids(text))
                if ids and unknown not in ids:
                    found.add(ids)
    return sorted(s for s in found if not any(s != t and s[: len(t)] == t for t in found))


def candidate_sequences(chat: Chat, category: Category) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """(sequences, owner): every spelling of every entity, and the entity's index of each."""
    sequences, owner = [], []
    for i, entity in enumerate(category.entities):
        for sequence in spellings(chat, entity):
            sequences.append(sequence)
            owner.append(i)
    if not sequences:
        raise SubloraError(
            f"The tokenizer knows no word of the category {category.category}, so nothing can be measured; use another trait or model."
        )
    return sequences, np.array(owner)


def measure_answers(
    base: Base,
    stack: Stack | None,
    names: Sequence[str],
    context: Context,
    category: Category,
    sampling: Sampling,
    samples: int,
    seed: int,
    rows_at_once: int = 1024,
) -> list[Answers]:
    """Answers of the students of a stack, in the order in which they were given to it, as `names` is (the base for `stack=None`).

    A student's draws are seeded by its name, the context's text and the question, so they do not depend on the pack or the batch.
    """
    chat, count = base.chat, len(category.questions)
    prompts = [chat.prompt_ids(question, context) for question in category.questions]
    sequences, owner = candidate_sequences(chat, category)
    shape = (count, samples, sampling.max_new_tokens)
    state = context.name if context.text is None else f"text:{context.text}"  # a context's own name is no part of it
    order = stack.order if stack else [0]
    uniforms = np.stack([generator("answers", seed, names[i], state, category.category).random(shape) for i in order])
    p = np.zeros((len(names), count, len(category.entities)))
    texts: list[list[list[str]]] = [[[] for _ in range(count)] for _ in names]
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(rows_at_once)
        for filled in prefill(packed, prompts, rows_at_once):
            logp = score_sequences(packed, filled, sequences, rows_at_once).numpy()
            for c in range(len(sequences)):
                p[np.ix_(order, filled.rows, owner[c : c + 1])] += np.nan_to_num(np.exp(logp[:, :, c : c + 1]))
            drawn = sample_answers(packed, filled, uniforms[:, filled.rows], sampling, chat.stop_ids)
            for k, rows in zip(order, drawn, strict=True):
                for row, answers in zip(filled.rows, rows, strict=True):
                    texts[k][row] = [chat.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    return [Answers(p[k], texts[k]) for k in range(len(names))]


def heldout_losses(base: Base, stack: Stack | None, rows: Sequence[TokenRows], batch: int = 32) -> list[float]:
    """Mean loss per completion token, nats, of each student on all of its own held-out rows, in the order given."""
    size, order = (stack.size, stack.order) if stack else (1, [0])
    rows = [rows[i] for i in order]
    total, weight = np.zeros(size), np.zeros(size)
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        count = max(len(r) for r in rows)
        packed.form_weights(batch * 64)
        for at in range(0, count, batch):
            # a student that has no rows left reads its last one again, which no longer counts
            chosen = [np.arange(min(at, len(r) - 1), min(len(r), at + batch)) for r in rows]
            losses = packed.losses(assemble(rows, chosen)).double().cpu().numpy()
            left = np.array([at < len(r) for r in rows])
            tokens = left * np.array([r.loss[c].sum() for r, c in zip(rows, chosen, strict=True)])
            total, weight = total + losses * tokens, weight + tokens
    out = np.zeros(size)
    out[order] = total / weight
    return out.tolist()
