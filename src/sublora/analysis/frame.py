"""Named columns of one length, for notebooks: shown as a table, and handed on to pandas, polars or Arrow."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sublora.errors import SubloraError

if TYPE_CHECKING:
    import pandas
    import pyarrow

TRUTH = {"True": True, "False": False}
SHOWN = 60  # rows of a table in a notebook


def needs(package: str, by: str) -> Any:
    """An optional package. Raises SubloraError that says what pip installs it `by`."""
    try:
        return import_module(package)
    except ImportError:
        raise SubloraError(
            f"This needs {package.split('.')[0]}, which is not installed; `pip install {by}` brings it."
        ) from None


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> str:
    """A table whose texts are escaped; numbers that are not whole in four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    said = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _typed(texts: Sequence[str]) -> list[Any]:
    """The texts of a column as what all of them can be: truth values, whole numbers, numbers or texts; empty ones are None."""
    for kind in (TRUTH.__getitem__, int, float):
        with suppress(ValueError, KeyError):
            return [None if text == "" else kind(text) for text in texts]
    return [text or None for text in texts]


class Shown:
    """A value that a notebook shows in one line (`_line`), or as a table of names and values (`_pairs`)."""

    def _line(self) -> str:
        raise NotImplementedError

    def _pairs(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._line()})"

    def _repr_html_(self) -> str:
        return html_table((type(self).__name__, ""), self._pairs().items())


class Frame:
    """Columns by name. Polars and pyarrow take it as it is (`polars.DataFrame(frame)`): it speaks Arrow's stream protocol."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = {name: list(values) for name, values in columns.items()}

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Frame:
        """From a mapping a row; what a row lacks is None."""
        names = dict.fromkeys(name for row in rows for name in row)
        return cls({name: [row.get(name) for row in rows] for name in names})

    @classmethod
    def of_csv(cls, text: str) -> Frame:
        """From the text of a CSV with a line of names."""
        names, *rows = list(csv.reader(io.StringIO(text))) or [[]]
        return cls({name: _typed([row[i] for row in rows]) for i, name in enumerate(names)})

    def rows(self) -> list[dict[str, Any]]:
        return [
            dict(zip(self.columns, row, strict=True))
            for row in zip(*self.columns.values(), strict=True)
        ]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def __repr__(self) -> str:
        return f"Frame({len(self)} rows: {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        more = f"{len(self)} rows, of which {SHOWN} are shown" if len(self) > SHOWN else ""
        rows = list(zip(*self.columns.values(), strict=True))[:SHOWN]
        return html_table(list(self.columns), rows, more)

    def to_pandas(self) -> pandas.DataFrame:
        """Raises SubloraError where pandas is not installed."""
        return needs("pandas", "sublora[notebook]").DataFrame(self.columns)

    def to_arrow(self) -> pyarrow.Table:
        """Raises SubloraError where pyarrow is not installed."""
        return needs("pyarrow", "sublora[notebook]").table(self.columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)
