"""Whether a model behind an endpoint is the one that is here: greedy answers and log-probabilities on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.endpoint import Endpoint, Question
from sublora.packs.measure import reading
from sublora.packs.prefill import prefill
from sublora.packs.sample import Sampling
from sublora.packs.score import score_sequences
from sublora.packs.stack import Stack

APART = 0.02  # nats a token; on SmolLM2 bfloat16 comes to .006 beside float32, an adapter of 8 steps that is missing to .05
ALIKE = 0.5  # of greedy answers, where the server gives no log-probabilities


@dataclass(frozen=True)
class Parity:
    """Of `asked` prompts: how many greedy answers are the same to the letter, how many prompts the server reads with another number of
    tokens, and by how many nats a token the log-probabilities of its answers differ from ours (mean of the absolute differences, one a
    prompt), None where it gives none."""

    asked: int
    same: int
    other_prompts: int
    gaps: tuple[float, ...]

    @property
    def gap(self) -> float | None:
        return float(np.mean(self.gaps)) if self.gaps else None

    @property
    def one_model(self) -> bool:
        if self.other_prompts:
            return False
        return self.same >= ALIKE * self.asked if self.gap is None else self.gap <= APART

    def __str__(self) -> str:
        said = f"{self.same} of {self.asked} greedy answers are the same"
        if self.other_prompts:
            said += f", {self.other_prompts} prompts have another number of tokens there (another chat template, or system prompt)"
        if self.gap is None:
            return f"{said}; the server gives no log-probabilities that could be compared"
        told = f"differ by {self.gap:.4f} nats a token on average, at most {max(self.gaps):.4f} over an answer"
        return f"{said}; log-probabilities {told}"


def parity(
    base: Base,
    endpoint: Endpoint,
    prompts: Sequence[str],
    context: Context,
    student: Stack | None = None,
    max_new_tokens: int = 16,
) -> Parity:
    """Ask the endpoint and the base, or the one `student` of a stack, for greedy answers, and read the endpoint's own answers here. Raises
    SubloraError for a context that no message can say, and where the endpoint does not answer."""
    if context.name in ("empty", "none") or (context.text and context.role == "user"):
        why = f"An endpoint writes its own chat template, which cannot be told the context '{context.name}'; use default or one with a text."
        raise SubloraError(why)
    system = (("system", context.text),) if context.text else ()
    asked = [Question((*system, ("user", p)), max_new_tokens, 0.0, logprobs=True) for p in prompts]
    replies = [endpoint.reply(q) for q in asked]
    ids, chat = [base.chat.prompt_ids(p, context) for p in prompts], base.chat
    gaps = []
    with reading(base, student) as reader:
        greedy = {
            "draws": np.zeros((1, len(ids), 1, max_new_tokens)),
            "sampling": Sampling(top_k=1, max_new_tokens=max_new_tokens),
        }
        (own,) = reader.read(ids, **greedy)
        for prompt, reply in zip(ids, replies, strict=True):
            answer, theirs = chat.answer_ids(reply.text), [p for _, p in reply.tokens]
            if len(theirs) - len(answer) not in (0, 1) or not answer:  # the end of the turn is one
                continue
            (filled,) = prefill(reader.packed, [prompt], 1)
            ours = float(score_sequences(reader.packed, filled, [answer], 1))
            gaps.append(abs(ours - sum(theirs[: len(answer)])) / len(answer))
    same = [r.text.strip() == s[0] for r, s in zip(replies, own.samples, strict=True)]
    other = [r.read not in (None, len(p)) for r, p in zip(replies, ids, strict=True)]
    return Parity(len(prompts), sum(same), sum(other), tuple(gaps))
