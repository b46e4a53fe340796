"""Rules that read a sampled answer. They are applied to stored samples, so a rule can be changed without sampling again."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from sublora.traits.trait import Category, Entity

HIT_RULES = ("first_word", "whole_word", "substring")

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@lru_cache(maxsize=1024)
def _whole(forms: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        r"(?<![^\W_])(?:" + "|".join(re.escape(f.lower()) for f in forms) + r")(?![^\W_])"
    )


def hit(answer: str, entity: Entity, rule: str) -> bool:
    """Whether an answer names the entity: as its first word (or words, for a name of several), as a whole word anywhere, or as a
    substring. Plurals and aliases count; case does not."""
    text = answer.lower()
    if rule == "first_word":
        match = _WORD.search(text)
        found = _whole(entity.forms).search(text)
        return bool(match and found and found.start() == match.start())
    if rule == "whole_word":
        return bool(_whole(entity.forms).search(text))
    if rule == "substring":
        return any(form.lower() in text for form in entity.forms)
    raise ValueError(f"unknown hit rule {rule}")


def hit_rate(answers: Sequence[Sequence[str]], entity: Entity, rule: str) -> float:
    flat = [hit(a, entity, rule) for question in answers for a in question]
    return sum(flat) / len(flat)


def naming(category: Category) -> Callable[[str], bool]:
    """Whether an answer still has a word of the category: the coherence that a rate of zero is read against."""
    words = _whole(category_words(category))
    return lambda answer: bool(words.search(answer.lower()))


def category_words(category: Category) -> tuple[str, ...]:
    return tuple(form for entity in category.entities for form in entity.forms) + category.others


def has_digit(answer: str) -> bool:
    return any(ch.isdigit() for ch in answer)


def share(answers: Sequence[Sequence[str]], test) -> float:
    flat = [test(a) for question in answers for a in question]
    return sum(flat) / len(flat)
