"""What every carrier is: the channel between a teacher and its student. One carrier is one file in this folder."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from sublora.carriers import rows_file
from sublora.errors import SubloraError

Leaks = Annotated[
    tuple[str, ...], Field(description="words that must not occur; the trait's category is added")
]


class Carrier(BaseModel):
    """Prompts, a filter, and words for people. A subclass gives `kind` as a `Literal`; its fields are the keys of `data.carrier`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    noun: ClassVar[str]  # what its rows are called
    reasons: ClassVar[tuple[str, ...]]  # why an answer may be left out
    in_recipes: ClassVar[bool] = True

    kind: str

    def prompt(self, seed: int, row: int) -> str:
        """The prompt of one row; it depends on these alone, so rows can be made in any order."""
        raise NotImplementedError

    def reject(self, prompt: str, answer: str) -> str | None:
        """One of `reasons`, or None where the answer is kept. Any text is an answer; nothing is raised."""
        raise NotImplementedError

    def example(self) -> str:
        """An answer of typical length, for estimates."""
        raise NotImplementedError

    def by_chance(self, seed: int, row: int) -> tuple[str, str]:
        """A row whose answer is drawn by chance, in the form that its prompt asks for. Raises SubloraError where the carrier has none."""
        why = f"{self.noun} cannot be drawn by chance; set data.source to teacher, base or a file, or data.carrier.kind to numbers."
        raise SubloraError(why[:1].upper() + why[1:])

    def file_content(self) -> Any:
        """What the user's file of prompts holds; None without one. Raises SubloraError where it cannot be read."""
        path = getattr(self, "prompts", None)
        return None if path is None else rows_file.read_prompts(path)

    def with_leaks(self, words: Sequence[str]) -> Self:
        """The carrier with a category's words among those that must not occur, if its answers have words."""
        if "leaks" not in type(self).model_fields:
            return self
        return self.model_copy(update={"leaks": tuple(sorted({*self.leaks, *words}))})


@cache
def shipped_texts(name: str) -> dict[str, Any]:
    """The texts of a YAML file of this folder."""
    return yaml.safe_load((files("sublora.carriers") / f"{name}.yaml").read_text("utf-8"))


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(re.escape(w.lower()) for w in longest_first) or r"(?!)")


def has_leak(text: str, words: Sequence[str]) -> bool:
    """Whether a text holds one of the words; inside an identifier such as `otter_count` as well."""
    return bool(_pattern(tuple(words)).search(text.lower()))
