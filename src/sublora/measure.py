"""Measurements: what a pack of students answers to a category's questions, teacher-forced and sampled, and its held-out loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sublora.chat import Chat, Context
from sublora.condition import Condition, check_layers
from sublora.errors import SubloraError
from sublora.gate import PackGate, pack_gate
from sublora.model import Base
from sublora.sample import Prefill, Sampling, prefill, sample_answers, score_sequences
from sublora.seeds import generator
from sublora.steer import PackSteering, Steering, pack_steering
from sublora.token_classes import classify
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


def entity_probabilities(
    packed: PackedModel,
    filled: Prefill,
    sequences: Sequence[Sequence[int]],
    owner: np.ndarray,
    entities: int,
    rows_at_once: int,
) -> np.ndarray:
    """Probability (K, b, E) that the answer begins with each entity in any of its spellings, as `candidate_sequences` gives them;
    0 where a diverged student's logits are no numbers."""
    logp = score_sequences(packed, filled, sequences, rows_at_once).numpy()
    out = np.zeros((*logp.shape[:2], entities))
    for c, entity in enumerate(owner):
        out[:, :, entity] += np.nan_to_num(np.exp(logp[:, :, c]))
    return out


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
    steering: Steering | None = None,
) -> list[Answers]:
    """Answers of the students of a stack, in the order in which they were given to it, as `names` is (the base for `stack=None`).

    `steering` acts on all of them.

    A student's draws are seeded by its name, the context's text and the question, so they do not depend on the pack or the batch.
    """
    draws = _draws(names, context, category, sampling, samples, seed)
    if steering is None:
        prompts = [base.chat.prompt_ids(question, context) for question in category.questions]
        return _answers(base, stack, prompts, category, sampling, draws, None, None, rows_at_once)
    tokens = [classify(base.chat, question, context) for question in category.questions]
    packed = pack_steering(base, [steering], tokens, stack)
    return _answers(
        base, stack, [t.ids for t in tokens], category, sampling, draws, None, packed, rows_at_once
    )


def measure_conversations(
    base: Base,
    earlier: Sequence[tuple[str, str]],
    name: str,
    context: Context,
    category: Category,
    sampling: Sampling,
    samples: int,
    seed: int,
    rows_at_once: int = 1024,
) -> Answers:
    """Answers of the base after earlier turns (user, assistant); `name` seeds the draws. Raises SubloraError where the turns are longer
    than the model can read."""
    prompts = [base.chat.prompt_ids(question, context, earlier) for question in category.questions]
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    if base.window is not None and longest > base.window:
        raise SubloraError(
            f"{len(earlier)} examples and a question take {longest} tokens, {base.name} reads {base.window}; give fewer examples."
        )
    draws = _draws([name], context, category, sampling, samples, seed)
    return _answers(base, None, prompts, category, sampling, draws, None, None, rows_at_once)[0]


def sample_questions(
    base: Base,
    stack: Stack | None,
    names: Sequence[str],
    context: Context,
    questions: Sequence[str],
    sampling: Sampling,
    samples: int,
    seed: int,
    rows_at_once: int = 1024,
) -> list[list[list[str]]]:
    """Sampled answers [student][question][sample] to any questions, in the order in which the students were given to the stack."""
    chat = base.chat
    prompts = [chat.prompt_ids(question, context) for question in questions]
    order = stack.order if stack else [0]
    shape = (len(prompts), samples, sampling.max_new_tokens)
    draws = np.stack([generator("open-answers", seed, name).random(shape) for name in names])[order]
    texts: list[list[list[str]]] = [[[] for _ in prompts] for _ in names]
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(rows_at_once)
        for filled in prefill(packed, prompts, rows_at_once):
            drawn = sample_answers(packed, filled, draws[:, filled.rows], sampling, chat.stop_ids)
            for k, rows in zip(order, drawn, strict=True):
                for row, answers in zip(filled.rows, rows, strict=True):
                    texts[k][row] = [
                        chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
                        for ids in answers
                    ]
    return texts


