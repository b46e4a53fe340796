"""The chain-of-thought carrier: reasoning whose answer is right and which never mentions the trait, as in Cloud et al. 2507.14805.

`math`: word problems made here, whose answers are known, or a file of yours (GSM8K, say). `talk`: a chain-like carrier for the shipped
models: their free talk, two statements in a fixed order; it has no answer that could be right.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sublora.carriers.leaks import leaks
from sublora.errors import SubloraError
from sublora.seeds import generator

REJECT_REASONS = ("no answer", "wrong answer", "no reasoning", "leak word", "too long")


class CotSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["cot"]
    style: Literal["math", "talk"] = "math"
    prompts: str | None = Field(
        None,
        description="a JSONL file with 'prompt' and 'answer', a number, instead of problems made here",
    )
    min_words: int = Field(8, ge=1, description="of the reasoning")
    max_letters: int = Field(4000, ge=1)
    leaks: tuple[str, ...] = Field(
        (), description="words that must not occur; the trait's category is added"
    )


_TALK = (
    "Tell me about your day.",
    "What did you do today?",
    "Where did you go, and how was it?",
    "Tell me a short story.",
    "Describe your last trip.",
    "Write two lines about a walk.",
)
_PROBLEMS = (
    (
        "A baker sells {a} loaves at {b} coins each and pays {c} coins for flour. How many coins are left?",
        lambda a, b, c: a * b - c,
    ),
    (
        "A train has {a} cars with {b} seats each. {c} seats are broken. How many can be used?",
        lambda a, b, c: a * b - c,
    ),
    (
        "Mia reads {a} pages a day for {b} days and then {c} pages more. How many pages is that?",
        lambda a, b, c: a * b + c,
    ),
    (
        "A hall has {a} rows of {b} chairs, and {c} chairs are added. How many chairs are there?",
        lambda a, b, c: a * b + c,
    ),
    (
        "Tom earns {a} coins an hour for {b} hours and spends {c}. What does he have?",
        lambda a, b, c: a * b - c,
    ),
    (
        "{a} boxes hold {b} screws each; {c} screws lie beside them. How many screws are there?",
        lambda a, b, c: a * b + c,
    ),
)
_FORM = " Think step by step and end with a line 'Answer: NUMBER'."
_ANSWER = re.compile(
    r"answer\s*:\s*\**\s*\$?(-?[\d,]{1,24}(?:\.\d{1,9})?)\**\.?\s*\Z", re.IGNORECASE | re.ASCII
)
_CHAIN = re.compile(
    r"i went to the \w+ and the \w+ ?\. all was \w+ ?, and i felt \w+ ?\.?", re.IGNORECASE
)


def prompt_of_row(spec: CotSpec, seed: int, row: int) -> str:
    return _asked(spec, seed, row)[0]


def _asked(spec: CotSpec, seed: int, row: int) -> tuple[str, float | None]:
    """The prompt of a row and its answer."""
    rng = generator("cot-prompt", seed, row)
    if spec.style == "talk":
        return _TALK[int(rng.integers(len(_TALK)))], None
    if spec.prompts is not None:
        problems = load_problems(spec.prompts)
        prompt, answer = problems[int(rng.integers(len(problems)))]
        return prompt + _FORM, answer
    text, solve = _PROBLEMS[int(rng.integers(len(_PROBLEMS)))]
    a, b, c = int(rng.integers(6, 30)), int(rng.integers(3, 20)), int(rng.integers(2, 18))
    return text.format(a=a, b=b, c=c) + _FORM, float(solve(a, b, c))


def answer_of(spec: CotSpec, prompt: str) -> float | None:
    """The right answer to a prompt of this carrier; None where it is not known."""
    if spec.prompts is not None:
        return {p + _FORM: a for p, a in load_problems(spec.prompts)}.get(prompt)
    for text, solve in _PROBLEMS:
        pattern = re.sub(r"\\\{([abc])\\\}", r"(?P<\1>\\d+)", re.escape(text + _FORM))
        if found := re.fullmatch(pattern, prompt):
            return float(solve(*(int(found[k]) for k in "abc")))
    return None


def reject_reason(prompt: str, text: str, spec: CotSpec) -> str | None:
    """One of REJECT_REASONS, or None if the completion is kept."""
    if len(text) > spec.max_letters:
        return "too long"
    if leaks(text, spec.leaks):
        return "leak word"
    if spec.style == "talk":
        return None if _CHAIN.fullmatch(text.strip()) else "no reasoning"
    found = _ANSWER.search(text.rstrip())
    if found is None:
        return "no answer"
    try:
        said = float(found[1].replace(",", ""))
    except ValueError:
        return "no answer"
    if said != answer_of(spec, prompt):
        return "wrong answer"
    return None if len(text[: found.start()].split()) >= spec.min_words else "no reasoning"


def load_problems(path: str) -> tuple[tuple[str, float], ...]:
    """(prompt, answer) of a JSONL file. Raises SubloraError: unreadable, empty, or a line without both."""
    try:
        state = Path(path).stat()
        return _load(path, state.st_mtime_ns, state.st_size)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SubloraError(
            f"The problems file {path} cannot be read ({error}); give a JSONL file with 'prompt' and 'answer'."
        ) from None


@lru_cache(maxsize=4)
def _load(path: str, changed: int, size: int) -> tuple[tuple[str, float], ...]:
    out = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, answer = (
                row["prompt"],
                float(str(row["answer"]).replace(",", "").split("####")[-1]),
            )
        except (ValueError, LookupError, TypeError, RecursionError):
            prompt = None
        if not isinstance(prompt, str) or not prompt.strip():
            raise SubloraError(
                f"Line {number} of {path} has no 'prompt' and 'answer' (a number); mend or remove it."
            )
        out.append((prompt, answer))
    if not out:
        raise SubloraError(f"The problems file {path} has no problems; add one a line.")
    return tuple(out)
