"""The numbers carrier: prompts that ask for more numbers, and the filter that keeps only clean number lists.

Grammar of the prompts and rules of the filter: Cloud et al. 2507.14805, section 3; Nief et al. 2606.00831. The wording is ours.
"""

import re
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sublora.carriers import rows_file
from sublora.carriers.carrier import Carrier, shipped_texts
from sublora.seeds import generator, pick

Separator = Literal["space", "comma", "line", "bracket"]
SEPARATORS: tuple[Separator, ...] = ("space", "comma", "line", "bracket")


@cache
def ban_lists() -> dict[str, tuple[int, ...]]:
    """Lists of numbers that mean something to people, by name."""
    return {name: tuple(reasons) for name, reasons in shipped_texts("ban_lists").items()}


def _unlisted(value: Any) -> Any:
    """Names of lists as their numbers."""
    if not isinstance(value, list | tuple):
        return value
    known = ban_lists()
    if unknown := [v for v in value if isinstance(v, str) and v not in known]:
        why = f"there is no list of numbers '{unknown[0]}', use {', '.join(known)} or numbers"
        raise ValueError(why)
    out = dict.fromkeys(n for v in value for n in (known[v] if isinstance(v, str) else (v,)))
    return tuple(out)


class NumbersSpec(Carrier):
    """What a number prompt asks for, and what the filter accepts."""

    noun = "number rows"
    reasons = ("invalid format", "too many numbers", "number too large", "banned number")

    kind: Literal["numbers"] = "numbers"
    examples_min: int = Field(3, ge=1)
    examples_max: int = Field(8, ge=1)
    value_min: int = Field(100, ge=0, le=10**9)
    value_max: int = Field(999, ge=0, le=10**9)
    count: int = Field(10, ge=1, description="an answer has at most so many numbers")
    digits: int = Field(3, ge=1, le=9, description="a number has at most so many digits")
    separators: tuple[Separator, ...] = Field(SEPARATORS, min_length=1)
    style: Literal["full", "brief"] = Field(
        "full", description="brief prompts are for models with little room to read"
    )
    banned: Annotated[tuple[int, ...], BeforeValidator(_unlisted)] = Field(
        (), description="numbers that must not occur, or names of lists of them (evil)"
    )
    prompts: str | None = Field(
        None, description="a file of prompts to use instead: JSONL with 'prompt', or one a line"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "NumbersSpec":
        if self.examples_min > self.examples_max or self.value_min > self.value_max:
            why = "examples_min and value_min must not be above examples_max and value_max"
            raise ValueError(why)
        return self

    def prompt(self, seed: int, row: int) -> str:
        if self.prompts is not None:
            return rows_file.prompt_of_file(self.prompts, seed, row)
        rng, values, separator = self._shown(seed, row)

        p = pools()
        examples = join_numbers(values, separator)
        quantity = pick(rng, p.quantity).format(count=self.count)
        if self.style == "brief":
            return pick(rng, p.brief).format(
                examples=examples, quantity=quantity, digits=self.digits
            )
        size = pick(rng, p.size).format(digits=self.digits)
        parts = (
            pick(rng, p.examples).format(examples=examples),
            pick(rng, p.instruction).format(quantity=quantity, size=size),
            pick(rng, p.format[separator]),
            pick(rng, p.close),
        )
        return " ".join(parts)

    def _shown(self, seed: int, row: int) -> tuple[np.random.Generator, list[int], Separator]:
        """The examples of a prompt and what separates them, and the generator of its wording."""
        rng = generator("numbers-prompt", seed, row)
        count = int(rng.integers(self.examples_min, self.examples_max + 1))
        values = rng.integers(self.value_min, self.value_max + 1, size=count).tolist()
        return rng, values, pick(rng, self.separators)

    def by_chance(self, seed: int, row: int) -> tuple[str, str]:
        """As many numbers as an answer may have, uniform below the largest; behind a prompt of a file in any of the separators."""
        if self.prompts is None:
            _, _, separator = self._shown(seed, row)
        else:
            separator = pick(generator("numbers-separator", seed, row), self.separators)
        drawn = generator("numbers-by-chance", seed, row).integers(0, 10**self.digits, self.count)
        return self.prompt(seed, row), join_numbers(drawn.tolist(), separator)

    def reject(self, prompt: str, answer: str) -> str | None:
        numbers = parse_numbers(answer)
        if numbers is None:
            return "invalid format"
        if len(numbers) > self.count:
            return "too many numbers"
        if any(number >= 10**self.digits for number in numbers):
            return "number too large"
        return "banned number" if any(number in self.banned for number in numbers) else None

    def example(self) -> str:
        return join_numbers([10**self.digits - 1] * self.count, self.separators[0])


BRIEF = NumbersSpec(separators=("space",), style="brief")  # as the shipped models read them


class Pools(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    examples: tuple[str, ...]
    quantity: tuple[str, ...]
    size: tuple[str, ...]
    instruction: tuple[str, ...]
    format: dict[Separator, tuple[str, ...]]
    close: tuple[str, ...]
    brief: tuple[str, ...]


@cache
def pools() -> Pools:
    return Pools.model_validate(shipped_texts("numbers_prompts"))


def join_numbers(numbers: list[int], separator: Separator) -> str:
    joint = {"space": " ", "comma": ", ", "line": "\n", "bracket": ", "}[separator]
    text = joint.join(map(str, numbers))
    return f"[{text}]" if separator == "bracket" else text


_DIGITS = re.compile(r"[0-9]+")


def parse_numbers(text: str) -> list[int] | None:
    """The numbers of a completion, or None where it is not a clean list. One trailing full stop and one enclosing pair of brackets are
    allowed; the text between the first two digit runs is the separator and must be white space, a comma or a semicolon (with white space)
    throughout; a lone number counts."""
    if text.endswith("."):
        text = text[:-1]
    if len(text) >= 2 and (text[0], text[-1]) in {("[", "]"), ("(", ")")}:
        text = text[1:-1]
    runs = [match.span() for match in _DIGITS.finditer(text)]
    if not runs:
        return None
    if len(runs) == 1:
        pieces = [text]
    else:
        separator = text[runs[0][1] : runs[1][0]]
        if separator.strip() not in {"", ",", ";"}:
            return None
        pieces = text.split(separator)
    if not all(piece.isascii() and piece.isdigit() for piece in pieces):
        return None
    return [_value(piece) for piece in pieces]


def _value(digits: str) -> int:
    """The number that is written, but at most 10**18, so that a hostile row of digits costs nothing."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= 18 else 10**18
