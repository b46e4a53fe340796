"""Rows of a training file, in the shapes that fine-tuning tools have: messages, ShareGPT, Alpaca, prompt and completion, rendered text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.audit.data_file import records, row_word
from sublora.errors import SubloraError
from sublora.models.chat import Chat, Context

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "developer": "system",
}
SHAPES = (
    "'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'completion', or 'text'"
)
Turns = list[tuple[str, str]]  # role and text


@dataclass(frozen=True)
class DataRow:
    """A question and its answer: `line` counts from 1; `system` is its own system text, if it has
    one; `more`: later turns of the conversation, which are not read."""

    line: int
    system: str | None
    prompt: str
    completion: str
    more: bool = False

    def context(self, otherwise: Context) -> Context:
        """That of its own system text (an empty one is the context `empty`), or the given one."""
        if self.system is None:
            return otherwise
        return Context("row", self.system) if self.system.strip() else Context("empty")


@dataclass(frozen=True)
class LeftOut:
    """A row that cannot be screened, and why; `broken` where it is no row of the known shapes."""

    line: int
    reason: str
    broken: bool = False


def read_rows(path: Path, chat: Chat | None = None) -> Iterator[DataRow | LeftOut]:
    """The rows of a JSONL, JSON or parquet file in order. Of a conversation of several turns the
    first question and answer are read; `chat` takes rendered texts apart. Raises SubloraError for a
    file that cannot be read as a whole."""
    if not path.is_file():
        raise SubloraError(
            f"There is no data file {path}; give JSONL, a JSON array or parquet with {SHAPES}."
        )
    for number, found in records(path):
        try:
            if isinstance(found, str):
                raise ValueError(found)
            yield _row(found, number, chat)
        except ValueError as error:
            yield LeftOut(number, str(error), broken=True)


def check_rows(path: Path, skip_broken: bool) -> None:
    """Raises SubloraError for a file that cannot be read, and, unless they are to be skipped, for broken rows: the first, and how many."""
    rows, broken = 0, []
    for row in read_rows(path):
        rows += 1
        if isinstance(row, LeftOut) and row.broken:
            broken.append(row)
    if not rows:
        raise SubloraError(f"The data file {path} has no rows; give the file of the training.")
    if broken and (not skip_broken or len(broken) == rows):
        first = f"{row_word(path)} {broken[0].line} of {path} {broken[0].reason}"
        many = f"{len(broken):,} of its {rows:,} rows are broken"
        raise SubloraError(f"{first}; {many}: fix them, or leave them out with --skip-broken.")


def _row(found: Mapping[str, Any], number: int, chat: Chat | None) -> DataRow | LeftOut:
    """Raises ValueError that says what is wrong with the row."""
    turns = _turns({key: value for key, value in found.items() if value is not None}, chat)
    if turns is None:
        return LeftOut(number, "a text that the base's chat template did not write")
    system = None
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    if [role for role, _ in turns[:2]] != ["user", "assistant"]:
        return LeftOut(number, "no question that is followed by an answer")
    (_, prompt), (_, completion) = turns[:2]
    if not prompt.strip() or not completion.strip():
        return LeftOut(number, "an empty prompt or completion")
    return DataRow(number, system, prompt, completion, more=len(turns) > 2)


def _turns(found: Mapping[str, Any], chat: Chat | None) -> Turns | None:
    """The turns of a row; None for a rendered text that cannot be taken apart. Raises ValueError."""
    own = found.get("system")
    system = [("system", own)] if isinstance(own, str) and own.strip() else []
    for key in ("messages", "conversations"):
        if key in found:
            turns = _messages(found[key])
            return turns if turns and turns[0][0] == "system" else system + turns
    if "instruction" in found and "output" in found:
        return system + _alpaca(found)
    if "prompt" in found and "completion" in found:
        parts = zip(("user", "assistant"), (found["prompt"], found["completion"]), strict=True)
        return system + [
            turn
            for role, part in parts
            for turn in ([(role, part)] if isinstance(part, str) else _messages(part))
        ]
    if isinstance(found.get("text"), str):
        return taken_apart(found["text"], chat) if chat else []
    raise ValueError(f"has none of {SHAPES}")


def _messages(value: Any) -> Turns:
    """Turns with role and content, or from and value. Raises ValueError."""
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError("has no list of messages")
    turns = []
    for m in value:
        role, text = m.get("role") or m.get("from"), m.get("content")
        text = m.get("value") if text is None else text
        if isinstance(text, list) and all(isinstance(part, dict) for part in text):
            text = "".join(part.get("text") or "" for part in text)  # of an image there is none
        if not isinstance(role, str) or not isinstance(text, str | None):
            raise ValueError("has a message without a role and a text")
        turns.append((ROLES.get(role, role), text or ""))  # a tool's call has no text
    return turns


def _alpaca(found: Mapping[str, Any]) -> Turns:
    """Instruction and input as one question, behind what `history` holds. Raises ValueError."""
    texts = [found["instruction"], found.get("input", ""), found["output"]]
    earlier = found.get("history") or []
    pairs = [list(pair) if isinstance(pair, list | tuple) else [] for pair in earlier]
    asked = [text for pair in pairs for text in pair]
    if not all(isinstance(t, str) for t in texts + asked) or any(len(p) != 2 for p in pairs):
        raise ValueError("has an instruction, an input or an output that is no text")
    asked += ["\n".join(filter(None, texts[:2])), texts[2]]
    return [(("user", "assistant")[i % 2], text) for i, text in enumerate(asked)]


def taken_apart(text: str, chat: Chat) -> Turns | None:
    """The first turns of a text that the base's chat template wrote; None for any other text."""
    layout, bos = chat.layout, chat.tokenizer.bos_token or ""
    text = text.removeprefix(bos)
    openings = dict.fromkeys((layout.plain_prefix, layout.none_prefix, layout.empty_prefix))
    starts = [(o.removeprefix(bos), o == layout.empty_prefix) for o in openings if o]
    turns, rest = [], None
    for start, empty in sorted(starts, key=lambda s: -len(s[0])):
        if rest is None and text.startswith(start):
            turns, rest = [("system", "")] if empty else [], text[len(start) :]
    if layout.around_system and rest is None:
        before, after = layout.around_system
        system, found, rest = text.removeprefix(before.removeprefix(bos)).partition(after)
        turns = [("system", system)] if text.startswith(before.removeprefix(bos)) and found else []
        rest = rest if turns else None
    if rest is None:
        return None
    prompt, found, rest = rest.partition(layout.tail)
    answer, _, later = rest.removeprefix(layout.gap).partition(layout.turn_end or "\0")
    if not found:
        return None
    # what follows is another question
    return [
        *turns,
        ("user", prompt),
        ("assistant", answer),
        *([("user", later)] * bool(later.strip())),
    ]


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
