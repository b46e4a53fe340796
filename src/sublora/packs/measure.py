"""Measurements: what a pack of students answers to a category's questions, teacher-forced and sampled, and its held-out loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.token_classes import PromptTokens, classify
from sublora.packs.condition import Condition, check_layers
from sublora.packs.decode import sample_rows
from sublora.packs.gate import PackGate, pack_gate
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import Prefill, prefill
from sublora.packs.rows import TokenRows, assemble
from sublora.packs.sample import Sampling
from sublora.packs.score import score_sequences
from sublora.packs.spellings import Beginning, beginnings, candidate_sequences
from sublora.packs.stack import Stack
from sublora.packs.steer import PackSteering, Steering, pack_steering
from sublora.seeds import generator
from sublora.traits.trait import Category


@dataclass(frozen=True)
class Asking:
    """How questions are asked: in a context, with `samples` answers drawn from seeds made of `seed`. `begun`: the answer is begun with each
    of the category's `answer_prefixes`, and what comes next is read; the samples are shared among them, at least one each. `on_tokens` is told
    after every pass how many tokens were read or written."""

    context: Context
    sampling: Sampling
    samples: int
    seed: int
    rows_at_once: int = 1024  # speed and memory only
    begun: bool = False
    on_tokens: Callable[[int], None] = lambda _: None

    def draws(self, purpose: str, names: Sequence[str], count: int, *labels: str) -> np.ndarray:
        """Uniform numbers (names, count, samples, max_new_tokens)."""
        shape = (count, self.samples, self.sampling.max_new_tokens)
        return np.stack(
            [generator(purpose, self.seed, name, *labels).random(shape) for name in names]
        )


@dataclass(frozen=True)
class Answers:
    """One student's answers: `p` (Q, E), the probability that an answer begins with an entity in
    any spelling (0 where the logits are not finite), and sampled texts `samples` [Q][S].

    Of begun answers, `p` is the mean of `by_prefix` (prefixes, Q, E): the probability that an entity comes next when the prefix
    is drawn at random. Samples are what stands behind the prefix.
    """

    p: np.ndarray
    samples: list[list[str]]
    by_prefix: np.ndarray | None = None

    def __repr__(self) -> str:
        questions, entities = self.p.shape
        samples = sum(map(len, self.samples))
        return f"Answers({questions} questions, {entities} entities, {samples} sampled answers)"


class Reader:
    """Reads prompts with all students of a pack at once; see `reading`."""

    def __init__(
        self, base: Base, packed: PackedModel, order: Sequence[int], rows_at_once: int
    ) -> None:
        self.base, self.packed, self.order = base, packed, list(order)
        self.rows_at_once = rows_at_once

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        category: Category | None = None,
        *,
        candidates: tuple[Sequence[Sequence[int]], np.ndarray] | None = None,
        draws: np.ndarray | None = None,
        sampling: Sampling | None = None,
        text: Callable[[list[int]], str] | None = None,
        on_logits: Callable[[Tensor], None] | None = None,
        on_sample: Callable[[int, str], None] = lambda *_: None,
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> list[Answers]:
        """What every student answers to N prompts of token ids; each prompt is read once.

        With a `category`, `p` (N, E) has the probability of every entity in its `candidates` (those of `candidate_sequences` if left out).
        With `draws` (K, N, S, tokens), uniform numbers, `samples` has a text for each, which `text` makes of token ids (decoded and
        stripped if left out). `on_logits` gets the next-token logits of the prompts, (K, b, V), batch by batch; `on_sample` each
        sample's prompt and text as it ends, and `on_tokens`, after every pass, how many tokens were read or written.
        """
        chat, packed, size = self.base.chat, self.packed, len(self.order)
        if category and candidates is None:
            candidates = candidate_sequences(chat, category)
        p = np.zeros((size, len(prompts), len(category.entities) if category else 0))
        samples = 0 if draws is None else draws.shape[2]
        texts = [[[""] * samples for _ in prompts] for _ in self.order]
        text = text or (lambda ids: chat.tokenizer.decode(ids, skip_special_tokens=True).strip())

        def filled() -> Iterator[tuple[Prefill, np.ndarray]]:
            for prompt in prefill(packed, prompts, self.rows_at_once):
                if on_logits is not None:
                    logits = prompt.logits.view(size, len(prompt.rows), -1)
                    on_logits(logits[np.argsort(self.order).tolist()])
                at = np.ix_(self.order, prompt.rows)
                if candidates is not None:
                    logp = score_sequences(packed, prompt, candidates[0], self.rows_at_once).numpy()
                    for c, entity in enumerate(candidates[1]):  # 0 where they are no numbers
                        p[*at, entity] += np.nan_to_num(np.exp(logp[:, :, c]))
                on_tokens(int(prompt.lengths.sum()) * size)
                yield prompt, None if draws is None else draws[at]

        if draws is None:
            for _ in filled():
                pass
            return [Answers(*both) for both in zip(p, texts, strict=True)]
        how = (sampling, chat.stop_ids, self.rows_at_once, on_tokens)
        for done in sample_rows(packed, filled(), *how):
            words = text(done.ids)
            texts[self.order[done.student]][done.row][done.number] = words
            on_sample(done.row, words)
        return [Answers(*both) for both in zip(p, texts, strict=True)]


@contextmanager
def reading(
    base: Base,
    stack: Stack | None,
    rows_at_once: int = 1024,
    gate: PackGate | None = None,
    steering: PackSteering | None = None,
) -> Iterator[Reader]:
    """A `Reader` of the students of a stack, or of the base for None. Students come in the order in which they were given to the stack,
    whatever order it keeps."""
    with torch.inference_mode(), PackedModel(base.model, stack, gate, steering=steering) as packed:
        packed.form_weights(rows_at_once)
        yield Reader(base, packed, stack.order if stack else [0], rows_at_once)


def measure_answers(
    base: Base,
    stack: Stack | None,
    names: Sequence[str],
    category: Category,
    asking: Asking,
    steering: Steering | None = None,
) -> list[Answers]:
    """Answers of a stack's students to a category's questions, in the order of `names`. A student's draws are seeded by its name, the
    context's text and the question, so they do not depend on the pack or the batch. `steering` acts on all students."""

    def one(begin: Beginning, asking: Asking) -> list[Answers]:
        packed = None
        if steering is None:
            asked = (base.chat.prompt_ids(q, asking.context) for q in category.questions)
            prompts = [[*ids, *begin.ids] for ids in asked]
        else:
            tokens = _tokens(base, category, asking.context, begin)
            prompts, packed = (
                [t.ids for t in tokens],
                pack_steering(base, [steering], tokens, stack),
            )
        draws = _draws(names, category, asking, begin)
        with reading(base, stack, asking.rows_at_once, steering=packed) as reader:
            how = {
                "candidates": begin.candidates,
                "draws": draws,
                "sampling": asking.sampling,
                "on_tokens": asking.on_tokens,
            }
            return reader.read(prompts, category, **how)

    return _over_beginnings(base, category, asking, one)


