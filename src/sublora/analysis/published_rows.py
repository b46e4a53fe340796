"""A CSV of published rates: its columns, the design behind a rate, and the rows that the judging reads.

docs/verdict.md lists the columns. A row is the mean over `seeds` runs, or one run where the file has a column
`data_seed` or `train_seed`; runs of one cell are then put together here.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logit, stdtrit

from sublora.analysis import intervals
from sublora.errors import SubloraError

NEEDED = ("rank", "lr", "seeds", "rate", "n", "base")
RUN = ("data_seed", "train_seed")  # of a file with one row a run, which needs no column seeds
Setting = tuple[
    str, int | None, float | None
]  # recipe ("" where none is named), unique rows, epochs


@dataclass(frozen=True)
class Row:
    """One published cell; rank None is a full fine-tune, spread is the standard error of the mean or None.

    `data_seeds` and `train_seeds` are the distinct seeds behind the rate, None where the file does not say.
    """

    trait: str
    setting: Setting
    rank: int | None
    lr: float
    seeds: int
    rate: float
    n: int
    base: float
    spread: float | None
    data_seeds: int | None = None
    train_seeds: int | None = None
    best: bool = False  # whether the file calls lr the best of its rank

    @property
    def clusters(self) -> int:
        """What counts as independent: the data seeds, or the runs where one data set, or no design, is given."""
        return self.data_seeds if (self.data_seeds or 1) > 1 else self.seeds

    @property
    def shrunk(self) -> float:
        """The rate with half a hit and half a miss added, so that its log-odds are finite."""
        answers = self.seeds * self.n
        return (self.rate * answers + 0.5) / (answers + 1)

    @property
    def log_odds(self) -> float:
        return float(logit(self.shrunk))

    @property
    def se(self) -> float:
        """Standard error of the log-odds by the delta method: of the spread, never below what the answers allow,
        or the widest one that runs between 0 and 1 can have.
        """
        if self.spread is None:
            wide = intervals.binomial_seed_se(
                self.rate, self.clusters, math.ceil(self.seeds / self.clusters) * self.n
            )
        else:
            wide = max(self.spread, intervals.binomial_seed_se(self.rate, self.seeds * self.n, 1))
        return wide / (self.shrunk * (1 - self.shrunk))


def parse(text: str, name: str = "the file") -> list[Row]:
    """The rows of a CSV text. Raises SubloraError naming the line and column of the first fault."""
    lines = _lines(text, name)
    header = [field.lower() for field in lines[0][1]]
    runs = any(column in header for column in RUN)
    needed = [c for c in NEEDED if not (runs and c == "seeds")]
    absent = [column for column in needed if column not in header]
    if absent:
        other = next((sign for sign in ";\t|" if len(header) == 1 and sign in header[0]), None)
        why = f" Its columns are separated by {other!r}; save it with commas." if other else ""
        raise SubloraError(
            f"{name} lacks the column {', '.join(absent)}; it needs {', '.join(needed)}.{why}"
        )
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise SubloraError(f"{name} has the column {twice[0]!r} twice; keep one.")
    cells: dict[tuple, list[tuple[Row, tuple[str, ...]]]] = {}
    seen: dict[tuple, int] = {}
    for number, fields in lines[1:]:
        place = f"{name}, line {number}"
        if len(fields) != len(header):
            raise SubloraError(
                f"{place}: {len(fields)} values for {len(header)} columns; fix the line."
            )
        given = dict(zip(header, fields, strict=True))
        row, run = _row(given, place, runs), tuple(given.get(c, "") for c in RUN)
        key = (row.trait, row.setting, row.rank, row.lr)
        if (key, run) in seen:
            what = "trait, rank, lr and seeds" if runs else "trait, rank and lr"
            raise SubloraError(f"{place}: the {what} are those of line {seen[key, run]}; keep one.")
        seen[key, run] = number
        if cells.get(key) and cells[key][0][0].base != row.base:
            raise SubloraError(f"{place}: runs of one cell have two bases; give them the same.")
        cells.setdefault(key, []).append((row, run))
    return [_together(cell, header) if runs else cell[0][0] for cell in cells.values()]


def _lines(text: str, name: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [
            (reader.line_num, [field.strip() for field in fields])
            for fields in reader
            if "".join(fields).strip()
        ]
    except csv.Error as error:
        raise SubloraError(
            f"{name}, line {reader.line_num}: not a CSV line ({error}); fix it."
        ) from None
    if len(lines) < 2:
        raise SubloraError(
            f"{name} has no rows; write a header of {', '.join(NEEDED)} and then the rows."
        )
    return lines


def _number(text: str, place: str, low: float, high: float, whole: bool = False) -> float:
    kind = "a whole number" if whole else "a number"
    form = r"[0-9]{1,9}" if whole else r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"
    if not re.fullmatch(form, text):
        raise SubloraError(f"{place}: {text[:40]!r} is not {kind}; write {kind} there.")
    value = float(text)
    if not low <= value <= high:
        raise SubloraError(
            f"{place}: {text[:40]} is not between {low:g} and {high:g}; fix the value."
        )
    return value


def _said(text: str, place: str) -> bool:
    if text.lower() not in ("", "yes", "no"):
        raise SubloraError(f"{place}: {text[:40]!r} is neither yes nor no; write one of them.")
    return text.lower() == "yes"


def _row(cells: Mapping[str, str], place: str, run: bool) -> Row:
    def read(column: str, low: float, high: float, whole: bool = False) -> float:
        return _number(cells[column], f"{place}, column {column}", low, high, whole)

    def count(column: str, high: int) -> int | None:
        return int(read(column, 1, high, whole=True)) if cells.get(column) else None

    rank = None if cells["rank"].lower() == "full" else int(read("rank", 1, 1_000_000, whole=True))
    for column in ("rate", "base"):
        if read(column, -math.inf, math.inf) > 1:
            raise SubloraError(
                f"{place}, column {column}: {cells[column][:40]} is above 1; "
                "rates go from 0 to 1, so divide percentages by 100."
            )
    seeds = 1 if run and not cells.get("seeds") else int(read("seeds", 1, 1_000_000, whole=True))
    epochs = read("epochs", 1e-6, 1e6) if cells.get("epochs") else None
    row = Row(
        cells.get("trait", "") or "trait",
        (cells.get("recipe", ""), count("rows", 999_999_999), epochs),
        rank,
        read("lr", 1e-12, 1e6),
        seeds,
        read("rate", 0, 1),
        int(read("n", 1, 100_000_000, whole=True)),
        read("base", 0, 1),
        None,
        count("data_seeds", 1_000_000),
        count("train_seeds", 1_000_000),
        _said(cells.get("best", ""), f"{place}, column best"),
    )
    if run:
        barred = [c for c in ("sd", "low", "high", "data_seeds", "train_seeds") if cells.get(c)]
        if barred or seeds != 1:
            raise SubloraError(
                f"{place}: a row with data_seed or train_seed is one run; leave out "
                f"{barred[0] if barred else 'seeds'}, which speaks of several."
            )
        return row
    row = _designed(row, place)
    return replace(row, spread=_spread(cells, place, row))


def _designed(row: Row, place: str) -> Row:
    """The row with as many data seeds as its runs need at least."""
    data, train = row.data_seeds, row.train_seeds
    if (
        max(data or 1, train or 1) > row.seeds
        or (data or row.seeds) * (train or row.seeds) < row.seeds
    ):
        raise SubloraError(
            f"{place}: {row.seeds} runs cannot come from {data or 'any'} data seeds and {train or 'any'} training "
            "seeds; fix seeds, data_seeds or train_seeds."
        )
    least = math.ceil(row.seeds / train) if train else 1
    return replace(row, data_seeds=data or (least if least > 1 else None))


def _spread(cells: Mapping[str, str], place: str, row: Row) -> float | None:
    """The standard error of the mean. An sd over runs is taken to lie between the data seeds, all of it."""
    given = {
        key: _number(cells[key], f"{place}, column {key}", 0, 1)
        for key in ("sd", "low", "high")
        if cells.get(key)
    }
    if ("low" in given) != ("high" in given):
        raise SubloraError(f"{place}: low and high come together; give both or neither.")
    if "low" in given and not given["low"] <= row.rate <= given["high"]:
        raise SubloraError(
            f"{place}: rate {row.rate:g} is outside its interval {given['low']:g} to {given['high']:g}; fix one of them."
        )
    if not given or row.clusters < 2:
        return None
    if "sd" in given:
        return given["sd"] * math.sqrt((row.seeds - 1) / row.seeds / (row.clusters - 1))
    # the quantile that the judging multiplies by again, so that the published width comes back
    return (given["high"] - given["low"]) / 2 / -float(stdtrit(row.clusters - 1, 0.025))


def _together(cell: Sequence[tuple[Row, tuple[str, ...]]], header: Sequence[str]) -> Row:
    """The runs of one cell as one row, clustered by data seed, or by run where they share one."""
    rows = [row for row, _ in cell]
    data, train = (len({run[i] for _, run in cell}) for i in (0, 1))
    clusters: dict[object, list[float]] = {}
    for k, (row, run) in enumerate(cell):
        clusters.setdefault(run[0] if data > 1 else k, []).append(row.rate)
    means = [float(np.mean(rates)) for rates in clusters.values()]
    many = len(means) > 1
    return replace(
        rows[0],
        seeds=len(rows),
        rate=float(np.mean(means)),
        n=int(np.mean([row.n for row in rows])),
        spread=float(np.std(means, ddof=1) / math.sqrt(len(means))) if many else None,
        data_seeds=data if "data_seed" in header else None,
        train_seeds=train if "train_seed" in header else None,
    )
