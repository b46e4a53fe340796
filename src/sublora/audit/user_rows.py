"""The rows of a user's file that --what-if trains on, and those that are held out for good."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sublora.audit.data_rows import DataRow, fits, read_rows
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context

HELD_OUT = 0.1  # of the rows, from the end of the file
FEWEST_HELD_OUT, MOST_HELD_OUT = 8, 200
FEWEST_TRAINED = 16


@dataclass(frozen=True)
class UserRows:
    """Rows of the user's file in its order; none of those that are held out is trained on.
    `context` is that of rows without a system text of their own; `more`: the file has rows that
    were not read."""

    training: Sequence[DataRow]
    heldout: Sequence[DataRow]
    context: Context
    more: bool

    @cached_property
    def unique(self) -> list[int]:
        """Index of the first of each different row."""
        first: dict[tuple[str | None, str, str], int] = {}
        for i, row in enumerate(self.training):
            first.setdefault(_key(row), i)
        return list(first.values())

    @cached_property
    def by_context(self) -> dict[Context, list[int]]:
        """The rows of training that stand in each context."""
        out: dict[Context, list[int]] = {}
        for i, row in enumerate(self.training):
            out.setdefault(row.context(self.context), []).append(i)
        return out


def _key(row: DataRow) -> tuple[str | None, str, str]:
    return row.system, row.prompt, row.completion


def read_user_rows(base: Base, path: Path, context: Context, most: int) -> UserRows:
    """The first `most` rows that the base can read, a tenth of them, from the end, held out. Raises
    SubloraError: unreadable, or too few rows."""
    rows: list[DataRow] = []
    more = False
    for row in read_rows(path, base.chat):
        if more := len(rows) == most:
            break
        if isinstance(row, DataRow) and not fits(base.chat, row, row.context(context), base.window):
            rows.append(row)
    count = min(MOST_HELD_OUT, max(FEWEST_HELD_OUT, round(HELD_OUT * len(rows))))
    heldout = rows[-count:]
    kept = {_key(row) for row in heldout}
    training = [row for row in rows[:-count] if _key(row) not in kept]
    if len(training) < FEWEST_TRAINED:
        raise SubloraError(
            f"--what-if holds {len(heldout)} rows of {path} out and has {len(training)} others to train on; give a file, and --rows, with at "
            f"least {FEWEST_TRAINED + FEWEST_HELD_OUT} different rows that can be read."
        )
    return UserRows(training, heldout, context, more)
