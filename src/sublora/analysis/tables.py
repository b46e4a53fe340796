"""The tables of a run as declarative columns: a name, and its value in a row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sublora.analysis.best_rate import Best, best_rates
from sublora.analysis.effects import Effect, corrected
from sublora.analysis.intervals import Interval
from sublora.analysis.page import finite
from sublora.analysis.variance import Shares, variance_shares

PLAIN_CONDITION = "plain"  # how the plain adapter is called beside the conditions
AS_WRITTEN = "as written"  # how the rows as the teacher wrote them are called beside the variants


@dataclass(frozen=True)
class Row:
    """An effect with its interval, and its p value corrected over the group that it is called in."""

    effect: Effect
    interval: Interval
    p_corrected: float | None
    level: float  # of false calls
    best: Best | None = None  # where this is the best rate of its rank, see `best_rate.py`

    @cached_property
    def shown(self) -> Interval:
        """What a call goes by, see `Effect.shown`."""
        return self.effect.shown(1 - self.level)

    @property
    def called(self) -> bool:
        """Significant after the correction, above 0, and of more than one replicate."""
        p, i = self.p_corrected, self.shown
        return p is not None and p < self.level and i.estimate > 0 and not i.seeds_unknown

    def mean(self, part: str) -> float:
        return float(self.effect.parts[part].mean())

    @cached_property
    def shares(self) -> Shares:
        effect = self.effect
        return variance_shares(effect.values, effect.data_seeds, effect.train_seeds)

    def best_interval(self, end: str) -> float | None:
        """An end of the interval of the rank's best, or its estimate; None where another rate is its best."""
        return None if self.best is None else getattr(self.best.interval(1 - self.level), end)


Columns = Mapping[str, Callable[[Row], Any]]


def _label(name: str, otherwise: str = "") -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        label = row.effect.labels.get(name)
        return otherwise if label is None or label == "" else label

    return value


def _fact(name: str) -> Callable[[Row], Any]:
    return lambda row: row.effect.facts.get(name, math.nan)


def _interval(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.interval, name)


def _share(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.shares, name)


def _rise(row: Row, end: str) -> float:
    rise = row.effect.rise(1 - row.level)
    return math.nan if rise is None else getattr(rise, end)


_SEEDS: Columns = {
    "n_data_seeds": lambda row: len(set(row.effect.data_seeds)),
    "n_train_seeds": lambda row: len(set(row.effect.train_seeds)),
    "n_questions": lambda row: row.effect.values.shape[1],
}
_CELL: Columns = {
    **{name: _label(name) for name in ("method", "rank", "lr")},
    **_SEEDS,
    "p_target": lambda row: row.mean("student"),
    "p_control": lambda row: row.mean("control"),
    "p_base": lambda row: row.mean("base"),
    "effect": _interval("estimate"),
    "effect_low": _interval("low"),
    "effect_high": _interval("high"),
}
_CALLED: Columns = {
    "rise": lambda row: _rise(row, "estimate"),
    "rise_low": lambda row: _rise(row, "low"),
    "rise_high": lambda row: _rise(row, "high"),
    "p_value": lambda row: row.shown.p_value,
    "p_corrected": lambda row: row.p_corrected,
    "called": lambda row: int(row.called),
}
_ANSWERS = {
    name: _fact(name)
    for name in (
        *("rate_whole_word", "coherence", "number_takeover"),
        *("worst_coherence", "worst_takeover", "worst_words"),
    )
}
CELLS: Columns = {
    "trait": _label("trait"),
    "context": _label("context"),
    **_CELL,
    "df": _interval("df"),
    **_CALLED,
    "p_target_report": lambda row: row.best and float(row.best.effect.parts["student"].mean()),
    "effect_report": lambda row: row.best_interval("estimate"),
    "effect_report_low": lambda row: row.best_interval("low"),
    "effect_report_high": lambda row: row.best_interval("high"),
    **_ANSWERS,
    "heldout_loss": _fact("heldout_loss"),
    "train_loss": _fact("train_loss"),
    "p_given_category": _fact("p_given_category"),
    **{f"icc_{name}": _share(name) for name in ("data", "train", "seeds", "question")},
    "selected": lambda row: int(row.best is not None),
}
ARMS: Columns = {
    "trait": _label("trait"),
    "data": _label("data", AS_WRITTEN),
    "train_context": _label("train_context"),
    "context": _label("context"),
    "condition": _label("condition", PLAIN_CONDITION),
    "placement": _label("placement"),
    **_CELL,
    **_CALLED,
    **_ANSWERS,
    "optimizer": _label("optimizer"),
    "variant": _label("variant"),
    "heldout_loss": _fact("heldout_loss"),
    "matched": lambda row: int(row.effect.matched),
}
FINDINGS: Columns = {
    "trait": _label("trait"),
    "group": _label("group"),
    "finding": _label("name"),
    **{name: _interval(name) for name in ("estimate", "low", "high", "p_value")},
    **_SEEDS,
}


