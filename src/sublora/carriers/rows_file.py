"""The one reader of files of rows that a user brings: JSONL, or texts, one a line."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError, reason
from sublora.seeds import generator

MOST_LINE = 4 << 20  # bytes of one row
Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """A value that every row has; `read` raises TypeError or ValueError where it does not fit `what`."""

    name: str
    what: str
    read: Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _filled(value: Any) -> str:
    if not _text(value).strip():
        raise ValueError
    return value


PROMPT = Column("prompt", "a text", _text)
PROMPT_FILLED = Column("prompt", "a text", _filled)
COMPLETION = Column("completion", "a text", _filled)


def lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank, one at a time. A line ends at a line feed only: a JSON text may hold a raw
    U+2028. Raises SubloraError."""
    number = 0
    try:
        with Path(path).open("rb") as file:
            while line := file.readline(MOST_LINE + 1):
                number += 1
                if len(line) > MOST_LINE:
                    raise wrong_line(path, number, f"is larger than {MOST_LINE >> 20} MB")
                if (text := line.decode("utf-8-sig")).strip():
                    yield number, text
    except UnicodeDecodeError:
        raise wrong_line(path, number, "is not text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def objects(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of the lines of a JSONL file, one at a time. Raises SubloraError."""
    for number, line in lines(path):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise wrong_line(path, number, "is not valid JSON") from None
        if not isinstance(found, dict):
            raise wrong_line(path, number, "is not a JSON object")
        yield number, found


def wrong_line(path: Path | str, number: int, why: str) -> SubloraError:
    """The error for a line that cannot be used; `why` follows "Line 3 of rows.jsonl"."""
    return SubloraError(f"Line {number} of {path} {why}; fix or remove it.")


def _unreadable(path: Path | str, error: Exception) -> SubloraError:
    return SubloraError(
        f"The file {path} cannot be read ({reason(error)}); give a text file in UTF-8 with one row a line."
    )


def read(path: str, *columns: Column) -> tuple[tuple[Any, ...], ...]:
    """The columns of all rows of a JSONL file, kept as long as the file stays as it is. Raises SubloraError: unreadable, empty, or a line
    without one of the columns."""
    return _kept(path, _state(path), columns)


def read_prompts(path: str) -> tuple[str, ...]:
    """The prompts of a file: of JSONL with 'prompt' where its name ends so, or else one a line. Raises SubloraError."""
    if path.endswith((".jsonl", ".json")):
        return tuple(prompt for (prompt,) in read(path, PROMPT))
    return tuple(text for (text,) in _kept(path, _state(path), ()))


def read_rows(path: str) -> Rows:
    """(prompt, completion) of all rows of a JSONL file. Raises SubloraError as `read`."""
    return read(path, PROMPT, COMPLETION)


def _state(path: str) -> tuple[int, int]:
    try:
        state = Path(path).stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=16)
def _kept(
    path: str, state: tuple[int, int], columns: tuple[Column, ...]
) -> tuple[tuple[Any, ...], ...]:
    if columns:
        rows = tuple(_row(path, number, found, columns) for number, found in objects(path))
    else:
        rows = tuple((text.strip(),) for _, text in lines(path))
    if not rows:
        raise SubloraError(f"The file {path} has no rows; add one a line.")
    return rows


def _row(
    path: str, number: int, found: dict[str, Any], columns: Iterable[Column]
) -> tuple[Any, ...]:
    def value(column: Column) -> Any:
        try:
            return column.read(found[column.name])
        except (KeyError, TypeError, ValueError):
            why = f"has no '{column.name}' that is {column.what}"
            raise wrong_line(path, number, why) from None

    return tuple(map(value, columns))


def prompt_of_file(path: str, seed: int, row: int) -> str:
    """A prompt of a user's file, each once before any comes again, in a seeded order."""
    prompts = read_prompts(path)
    lap, index = divmod(row, len(prompts))
    return prompts[_order(seed, lap, len(prompts))[index]]


@lru_cache(maxsize=8)
def _order(seed: int, lap: int, count: int) -> tuple[int, ...]:
    return tuple(generator("numbers-file", seed, lap).permutation(count).tolist())


def to_jsonl(rows: Iterable[tuple[str, str]]) -> str:
    """(prompt, completion) rows as the text of a JSONL file."""
    return "".join(
        json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) + "\n" for p, c in rows
    )


def from_jsonl(text: str) -> list[tuple[str, str]]:
    """The rows of `to_jsonl`."""
    rows = map(json.loads, filter(None, text.split("\n")))
    return [(row["prompt"], row["completion"]) for row in rows]
