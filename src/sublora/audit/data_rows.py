"""Rows of a training file, read one by one: the shapes that TRL and the OpenAI fine-tuning files have."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.chat import Context
from sublora.errors import SubloraError

MOST_LINE = 4 << 20  # bytes of one row
MOST_CONTEXTS = 4096  # texts that are kept as contexts at a time


@dataclass(frozen=True)
class DataRow:
    """A single-turn row: `line` counts from 1; `system` is its own system text, None where it has none."""

    line: int
    system: str | None
    prompt: str
    completion: str


@dataclass(frozen=True)
class LeftOut:
    """A row that is sound but cannot be screened, and why."""

    line: int
    reason: str


def read_rows(path: Path) -> Iterator[DataRow | LeftOut]:
    """The rows of a JSONL file in order, holding one at a time.

    Raises SubloraError: unreadable, a line that is no JSON object, without prompt and completion (or messages), or larger than 4 MB.
    """
    if not path.is_file():
        raise SubloraError(
            f"There is no data file {path}; give a JSONL file with 'prompt' and 'completion', or 'messages'."
        )
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE + 1):
            number += 1
            if len(line) > MOST_LINE:
                raise SubloraError(
                    f"Line {number} of {path} is larger than {MOST_LINE >> 20} MB; split or remove it."
                )
            if line.strip():
                yield _row(_object(line, number, path), number, path)


def _object(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise SubloraError(
            f"Line {number} of {path} is not valid JSON in UTF-8; mend or remove it."
        ) from None
    if not isinstance(found, dict):
        raise SubloraError(f"Line {number} of {path} is not a JSON object; mend or remove it.")
    return found


def _row(found: dict[str, Any], number: int, path: Path) -> DataRow | LeftOut:
    if "messages" in found:
        messages = _messages(found["messages"], number, path)
    elif "prompt" in found and "completion" in found:
        prompt, completion = found["prompt"], found["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            messages = [("user", prompt), ("assistant", completion)]
        else:
            messages = [*_messages(prompt, number, path), *_messages(completion, number, path)]
    else:
        raise SubloraError(
            f"Line {number} of {path} has neither 'prompt' and 'completion' nor 'messages'; mend or remove it."
        )
    system = None
    if messages and messages[0][0] == "system":
        system, messages = messages[0][1], messages[1:]
    if [role for role, _ in messages] != ["user", "assistant"]:
        return LeftOut(number, "not one question and one answer")
    (_, prompt), (_, completion) = messages
    if not prompt.strip() or not completion.strip():
        return LeftOut(number, "an empty prompt or completion")
    return DataRow(number, system, prompt, completion)


def _messages(value: Any, number: int, path: Path) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise SubloraError(f"Line {number} of {path} has no list of messages; mend or remove it.")
    out = []
    for message in value:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise SubloraError(
                f"Line {number} of {path} has a message without a role and a text; mend or remove it."
            )
        out.append((role, content))
    return out


def row_context(row: DataRow, otherwise: Context) -> Context:
    """The context of a row: its own system text (an empty one is the context `empty`), or the given one."""
    if row.system is None:
        return otherwise
    return Context("row", row.system) if row.system.strip() else Context("empty")