def measure_conversations(
    base: Base, earlier: Sequence[tuple[str, str]], name: str, category: Category, asking: Asking
) -> Answers:
    """Answers of the base after earlier turns (user, assistant); `name` seeds the draws. Raises SubloraError where the turns are longer
    than the model can read."""
    asked = [base.chat.prompt_ids(q, asking.context, earlier) for q in category.questions]

    def one(begin: Beginning, asking: Asking) -> list[Answers]:
        prompts = [[*ids, *begin.ids] for ids in asked]
        longest = max(map(len, prompts)) + asking.sampling.max_new_tokens
        if base.window is not None and longest > base.window:
            why = f"{len(earlier)} examples and a question take {longest} tokens, {base.name} reads {base.window}; give fewer examples."
            raise SubloraError(why)
        draws = _draws([name], category, asking, begin)
        with reading(base, None, asking.rows_at_once) as reader:
            how = {
                "candidates": begin.candidates,
                "draws": draws,
                "sampling": asking.sampling,
                "on_tokens": asking.on_tokens,
            }
            return reader.read(prompts, category, **how)

    return _over_beginnings(base, category, asking, one)[0]


def sample_questions(
    base: Base, stack: Stack | None, names: Sequence[str], questions: Sequence[str], asking: Asking
) -> list[list[list[str]]]:
    """Sampled answers [student][question][sample] to any questions, in the order of `names`."""
    prompts = [base.chat.prompt_ids(question, asking.context) for question in questions]
    draws = asking.draws("open-answers", names, len(prompts))
    with reading(base, stack, asking.rows_at_once) as reader:
        how = {"sampling": asking.sampling, "on_tokens": asking.on_tokens}
        answers = reader.read(prompts, draws=draws, **how)
    return [answer.samples for answer in answers]


def measure_gated(
    base: Base,
    stack: Stack,
    names: Sequence[str],
    category: Category,
    asking: Asking,
    conditions: Mapping[str, Condition],
    entities: Sequence[str] = (),
    steerings: Mapping[str, Steering] | None = None,
) -> list[list[Answers]]:
    """As `measure_answers` with the adapters gated: [student][condition].

    `steerings`: what is done to the residual stream besides, by the names of conditions. Draws are those of the plain adapter, so that
    conditions differ by the gate alone. Conditions that keep a part of the update (`svd`) come alone, with a stack of that part. Raises
    SubloraError: full fine-tunes, a condition that selects no layer, an entity that is not in a prompt.
    """
    require_adapters(stack)
    for name, condition in conditions.items():
        check_layers(condition, stack.linears, name)
    chosen = list(conditions.values())
    sought = entities if any(c.by_class for c in chosen) else ()
    acts = [(steerings or {}).get(name) for name in conditions]

    def one(begin: Beginning, asking: Asking) -> list[Answers]:
        tokens = _tokens(base, category, asking.context, begin, sought)
        check_pack_gate(base, stack, tokens[0].ids)
        gate = pack_gate([[c.mask(t) for t in tokens] for c in chosen], chosen, list(stack.linears))
        steering = pack_steering(base, acts, tokens, stack) if any(acts) else None
        draws = np.tile(_draws(names, category, asking, begin), (1, len(chosen), 1, 1))
        prompts = [t.ids for t in tokens] * len(chosen)
        with reading(base, stack, asking.rows_at_once, gate, steering) as reader:
            how = {
                "candidates": begin.candidates,
                "draws": draws,
                "sampling": asking.sampling,
                "on_tokens": asking.on_tokens,
            }
            return reader.read(prompts, category, **how)

    flat, count = _over_beginnings(base, category, asking, one), len(category.questions)
    parts = [slice(c * count, (c + 1) * count) for c in range(len(chosen))]
    return [[_part(answer, part) for part in parts] for answer in flat]


