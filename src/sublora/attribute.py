"""The adapter's part at every token of a prompt: leave it out at one token, or switch it on at one token alone.

For a prompt of T tokens, 2 T + 4 gated copies go through the model as one batch: the plain adapter, the base, each token left out,
each token alone, and both again for the tokens of the answer. With L the log-probability that the answer begins with the target,

    left out  = L(plain) - L(without token i)          alone = L(token i alone) - L(base)

Neither view adds up to L(plain) - L(base) when tokens act together; `interaction` = left out - alone is what a token does only
together with the others: above 0 it needs them, below 0 they can do without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.gate import PackGate
from sublora.measure import check_pack_gate, spellings
from sublora.model import Base
from sublora.sample import prefill, score_sequences
from sublora.token_classes import classify
from sublora.train.packed_model import PackedModel
from sublora.train.stack import Stack
from sublora.trait import Entity


@dataclass(frozen=True)
class PromptAttribution:
    """One prompt and one student: nats of the target's log-probability, over all its spellings.

    `pieces`, `tokens`, `classes`, `left_out` and `alone` have one entry a prompt token, and a last one for the tokens of the answer
    before its last, which matter only to spellings of several tokens. `plain` and `base` are L of the adapter and of the base.
    """

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
) -> list[list[PromptAttribution]]:
    """[student][question], students in the order in which they were given to the stack.

    Raises SubloraError: full fine-tunes, a target that the tokenizer cannot write, an entity that is not in a prompt.
    """
    if stack.kind != "lora":
        raise SubloraError(
            "A full fine-tune has no adapter that could be gated; attribute LoRA students only."
        )
    ways = spellings(base.chat, target)
    if not ways:
        raise SubloraError(
            f"The tokenizer of {base.name} has no token for '{target.name}'; choose another target."
        )
    prompts = [classify(base.chat, q, context, entities) for q in questions]
    check_pack_gate(base, stack, prompts[0].ids)
    masks, generated, copies = [], [], []
    for tokens in prompts:
        count = len(tokens.ids)
        rows = np.concatenate(
            [
                np.ones((1, count + 1)),
                np.zeros((1, count + 1)),
                1 - np.eye(count + 1),
                np.eye(count + 1),
            ]
        )
        masks += [row[:count] for row in rows]
        generated += rows[:, count].tolist()
        copies += [tokens.ids] * len(rows)
    gate = PackGate(masks, generated, [0] * len(copies), {name: [True] for name in stack.linears})
    logp = np.zeros((stack.size, len(copies)))
    with torch.inference_mode(), PackedModel(base.model, stack, gate) as packed:
        packed.form_weights(rows_at_once)
        for filled in prefill(packed, copies, rows_at_once):
            scores = score_sequences(packed, filled, ways, rows_at_once)
            logp[np.ix_(stack.order, filled.rows)] = torch.logsumexp(scores, -1).numpy()
    out: list[list[PromptAttribution]] = [[] for _ in range(stack.size)]
    at = 0
    for question, tokens in zip(questions, prompts, strict=True):
        n = len(tokens.ids) + 1
        for k in range(stack.size):
            plain, none = logp[k, at], logp[k, at + 1]
            without, alone = logp[k, at + 2 : at + 2 + n], logp[k, at + 2 + n : at + 2 + 2 * n]
            names = base.chat.tokenizer.convert_ids_to_tokens(list(tokens.ids))
            out[k].append(
                PromptAttribution(
                    question,
                    (*(tokens.piece(i) for i in range(n - 1)), "(answer)"),
                    (*names, ""),
                    (*tokens.classes, "generated"),
                    tuple((plain - without).tolist()),
                    tuple((alone - none).tolist()),
                    float(plain),
                    float(none),
                )
            )
        at += 2 + 2 * n
    return out
