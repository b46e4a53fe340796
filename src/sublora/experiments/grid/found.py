"""What a grid came to, as its page needs it: the rows of its tables, and which of them belong together."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sublora.analysis.effects import coherent_by
from sublora.analysis.page import HeatCell
from sublora.text import rate

Row = Mapping[str, Any]
NO_AXIS = re.compile(  # columns of arms.csv that are no axis, or one that stands beside the others
    "trait|method|rank|lr|called|matched|coherence|number_takeover|heldout_loss|said|(n|p|effect|rate|rise|icc|worst)(_.*)?"
)
NOUNS = {
    "data": "rows",
    "train_context": "training context",
    "context": "context asked",
    "placement": "place of the adapter",
}
ENDS = {"estimate": "", "low": "_low", "high": "_high"}  # what the names of columns end with


@dataclass(frozen=True)
class Found:
    """The rows of cells.csv, results.csv, arms.csv, findings.csv, optimizers.csv, matrix.csv and all_traits.csv; answers.json and
    attribution.json.

    `context` is the one that the figures show, `fixed_lr` the rate of the claims' fixed-rate view; `matched`: whether arms
    stand at one held-out loss, each at a rate of its own.
    """

    alpha: float
    context: str
    fixed_lr: float | None
    cells: Sequence[Row]
    results: Sequence[Row]
    arms: Sequence[Row] = ()
    findings: Sequence[Row] = ()
    sweep: Sequence[Row] = ()
    matrix: Sequence[Row] = ()
    together: Sequence[Row] = ()
    answers: Mapping[str, Row] = field(default_factory=dict)
    tokens: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    matched: bool = False

    @property
    def level(self) -> str:
        """The coverage of the intervals."""
        return f"{1 - self.alpha:.0%}"

    @property
    def contexts(self) -> list[str]:
        """All contexts of the cells, the shown one first."""
        names = dict.fromkeys(c["context"] for c in self.cells)
        return sorted(names, key=lambda name: name != self.context)

    def of(self, trait: str, method: str | None = None, context: str | None = None) -> list[Row]:
        """A trait's cells in a context (None: the shown one) by method, rank and rate."""
        context = context or self.context
        found = [c for c in self.cells if (c["trait"], c["context"]) == (trait, context)]
        found = [c for c in found if method in (None, c["method"])]
        return sorted(found, key=lambda c: (c["method"] != "lora", c["rank"] or 0, c["lr"]))

    def best(self, trait: str, method: str) -> Row | None:
        """The best selected cell of a method."""
        chosen = [c for c in self.of(trait, method) if c["selected"]]
        return max(chosen, key=lambda c: c["effect_report"], default=None)

    def axes(self, rows: Sequence[Row]) -> list[str]:
        """The axes, besides rank and rate, on which these arms differ: training context and context last."""
        names = [name for name in self.arms[0] if not NO_AXIS.fullmatch(name)] if rows else []
        names.sort(key=lambda name: name in ("train_context", "context"))
        return [n for n in names if len({row[n] for row in rows}) > 1]

    def named(self, arm: Row, axes: Sequence[str]) -> str:
        """What tells an arm from others that differ on these axes, and in rank and, unless matched, in rate."""
        rates = not self.matched
        parts = [f"{noun(axis)} {arm[axis]}" for axis in axes]
        if len({(a["rank"], a["lr"] if rates else None) for a in self.arms}) > 1:
            parts.append(place(arm) if rates else place(arm).partition(",")[0])
        return ", ".join(parts)


def noun(axis: str) -> str:
    return NOUNS.get(axis, axis.replace("_", " "))


def coherent(row: Row) -> bool:
    """Whether every student and control of a cell still answers with words of the category rather than with numbers."""
    return coherent_by(row)


def heat_cell(
    row: Row,
    name: str,
    column: str,
    value: str = "effect",
    marks: bool = True,
    framed: bool = False,
) -> HeatCell:
    """A cell or an arm in a heat map: marked where it is called, hatched where it is not coherent."""
    look = {"marked": marks and bool(row["called"]), "hatched": not coherent(row), "framed": framed}
    return HeatCell(row=name, column=column, value=row[value], link=link(row), **look)


def link(row: Row) -> str:
    """The part of the page with the answers of a cell or an arm."""
    return str(row.get("said", ""))


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """The rows of each key, in the order in which keys come."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    return out


def place(row: Row) -> str:
    method = "full fine-tune" if row["method"] == "full" else f"rank {row['rank']}"
    return f"{method}, lr {rate(row['lr'])}"


def replicates(row: Row) -> str:
    return " × ".join(str(row[f"n_{what}"]) for what in ("data_seeds", "train_seeds", "questions"))