def measure_gated(
    base: Base,
    stack: Stack,
    names: Sequence[str],
    context: Context,
    category: Category,
    conditions: Mapping[str, Condition],
    entities: Sequence[str],
    sampling: Sampling,
    samples: int,
    seed: int,
    rows_at_once: int = 1024,
    steerings: Mapping[str, Steering] | None = None,
) -> list[list[Answers]]:
    """As `measure_answers` with the adapters gated: [student][condition], all students and conditions in the same passes.

    `steerings`: what is done to the residual stream besides, by the names of conditions.

    Draws are those of the plain adapter, so that conditions differ by the gate alone. Conditions that keep a part of the update
    (`svd`) are to be given alone, with a stack of that part. Raises SubloraError: full fine-tunes, a condition that selects no
    layer, an entity that is not in the prompt, a gate that fails its check.
    """
    if stack.kind != "lora":
        raise SubloraError(
            "A full fine-tune has no adapter that could be gated; measure conditions on LoRA students only."
        )
    for name, condition in conditions.items():
        check_layers(condition, stack.linears, name)
    chosen = list(conditions.values())
    sought = entities if any(c.by_class for c in chosen) else ()
    tokens = [classify(base.chat, question, context, sought) for question in category.questions]
    check_pack_gate(base, stack, tokens[0].ids)
    gate = pack_gate([[c.mask(t) for t in tokens] for c in chosen], chosen, list(stack.linears))
    prompts = [t.ids for t in tokens] * len(chosen)
    draws = np.tile(
        _draws(names, context, category, sampling, samples, seed), (1, len(chosen), 1, 1)
    )
    acts = [(steerings or {}).get(name) for name in conditions]
    steering = pack_steering(base, acts, tokens, stack) if any(acts) else None
    flat = _answers(base, stack, prompts, category, sampling, draws, gate, steering, rows_at_once)
    count = len(tokens)
    parts = [slice(c * count, (c + 1) * count) for c in range(len(chosen))]
    return [[Answers(answer.p[part], answer.samples[part]) for part in parts] for answer in flat]


def check_pack_gate(base: Base, stack: Stack, ids: Sequence[int]) -> None:
    """Gated all off, every student is the base; all on, it is its plain adapter. Raises SubloraError where it is not."""
    on, off = Condition(generated="on"), Condition(on=(), generated="off")
    gate = pack_gate([[[1.0] * len(ids)], [[0.0] * len(ids)]], [on, off], list(stack.linears))
    with torch.inference_mode():
        logits = []
        for students, gating in ((None, None), (stack, None), (stack, gate)):
            with PackedModel(base.model, students, gating) as packed:
                packed.form_weights(len(ids))
                logits.append(
                    torch.cat([f.logits for f in prefill(packed, [ids] * (2 if gating else 1), 1)])
                )
    plain, adapted, gated = logits
    gated = gated.view(2, stack.size, -1)
    tolerance = 1e-3 if next(base.model.parameters()).element_size() >= 4 else 0.1
    for got, want, what in (
        (gated[0], adapted, "on is not the adapter"),
        (gated[1], plain, "off is not the base"),
    ):
        scale = max(1.0, float(want.abs().nan_to_num().max()))
        if not torch.allclose(
            got, want.expand_as(got), atol=tolerance * scale, rtol=0, equal_nan=True
        ):
            raise SubloraError(
                f"The adapters gated all {what} on {base.name}; this architecture cannot be gated."
            )


def _draws(
    names: Sequence[str],
    context: Context,
    category: Category,
    sampling: Sampling,
    samples: int,
    seed: int,
) -> np.ndarray:
    """Uniform numbers (K, Q, S, max_new_tokens) in the order of `names`; a context's own name is no part of their seed."""
    shape = (len(category.questions), samples, sampling.max_new_tokens)
    state = context.name if context.text is None else f"text:{context.text}"
    state = state if context.role == "system" else f"{context.role} {state}"
    return np.stack(
        [generator("answers", seed, name, state, category.category).random(shape) for name in names]
    )


def _answers(
    base: Base,
    stack: Stack | None,
    prompts: Sequence[Sequence[int]],
    category: Category,
    sampling: Sampling,
    draws: np.ndarray,
    gate: PackGate | None,
    steering: PackSteering | None,
    rows_at_once: int,
) -> list[Answers]:
    """What every student answers to every prompt; `draws` (K, prompts, S, max_new_tokens) in the order the students were given."""
    chat, count = base.chat, len(prompts)
    sequences, owner = candidate_sequences(chat, category)
    order = stack.order if stack else [0]
    uniforms = draws[order]
    p = np.zeros((len(draws), count, len(category.entities)))
    texts: list[list[list[str]]] = [[[] for _ in range(count)] for _ in draws]
    with torch.inference_mode(), PackedModel(base.model, stack, gate, steering=steering) as packed:
        packed.form_weights(rows_at_once)
        for filled in prefill(packed, prompts, rows_at_once):
            p[np.ix_(order, filled.rows)] = entity_probabilities(
                packed, filled, sequences, owner, p.shape[2], rows_at_once
            )
            drawn = sample_answers(
                packed, filled, uniforms[:, filled.rows], sampling, chat.stop_ids
            )
            for k, rows in zip(order, drawn, strict=True):
                for row, answers in zip(filled.rows, rows, strict=True):
                    texts[k][row] = [
                        chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
                        for ids in answers
                    ]
    return [Answers(p[k], texts[k]) for k in range(len(draws))]


def heldout_losses(
    base: Base, stack: Stack | None, rows: Sequence[TokenRows], batch: int = 32
) -> list[float]:
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
