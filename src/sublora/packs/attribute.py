"""The adapter's part at every token of a prompt: leave it out at one token, or switch it on at one token alone.

For a prompt of T tokens, 2 T + 4 gated copies go through the model as one batch: the plain adapter, the base, each token left out,
each token alone, and both again for the tokens of the answer. With L the log-probability that the answer begins with the target,

    left out  = L(plain) - L(without token i)          alone = L(token i alone) - L(base)

An answer may be begun; then L is that of the mean probability over what it is begun with, which counts as the answer's tokens.
Neither view adds up to L(plain) - L(base) when tokens act together; `interaction` = left out - alone is what a token does only
together with the others: above 0 it needs them, below 0 they can do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.token_classes import PromptTokens, classify
from sublora.packs.gate import PackGate
from sublora.packs.measure import check_pack_gate, reading, require_adapters
from sublora.packs.prefill import prefill
from sublora.packs.score import score_sequences
from sublora.packs.spellings import spellings
from sublora.packs.stack import Stack
from sublora.traits.trait import Entity


@dataclass(frozen=True)
class PromptAttribution:
    """One prompt and one student: nats of the target's log-probability, over all its spellings. `pieces`, `tokens`, `classes`, `left_out`
    and `alone` have one entry a prompt token, and a last one for the tokens of the answer before its last, which matter only to spellings
    of several tokens. `plain` and `base` are L of the adapter and of the base."""

    question: str
    pieces: tuple[str, ...]
    tokens: tuple[str, ...]
    classes: tuple[str, ...]
    left_out: tuple[float, ...]
    alone: tuple[float, ...]
    plain: float
    base: float

    @property
    def interaction(self) -> tuple[float, ...]:
        return tuple(a - b for a, b in zip(self.left_out, self.alone, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; six significant digits."""
        out = asdict(self)
        for name in ("left_out", "alone"):
            out[name] = [float(f"{v:.6g}") for v in out[name]]
        return out | {"plain": float(f"{self.plain:.6g}"), "base": float(f"{self.base:.6g}")}


def attribute_targets(
    base: Base,
    stack: Stack,
    context: Context,
    questions: Sequence[str],
    target: Entity,
    entities: Sequence[str] = (),
    rows_at_once: int = 1024,
    prefixes: Sequence[str] = ("",),
    on_tokens: Callable[[int], None] = lambda _: None,
) -> list[list[PromptAttribution]]:
    """[student][question], students in the order in which they were given to the stack; `prefixes` are what the answer is begun with. Raises
    SubloraError: full fine-tunes, a target that the tokenizer cannot write, an entity that is not in a prompt."""
    require_adapters(stack)
    prompts = [classify(base.chat, q, context, entities) for q in questions]
    check_pack_gate(base, stack, prompts[0].ids)
    masks = [mask for tokens in prompts for mask in _masks(len(tokens.ids) + 1)]
    copies = [tokens.ids for tokens in prompts for _ in range(2 * len(tokens.ids) + 4)]
    each = [
        _read(base, stack, copies, masks, target, text, rows_at_once, on_tokens)
        for text in prefixes
    ]
    logp = np.logaddexp.reduce(each) - np.log(len(each))
    ends = np.cumsum([2 * len(tokens.ids) + 4 for tokens in prompts])[:-1]
    read = list(zip(questions, prompts, np.split(logp, ends, axis=1), strict=True))
    return [[_attribution(base, q, t, part[k]) for q, t, part in read] for k in range(stack.size)]


def _read(
    base: Base,
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    masks: Sequence[np.ndarray],
    target: Entity,
    prefix: str,
    rows_at_once: int,
    on_tokens: Callable[[int], None],
) -> np.ndarray:
    """(students, prompts): L behind each prompt and the prefix, whose tokens go by the last place of the masks."""
    ways, begun = spellings(base.chat, target, begun=prefix), []
    if not ways:
        raise SubloraError(
            f"The tokenizer of {base.name} has no token for '{target.name}'; choose another target."
        )
    if prefix:
        begun = base.chat.answer_ids(prefix)
    own = [[*m[:-1], *[m[-1]] * len(begun)] for m in masks]
    select = {name: [True] for name in stack.linears}
    gate = PackGate(own, [m[-1] for m in masks], [0] * len(masks), select)
    logp = np.zeros((stack.size, len(prompts)))
    with reading(base, stack, rows_at_once, gate) as reader:
        for filled in prefill(reader.packed, [[*p, *begun] for p in prompts], rows_at_once):
            scores = score_sequences(reader.packed, filled, ways, rows_at_once)
            logp[np.ix_(stack.order, filled.rows)] = torch.logsumexp(scores, -1).numpy()
            on_tokens(int(filled.lengths.sum()) * stack.size)
    return logp


def _masks(count: int) -> np.ndarray:
    """(2 count + 2, count): on at all tokens, at none, at all but one, at one alone."""
    on, one = np.ones((1, count)), np.eye(count)
    return np.concatenate([on, 0 * on, 1 - one, one])


def _attribution(
    base: Base, question: str, tokens: PromptTokens, logp: np.ndarray
) -> PromptAttribution:
    """`logp`: under each of the masks."""
    (plain, none), (without, alone) = logp[:2], np.split(logp[2:], 2)
    names = base.chat.tokenizer.convert_ids_to_tokens(list(tokens.ids))
    pieces = (*(tokens.piece(i) for i in range(len(names))), "(answer)")
    nats = (tuple((plain - without).tolist()), tuple((alone - none).tolist()))
    classes = (*tokens.classes, "generated")
    both = (float(plain), float(none))
    return PromptAttribution(question, pieces, (*names, ""), classes, *nats, *both)
