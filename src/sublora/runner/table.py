"""Tables on the console."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(v).replace("[", r"\[") for v in row))
    console = Console(highlight=False)
    # piped output is for programs and logs: no wrapping at eighty columns
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)
