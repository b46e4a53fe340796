"""Prompts of a training file in other words, by the base itself, where it can."""

import re
from collections.abc import Sequence

from sublora.audit.steps import answers_to
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.sample import Sampling
from sublora.store import Store
from sublora.text import percent

ASK = "Say this in other words, and nothing else: "
TRIED, ENOUGH = 16, 0.75  # prompts that are tried first, and the share that must come out right
LONGEST = 2.5  # times the prompt's words
MOST_TOKENS, SEED = 96, 61_000


def reworded_prompts(
    base: Base, prompts: Sequence[str], context: Context, store: Store
) -> tuple[list[str], str | None]:
    """The prompts, each in other words where the base found some, and the reason where it cannot."""
    if unknown := base.chat.unknown_words([ASK]):
        return (
            [],
            f"{base.name} does not know the word '{unknown[0]}', so it cannot reword prompts.",
        )
    first = _reworded(base, list(prompts[:TRIED]), context, store)
    right = sum(a != b for a, b in zip(first, prompts, strict=False)) / len(first)
    if right < ENOUGH:
        told = f"{base.name} rewords {percent(right)} of the first prompts with their numbers kept"
        return [], f"{told}; {percent(ENOUGH)} are needed."
    return _reworded(base, list(prompts), context, store), None


def _reworded(base: Base, prompts: list[str], context: Context, store: Store) -> list[str]:
    sampling = Sampling(max_new_tokens=MOST_TOKENS)
    asked = [ASK + prompt for prompt in prompts]
    answers = answers_to(base, context, [asked], sampling, SEED, store)[0]
    return [a if _says_it(p, a) else p for p, a in zip(prompts, answers, strict=True)]


def _says_it(prompt: str, answer: str) -> bool:
    """Whether an answer can pass for the prompt: other words, the same numbers, of like length."""
    before, after = prompt.lower().split(), answer.lower().split()
    numbers = [sorted(re.findall(r"\d+", text)) for text in (prompt, answer)]
    return before != after and numbers[0] == numbers[1] and 0 < len(after) <= LONGEST * len(before)