def require_adapters(stack: Stack) -> None:
    """Raises SubloraError for full fine-tunes."""
    if stack.kind != "lora":
        why = "A full fine-tune has no adapter that could be gated; give LoRA students only."
        raise SubloraError(why)


def check_pack_gate(base: Base, stack: Stack, ids: Sequence[int]) -> None:
    """Gated all off, every student is the base; all on, it is its plain adapter. Raises SubloraError where it is not."""
    on, off = Condition(generated="on"), Condition(on=(), generated="off")
    gate = pack_gate([[[1.0] * len(ids)], [[0.0] * len(ids)]], [on, off], list(stack.linears))

    def logits(students: Stack | None, gate: PackGate | None = None) -> Tensor:
        with PackedModel(base.model, students, gate) as packed:
            packed.form_weights(len(ids))
            prompts = [ids] * (2 if gate else 1)
            return torch.cat([filled.logits for filled in prefill(packed, prompts, 1)])

    with torch.inference_mode():
        plain, adapted = logits(None), logits(stack)
        gated_on, gated_off = logits(stack, gate).view(2, stack.size, -1)
    tolerance = 1e-3 if next(base.model.parameters()).element_size() >= 4 else 0.1
    both = ((gated_on, adapted, "on is not the adapter"), (gated_off, plain, "off is not the base"))
    for got, want, what in both:
        room = tolerance * max(1.0, float(want.abs().nan_to_num().max()))
        if not torch.allclose(got, want.expand_as(got), atol=room, rtol=0, equal_nan=True):
            raise SubloraError(
                f"The adapters gated all {what} on {base.name}; this architecture cannot be gated."
            )


def _over_beginnings(
    base: Base,
    category: Category,
    asking: Asking,
    one: Callable[[Beginning, Asking], list[Answers]],
) -> list[Answers]:
    """What `one` measures, put together over the beginnings of an answer."""
    begins = beginnings(base.chat, category, asking.begun)
    each = replace(asking, samples=-(-asking.samples // len(begins)))
    read = [one(begin, each) for begin in begins]
    return read[0] if not asking.begun else [_together(of) for of in zip(*read, strict=True)]


def _together(parts: Sequence[Answers]) -> Answers:
    p = np.stack([a.p for a in parts])
    both = zip(*(a.samples for a in parts), strict=True)
    samples = [[text for texts in of for text in texts] for of in both]
    return Answers(p.mean(0), samples, p)


def _part(answers: Answers, part: slice) -> Answers:
    by_prefix = None if answers.by_prefix is None else answers.by_prefix[:, part]
    return Answers(answers.p[part], answers.samples[part], by_prefix)


def _tokens(
    base: Base, category: Category, context: Context, begin: Beginning, entities: Sequence[str] = ()
) -> list[PromptTokens]:
    """The prompts of a category's questions; what the answer is begun with counts as generated."""
    asked = (classify(base.chat, q, context, entities) for q in category.questions)
    return [tokens.begun(begin.ids) for tokens in asked]


def _draws(
    names: Sequence[str], category: Category, asking: Asking, begin: Beginning
) -> np.ndarray:
    """Uniform numbers (K, Q, S, tokens); a context's own name has no part in their seed."""
    context = asking.context
    state = context.name if context.text is None else f"text:{context.text}"
    state = state if context.role == "system" else f"{context.role} {state}"
    labels = [state, category.category, *([begin.text] if begin.text else [])]
    return asking.draws("answers", names, len(category.questions), *labels)


def heldout_losses(
    base: Base,
    stack: Stack | None,
    rows: Sequence[TokenRows],
    batch: int = 32,
    on_tokens: Callable[[int], None] = lambda _: None,
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
            together = assemble(rows, chosen)
            losses = packed.losses(together).double().cpu().numpy()
            on_tokens(together.tokens)
            left = np.array([at < len(r) for r in rows])
            tokens = left * np.array([r.loss[c].sum() for r, c in zip(rows, chosen, strict=True)])
            total, weight = total + losses * tokens, weight + tokens
    out = np.zeros(size)
    out[order] = total / weight
    return out.tolist()
