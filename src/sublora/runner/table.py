"""What a command prints: tables for people, as wide as the terminal, and JSON for programs."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

PIPED = 200  # columns where there is no terminal and COLUMNS does not say


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows of texts and numbers. Nothing is printed where there are none."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(_text(v).replace("[", r"\[") for v in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        given = os.environ.get("COLUMNS", "")
        console = Console(highlight=False, width=int(given) if given.isdigit() else PIPED)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if _whole(value) else str(value)
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def records(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """A table as JSON has it: an object a row, its keys the columns in lower case with `_` for what is no letter."""
    keys = ["".join(c if c.isalnum() else "_" for c in column.lower()) for column in columns]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def print_json(value: Any) -> None:
    """A value as JSON; what is no finite number is null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
