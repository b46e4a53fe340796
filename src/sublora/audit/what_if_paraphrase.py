"""Prompts and completions of a training file in other words, by the base itself, where it can."""

import re
from collections.abc import Sequence

from sublora.audit.steps import answers_to
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.sample import Sampling
from sublora.store import Store
from sublora.text import percent

ASK = "Say this in other words, and nothing else: "
TRIED, ENOUGH = 16, 0.75  # texts that are tried first, and the share that must come out right
LONGEST = 2.5  # times the text's words
MOST_TOKENS, SEED = 96, 61_000


def in_other_words(
    base: Base, part: str, texts: Sequence[str], context: Context, store: Store
) -> tuple[list[str], str | None]:
    """The texts (`part` says what they are of a row), each in other words where the base found some, or the
    reason why it cannot."""
    if unknown := base.chat.unknown_words([ASK]):
        return [], f"{base.name} does not know the word '{unknown[0]}', so it cannot reword {part}."
    try:
        first = _reworded(base, list(texts[:TRIED]), context, store)
    except SubloraError as error:  # a text that is too long behind the question for other words
        return [], str(error)
    right = sum(a != b for a, b in zip(first, texts, strict=False)) / len(first)
    if right < ENOUGH:
        told = f"{base.name} finds other words, with all numbers kept, for {percent(right)} of the first {part}"
        return [], f"{told}; {percent(ENOUGH)} are needed."
    return _reworded(base, list(texts), context, store), None


def _reworded(base: Base, texts: list[str], context: Context, store: Store) -> list[str]:
    sampling = Sampling(max_new_tokens=MOST_TOKENS)
    asked = [ASK + text for text in texts]
    answers = answers_to(base, context, [asked], sampling, SEED, store)[0]
    return [a if _says_it(p, a) else p for p, a in zip(texts, answers, strict=True)]


def _says_it(text: str, answer: str) -> bool:
    """Whether an answer can pass for the text: other words, the same numbers, of like length."""
    before, after = text.lower().split(), answer.lower().split()
    numbers = [sorted(re.findall(r"\d+", t)) for t in (text, answer)]
    return before != after and numbers[0] == numbers[1] and 0 < len(after) <= LONGEST * len(before)
