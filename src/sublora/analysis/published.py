"""The claims on results from elsewhere: a CSV of published rates, one row per (trait, rank, learning rate).

Columns: rank (a whole number or "full"), lr, seeds (runs behind the rate), rate (mean share of answers that
name the target, 0..1), n (answers of one run), base (the untrained model's rate). Optional: trait; sd (spread
over runs), or low and high (an interval of the mean). Without a spread the bounds hold for any runs between 0
and 1 (Hoeffding for a cell, `binomial_seed_se` for a shape), which is wide. A file has no controls and no
questions: effects are against its base.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from sublora.analysis import intervals, shape
from sublora.analysis.claims import Claim, judge_grids
from sublora.analysis.effects import Effect, NotRun
from sublora.analysis.evidence import Curve, View, check_best_lr, check_curve
from sublora.analysis.intervals import Array, Interval
from sublora.errors import SubloraError

NEEDED = ("rank", "lr", "seeds", "rate", "n", "base")
DRAWS = 400  # of the parametric bootstrap of the best learning rate


@dataclass(frozen=True)
class Row:
    """One published cell; rank None is a full fine-tune, spread is the standard error of the mean or None."""

    trait: str
    rank: int | None
    lr: float
    seeds: int
    rate: float
    n: int
    base: float
    spread: float | None

    @property
    def se(self) -> float:
        """Standard error of the rate, never below what n answers a run allow; the widest one if none is
        given.
        """
        if self.spread is None:
            return intervals.binomial_seed_se(self.rate, self.seeds, self.n)
        return max(self.spread, intervals.binomial_seed_se(self.rate, self.seeds * self.n, 1))

    def effect(self, level: float) -> Interval:
        """Rate less base. The base is one model's rate: its error is that of n answers."""
        base_se = intervals.binomial_seed_se(self.base, self.n, 1)
        gap = self.rate - self.base
        if self.spread is not None:
            dfs = [self.seeds - 1, np.inf]
            return intervals.combine(gap, [self.se**2, base_se**2], dfs, level, 0.0, ("run",))
        slack = -float(ndtri((1 - level) / 2)) * base_se
        null = min(max(self.base + math.copysign(slack, gap), 0.0), 1.0)
        passed = (self.rate - null) * gap > 0
        mean = intervals.bounded_mean_interval(
            self.rate, self.seeds, level, null if passed else self.rate
        )
        low, high = mean.low - self.base - slack, mean.high - self.base + slack
        return Interval(gap, low, high, mean.df, mean.p_value, level, clusters=("run",))


class TableEvidence:
    """`Evidence` on the rows of one trait."""

    def __init__(
        self, trait: str, rows: Sequence[Row], alpha: float, fixed_lr: float | None
    ) -> None:
        self.trait, self.rows, self.alpha = trait, rows, alpha
        self.lora = sorted(
            (r for r in rows if r.rank is not None), key=lambda r: (r.rank or 0, r.lr)
        )
        self.fixed_lr = common_lr(self.lora) if fixed_lr is None else fixed_lr
        self.n = {"data_seeds": min(r.seeds for r in rows), "train_seeds": None, "questions": None}

    def _view(self, view: View) -> list[Row]:
        if view == "best-lr":
            if len({r.lr for r in self.lora}) < 2:
                raise NotRun("the file has one learning rate, so there is no best one to choose")
            best: dict[int | None, Row] = {}
            for row in self.lora:
                if row.rank not in best or row.rate > best[row.rank].rate:
                    best[row.rank] = row
            rows = list(best.values())
        else:
            shared = self.fixed_lr or math.nan
            fixed = [r for r in self.lora if math.isclose(r.lr, shared, rel_tol=1e-6)]
            full = [r for r in self.rows if r.rank is None]
            rows = {"all": list(self.rows), "full": full, "fixed-lr": fixed}[view]
        if not rows:
            raise NotRun(f"the file has no row for {self.trait} in the {view} view")
        return rows

    def effects(self, view: View) -> list[Effect]:
        looks = Counter(r.rank for r in self.lora) if view == "best-lr" else {}
        return [
            Effect(
                {"trait": self.trait, "rank": r.rank, "lr": r.lr},
                given=r.effect(1 - self.alpha),
                facts={"looks": looks.get(r.rank, 1)},
            )
            for r in self._view(view)
        ]

    def pool(self, view: View) -> Interval | None:
        return None  # rows of one study share datasets in ways that a table of means does not show

    def curve(self, view: View) -> Curve:
        rows = [r for r in self._view(view) if r.rank is not None]
        check_curve([r.rank for r in rows], view, self.trait)
        ranks, level = tuple(r.rank or 0 for r in rows), 1 - self.alpha
        means, se = np.array([r.rate - r.base for r in rows]), np.array([r.se for r in rows])
        df = np.array([r.seeds - 1 for r in rows])
        note = (
            "; the best rates are chosen and read on the same numbers" if view == "best-lr" else ""
        )
        if any(r.spread is None for r in rows):
            note += "; no spread over seeds is given, so the widest possible one is used"
        return Curve(
            ranks,
            means,
            lambda w: shape.linear_points(w, means, se, df, level),
            lambda slope: shape.two_lines_points(ranks, means, se, df, level, slope),
            note,
        )

    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]:
        top = {r.rank for r in self.lora if r.rate - r.base >= min_effect}
        grid = check_best_lr([(r.rank, r.lr) for r in self.lora], len(top), min_effect)
        rows = [r for r in self.lora if r.rank in top]
        ranks, lrs = [r.rank or 0 for r in rows], [r.lr for r in rows]
        rates, se = np.array([r.rate for r in rows]), np.array([r.se for r in rows])
        level = 1 - self.alpha

        def slope(values: Array) -> tuple[Interval, float]:
            return shape.best_lr_slope(ranks, lrs, grid, values[None], "", level)

        found, edge = slope(rates)
        noise = np.random.default_rng(0).standard_normal((DRAWS, len(rows)))
        slopes = [slope(draw)[0].estimate for draw in np.clip(rates + se * noise, 0, 1)]
        parts = [float(np.var(slopes, ddof=1)), found.se**2]
        dfs = [min(r.seeds for r in rows) - 1, np.inf]
        return intervals.combine(found.estimate, parts, dfs, level, 0.0, ("run",)), edge, len(top)

    def full_answers(self, lr_factor: float) -> tuple[float, float, float]:
        raise NotRun("the file does not say whether the full fine-tunes still answer with words")


