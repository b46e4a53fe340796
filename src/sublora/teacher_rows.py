"""Rows that a user brings: what a teacher by weights is trained on."""

import json
from functools import lru_cache
from pathlib import Path

from sublora.errors import SubloraError

Rows = tuple[tuple[str, str], ...]


def load_rows(path: str) -> Rows:
    """(prompt, completion) of a JSONL file. Raises SubloraError: unreadable, empty, or a line without both as texts."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return _load(path, state.st_mtime_ns, state.st_size)


def _unreadable(path: str, error: Exception) -> SubloraError:
    return SubloraError(
        f"The rows file {path} cannot be read ({error}); give a JSONL file with 'prompt' and 'completion'."
    )


@lru_cache(maxsize=8)
def _load(path: str, changed: int, size: int) -> Rows:
    """Kept as long as the file stays as it is, since a plan asks for it again and again."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, completion = row["prompt"], row["completion"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = completion = None
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion.strip():
            raise SubloraError(
                f"Line {number} of {path} has no 'prompt' and 'completion' as texts; mend or remove it."
            )
        rows.append((prompt, completion))
    if not rows:
        raise SubloraError(f"The rows file {path} has no rows; add one a line.")
    return tuple(rows)
