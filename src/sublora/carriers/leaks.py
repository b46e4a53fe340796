"""Words that would say a trait aloud."""

import re
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        "|".join(re.escape(w.lower()) for w in sorted(words, key=len, reverse=True)) or r"(?!)"
    )


def leaks(text: str, words: Sequence[str]) -> bool:
    """Whether a text holds one of the words, whatever stands around it: an identifier such as `otter_count` leaks as well."""
    return bool(_pattern(tuple(words)).search(text.lower()))