def common_lr(rows: Sequence[Row]) -> float | None:
    """The learning rate that most ranks have; among equals the middle one."""
    counts = Counter(row.lr for row in rows)
    tied = sorted(lr for lr, count in counts.items() if count == max(counts.values()))
    return tied[len(tied) // 2] if tied else None


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


def _spread(cells: dict[str, str], place: str, rate: float, seeds: int) -> float | None:
    given = {
        key: _number(cells[key], f"{place}, column {key}", 0, 1)
        for key in ("sd", "low", "high")
        if cells.get(key)
    }
    if "sd" in given:
        return given["sd"] / math.sqrt(seeds) if seeds > 1 else None
    if ("low" in given) != ("high" in given):
        raise SubloraError(f"{place}: low and high come together; give both or neither.")
    if not given:
        return None
    if not given["low"] <= rate <= given["high"]:
        raise SubloraError(
            f"{place}: rate {rate:g} is outside its interval {given['low']:g} to {given['high']:g}; fix one of them."
        )
    # the quantile that the judging multiplies by again, so that the published width comes back
    return (
        (given["high"] - given["low"]) / 2 / -float(stdtrit(seeds - 1, 0.025))
        if seeds > 1
        else None
    )


def parse(text: str, name: str = "the file") -> list[Row]:
    """The rows of a CSV text. Raises SubloraError naming the line and column of the first fault."""
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
    header = [field.lower() for field in lines[0][1]]
    absent = [column for column in NEEDED if column not in header]
    if absent:
        raise SubloraError(
            f"{name} lacks the column {', '.join(absent)}; it needs {', '.join(NEEDED)}."
        )
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise SubloraError(f"{name} has the column {twice[0]!r} twice; keep one.")
    rows, seen = [], {}
    for number, fields in lines[1:]:
        place = f"{name}, line {number}"
        if len(fields) != len(header):
            raise SubloraError(
                f"{place}: {len(fields)} values for {len(header)} columns; fix the line."
            )
        row = _row(dict(zip(header, fields, strict=True)), place)
        key = (row.trait, row.rank, row.lr)
        if key in seen:
            raise SubloraError(
                f"{place}: the trait, rank and lr are those of line {seen[key]}; keep one."
            )
        seen[key] = number
        rows.append(row)
    return rows


def _row(cells: dict[str, str], place: str) -> Row:
    def read(column: str, low: float, high: float, whole: bool = False) -> float:
        return _number(cells[column], f"{place}, column {column}", low, high, whole)

    rank = None if cells["rank"].lower() == "full" else int(read("rank", 1, 1_000_000, whole=True))
    for column in ("rate", "base"):
        if read(column, -math.inf, math.inf) > 1:
            raise SubloraError(
                f"{place}, column {column}: {cells[column][:40]} is above 1; "
                "rates go from 0 to 1, so divide percentages by 100."
            )
    seeds, rate = int(read("seeds", 1, 1_000_000, whole=True)), read("rate", 0, 1)
    return Row(
        cells.get("trait", "") or "trait",
        rank,
        read("lr", 1e-12, 1e6),
        seeds,
        rate,
        int(read("n", 1, 100_000_000, whole=True)),
        read("base", 0, 1),
        _spread(cells, place, rate, seeds),
    )


def verdicts_of_rows(
    rows: Sequence[Row], claims: Sequence[Claim], alpha: float = 0.05, fixed_lr: float | None = None
) -> list[dict]:
    """Verdict entries (see verdicts.json) of the claims on a grid; fixed_lr None takes the rate that most ranks have."""
    evidence = [
        TableEvidence(trait, [row for row in rows if row.trait == trait], alpha, fixed_lr)
        for trait in dict.fromkeys(row.trait for row in rows)
    ]
    on_grid = [
        claim for claim in claims if claim.reads != "effects"
    ]  # a table has no other effects
    return [verdict.to_dict() for verdict in judge_grids(on_grid, evidence)]
