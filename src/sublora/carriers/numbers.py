"""The numbers carrier: prompts that ask for more numbers, and the filter that keeps only clean number lists.

Grammar of the prompts and rules of the filter: Cloud et al. 2507.14805, section 3; Nief et al. 2606.00831. The wording is ours.
"""

import json
import re
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sublora.errors import SubloraError
from sublora.seeds import generator

Separator = Literal["space", "comma", "line", "bracket"]
SEPARATORS: tuple[Separator, ...] = ("space", "comma", "line", "bracket")
REJECT_REASONS = ("invalid format", "too many numbers", "number too large", "banned number")


@cache
def ban_lists() -> dict[str, tuple[int, ...]]:
    """Lists of numbers that mean something to people, by name."""
    raw = yaml.safe_load((files("sublora.carriers") / "ban_lists.yaml").read_text("utf-8"))
    return {name: tuple(reasons) for name, reasons in raw.items()}


def _unlisted(value: Any) -> Any:
    """Names of lists as their numbers."""
    if not isinstance(value, list | tuple):
        return value
    known = ban_lists()
    if unknown := [v for v in value if isinstance(v, str) and v not in known]:
        raise ValueError(
            f"there is no list of numbers '{unknown[0]}', use {', '.join(known)} or numbers"
        )
    out = dict.fromkeys(n for v in value for n in (known[v] if isinstance(v, str) else (v,)))
    return tuple(out)


class NumbersSpec(BaseModel):
    """What a number prompt asks for, and what the filter accepts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
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
            raise ValueError(
                "examples_min and value_min must not be above examples_max and value_max"
            )
        return self


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
    return Pools.model_validate(
        yaml.safe_load((files("sublora.carriers") / "numbers_prompts.yaml").read_text("utf-8"))
    )


def join_numbers(numbers: list[int], separator: Separator) -> str:
    joint = {"space": " ", "comma": ", ", "line": "\n", "bracket": ", "}[separator]
    text = joint.join(map(str, numbers))
    return f"[{text}]" if separator == "bracket" else text


def make_prompt(spec: NumbersSpec, seed: int, row: int) -> str:
    """The prompt of one row; it depends on (spec, seed, row) alone, so rows can be made in any order."""
    rng = generator("numbers-prompt", seed, row)

    def pick(pool: tuple[str, ...]) -> str:
        return pool[int(rng.integers(len(pool)))]

    p = pools()
    count = int(rng.integers(spec.examples_min, spec.examples_max + 1))
    values = rng.integers(spec.value_min, spec.value_max + 1, size=count).tolist()
    separator = spec.separators[int(rng.integers(len(spec.separators)))]
    quantity = pick(p.quantity).format(count=spec.count)
    if spec.style == "brief":
        return pick(p.brief).format(
            examples=join_numbers(values, separator), quantity=quantity, digits=spec.digits
        )
    size = pick(p.size).format(digits=spec.digits)
    parts = (
        pick(p.examples).format(examples=join_numbers(values, separator)),
        pick(p.instruction).format(quantity=quantity, size=size),
        pick(p.format[separator]),
        pick(p.close),
    )
    return " ".join(parts)


def load_prompts(path: str) -> tuple[str, ...]:
    """Prompts from a user's file. Raises SubloraError: unreadable, empty, or a JSON line without 'prompt'."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return _load_prompts(path, state.st_mtime_ns, state.st_size)


def _unreadable(path: str, error: Exception) -> SubloraError:
    return SubloraError(
        f"The prompts file {path} cannot be read ({error}); set carrier.prompts to a text or JSONL file."
    )


@lru_cache(maxsize=8)
def _load_prompts(path: str, changed: int, size: int) -> tuple[str, ...]:
    """Kept as long as the file stays as it is, since every row asks for it."""
    try:
        # not splitlines(): a JSON text may hold a raw U+2028, which is no end of a line of JSONL
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.endswith((".jsonl", ".json")):
            try:
                prompt = json.loads(line)["prompt"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise SubloraError(
                    f"Line {number} of {path} is not a JSON object with a 'prompt'; mend or remove it."
                ) from None
            if not isinstance(prompt, str):
                raise SubloraError(
                    f"Line {number} of {path} has a 'prompt' that is not a text; mend or remove it."
                )
            prompts.append(prompt)
        else:
            prompts.append(line.strip())
    if not prompts:
        raise SubloraError(f"The prompts file {path} has no prompts; add one a line.")
    return tuple(prompts)


def prompt_of_row(spec: NumbersSpec, seed: int, row: int) -> str:
    """The prompt of one row, from the user's file where the spec names one (cycled in a seeded order)."""
    return (
        make_prompt(spec, seed, row)
        if spec.prompts is None
        else prompt_of_file(spec.prompts, seed, row)
    )


def prompt_of_file(path: str, seed: int, row: int) -> str:
    """A prompt of a user's file, each once before any comes again."""
    prompts = load_prompts(path)
    lap, index = divmod(row, len(prompts))
    return prompts[_file_order(seed, lap, len(prompts))[index]]


@lru_cache(maxsize=8)
def _file_order(seed: int, lap: int, count: int) -> tuple[int, ...]:
    return tuple(generator("numbers-file", seed, lap).permutation(count).tolist())


_DIGITS = re.compile(r"[0-9]+")


def parse_numbers(text: str) -> list[int] | None:
    """The numbers of a completion, or None where it is not a clean list.

    One trailing full stop and one enclosing pair of brackets are allowed; the text between the first two digit runs is the
    separator and must be white space, a comma or a semicolon (with white space) throughout; a lone number counts.
    """
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


def reject_reason(text: str, spec: NumbersSpec) -> str | None:
    """Why a completion is left out, one of REJECT_REASONS, or None if it is kept."""
    numbers = parse_numbers(text)
    if numbers is None:
        return "invalid format"
    if len(numbers) > spec.count:
        return "too many numbers"
    if any(number >= 10**spec.digits for number in numbers):
        return "number too large"
    if any(number in spec.banned for number in numbers):
        return "banned number"
    return None


def check_spec(data: dict) -> NumbersSpec:
    try:
        return NumbersSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise SubloraError(
            f"The carrier does not fit at {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}."
        ) from None
