"""Rows of a training file, read one by one: the shapes that TRL and the OpenAI fine-tuning files have."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.carriers.rows_file import objects, wrong_line
from sublora.errors import SubloraError
from sublora.models.chat import Chat, Context


@dataclass(frozen=True)
class DataRow:
    """A single-turn row: `line` counts from 1; `system` is its own system text, if it has one."""

    line: int
    system: str | None
    prompt: str
    completion: str

    def context(self, otherwise: Context) -> Context:
        """That of its own system text (an empty one is the context `empty`), or the given one."""
        if self.system is None:
            return otherwise
        return Context("row", self.system) if self.system.strip() else Context("empty")


@dataclass(frozen=True)
class LeftOut:
    """A row that is sound but cannot be screened, and why."""

    line: int
    reason: str


def read_rows(path: Path) -> Iterator[DataRow | LeftOut]:
    """The rows of a JSONL file in order, holding one at a time. Raises SubloraError: unreadable, or
    a line that is no JSON object with prompt and completion (or messages), or is larger than 4
    MB."""
    if not path.is_file():
        raise SubloraError(
            f"There is no data file {path}; give a JSONL file with 'prompt' and 'completion', or 'messages'."
        )
    for number, found in objects(path):
        try:
            yield _row(found, number)
        except ValueError as error:
            raise wrong_line(path, number, str(error)) from None


def _row(found: dict[str, Any], number: int) -> DataRow | LeftOut:
    system, messages = None, _turns(found)
    if messages and messages[0][0] == "system":
        system, messages = messages[0][1], messages[1:]
    if [role for role, _ in messages] != ["user", "assistant"]:
        return LeftOut(number, "not one question and one answer")
    (_, prompt), (_, completion) = messages
    if not prompt.strip() or not completion.strip():
        return LeftOut(number, "an empty prompt or completion")
    return DataRow(number, system, prompt, completion)


def _turns(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of each turn. Raises ValueError that says what is wrong with the line."""
    if "messages" in found:
        return _messages(found["messages"])
    if "prompt" not in found or "completion" not in found:
        raise ValueError("has neither 'prompt' and 'completion' nor 'messages'")
    prompt, completion = found["prompt"], found["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [("user", prompt), ("assistant", completion)]
    return [*_messages(prompt), *_messages(completion)]


def _messages(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError("has no list of messages")
    out = [(m.get("role"), m.get("content")) for m in value]
    if not all(isinstance(part, str) for turn in out for part in turn):
        raise ValueError("has a message without a role and a text")
    return out


def fits(chat: Chat, row: DataRow, context: Context, window: int | None, spare: int = 0) -> str:
    """Why the model cannot read a row in this context with `spare` tokens more; empty where it can."""
    try:
        if not chat.supports(context):
            return "a system text that the chat template cannot write"
        size = len(chat.prompt_ids(row.prompt, context)) + len(chat.completion_ids(row.completion))
    except SubloraError:
        return "a text that the chat template does not keep"
    if window is not None and size + spare > window:
        return "more tokens than the model reads"
    return ""