ESTIMATES: Columns = {
    "subject": _label("trait"),
    "group": _label("group"),
    "name": _label("name"),
    "estimate": _interval("estimate"),
    "low": lambda row: finite(row.interval.low),
    "high": lambda row: finite(row.interval.high),
    "null": lambda row: row.effect.null if row.effect.tested else None,
    "p_value": lambda row: row.interval.p_value if row.effect.tested else None,
    "p_corrected": lambda row: row.p_corrected,
    "called": lambda row: row.p_corrected < row.level if row.effect.tested else None,
}


def _rows(effects: Sequence[Effect], level: float, *group: str) -> list[Row]:
    """With p values corrected over the tested effects of each group of labels; without labels none are."""
    intervals = [e.interval(1 - level) for e in effects]
    tested = [k for k, e in enumerate(effects) if e.tested and group]
    found = corrected(
        [effects[k].shown(1 - level).p_value for k in tested],
        [tuple(effects[k].labels.get(name) for name in group) for k in tested],
    )
    p = dict(zip(tested, found, strict=True))
    return [
        Row(e, i, p.get(k), level) for k, (e, i) in enumerate(zip(effects, intervals, strict=True))
    ]


def _table(rows: Sequence[Row], columns: Columns) -> list[dict[str, Any]]:
    return [{name: value(row) for name, value in columns.items()} for row in rows]


def summarise(effects: Sequence[Effect], level: float = 0.05) -> list[dict[str, Any]]:
    """The rows of cells.csv: p_corrected is Holm's over all cells of a trait and context.

    `selected` is 1 at the best rate of each method and rank, and there the columns `_report` hold its best: each seed is read at the
    rate that the other seeds choose.
    """
    out = []
    for trait, context in dict.fromkeys((e.trait, e.labels["context"]) for e in effects):
        mine = [e for e in effects if (e.trait, e.labels["context"]) == (trait, context)]
        best = {b.place: b for b in best_rates(mine).values()}
        out += [
            Row(row.effect, row.interval, row.p_corrected, level, best.get(k))
            for k, row in enumerate(_rows(mine, level, "trait"))
        ]
    return _table(out, CELLS)


def arm_rows(arms: Sequence[Effect], level: float) -> list[dict[str, Any]]:
    """The rows of arms.csv; p_corrected is Holm's over all arms of a trait. Further axes are columns at the end."""
    traits = list(dict.fromkeys(e.trait for e in arms))
    ordered = sorted(arms, key=lambda e: traits.index(e.trait))
    more = dict.fromkeys(axis for e in arms for axis in e.labels if axis not in ARMS)
    columns = {**ARMS, **{axis: _label(axis) for axis in more if axis != "quantity"}}
    return _table(_rows(ordered, level, "trait"), columns)


def finding_rows(findings: Sequence[Effect], level: float) -> list[dict[str, Any]]:
    """The rows of findings.csv; nothing is corrected here."""
    return _table(_rows(findings, level), FINDINGS)


def estimate_rows(effects: Sequence[Effect], level: float) -> list[dict[str, Any]]:
    """The rows of an experiment's results.csv; p values are corrected over the tested of a subject and group."""
    sizes = list(dict.fromkeys(k for e in effects for k in e.n))
    counts = {f"n_{k}": lambda row, k=k: row.effect.n.get(k) for k in sizes}
    return _table(_rows(effects, level, "trait", "group"), {**ESTIMATES, **counts})


def cell_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """CSV text with Unix line ends; eight significant digits, empty where a value does not apply."""
    names = list(columns or rows[0])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([cell_text(row[n]) for n in names] for row in rows)
    return out.getvalue()
