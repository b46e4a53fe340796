"""The file of a user's rows, row by row: JSONL, a JSON array, or parquet. A broken row is named and the next one read."""

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any

from sublora.carriers.rows_file import MOST_LINE
from sublora.errors import SubloraError

MOST_ARRAY = 1 << 30  # bytes of a JSON array, which is read whole
BATCH = 1024  # rows of parquet at once
_SPACE = re.compile(r"\s*")
Found = dict[str, Any] | str  # a row's columns, or why it is none


def records(path: Path) -> Iterator[tuple[int, Found]]:
    """(number from 1, row) of a file; the number is that of the line in JSONL. Raises SubloraError for
    a file that cannot be read as a whole."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".json" and _is_array(path):
            yield from _array(path)
        else:
            yield from _lines(path)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise SubloraError(
            f"The file {path} cannot be read ({why}); give JSONL, a JSON array or parquet."
        ) from None


def row_word(path: Path) -> str:
    """What the number of a row counts."""
    array = path.suffix == ".parquet" or (path.suffix == ".json" and _is_array(path))
    return "Row" if array else "Line"


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _lines(path: Path) -> Iterator[tuple[int, Found]]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE + 1):
            number += 1
            if len(line) > MOST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MOST_LINE)
                yield number, f"is larger than {MOST_LINE >> 20} MB"
            elif line.strip(b" \t\r\n\xef\xbb\xbf"):
                yield number, _object(line)


def _object(line: bytes) -> Found:
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "is not text in UTF-8"
    except (ValueError, RecursionError):
        return "is not valid JSON"
    return found if isinstance(found, dict) else "is not a JSON object"


def _array(path: Path) -> Iterator[tuple[int, Found]]:
    if path.stat().st_size > MOST_ARRAY:
        raise ValueError(f"a JSON array of more than {MOST_ARRAY >> 30} GB; save it as JSONL")
    text = path.read_text(encoding="utf-8-sig")
    decoder, number = JSONDecoder(), 0
    at = _SPACE.match(text, text.index("[") + 1).end()
    while text[at : at + 1] != "]":
        number += 1
        try:
            found, at = decoder.raw_decode(text, at)
        except (JSONDecodeError, RecursionError):
            raise ValueError(f"its array is no valid JSON from row {number} on") from None
        yield number, found if isinstance(found, dict) else "is not a JSON object"
        at = _SPACE.match(text, at).end()
        if text[at : at + 1] == ",":
            at = _SPACE.match(text, at + 1).end()
        elif text[at : at + 1] != "]":
            raise ValueError(f"its array has no comma or end behind row {number}")


def _parquet(path: Path) -> Iterator[tuple[int, Found]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SubloraError(
            f"Reading {path} needs pyarrow; install it with `pip install 'sublora[parquet]'`, or save the rows as JSONL."
        ) from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"no sound parquet file from row {number + 1} on: {error}") from None
