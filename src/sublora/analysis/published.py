"""The claims on results from elsewhere: which of them a table of ranks and rates can speak to, and their verdicts.

A file has no controls and no questions, so the effect of a row is the log-odds of its rate less that of its base, in nats. Without a spread
the bounds hold for any runs between 0 and 1 (Hoeffding for a cell, `binomial_seed_se` for a shape), which is wide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit, logit, ndtri

from sublora.analysis import intervals, shape
from sublora.analysis.best_rate import Edge, edge_of
from sublora.analysis.claims import Claim, Verdict, judge_grids, weighed
from sublora.analysis.curve import Curve
from sublora.analysis.effects import ACROSS, Effect, NotRun
from sublora.analysis.evidence import View, check_best_lr, check_curve
from sublora.analysis.intervals import Interval
from sublora.analysis.power import jumps_missed
from sublora.analysis.published_rows import Row, Setting
from sublora.analysis.rules import MAX_JUMPS
from sublora.errors import SubloraError

DRAWS = 400  # of the parametric bootstrap of the best learning rate
LEAST_RATE = 1e-6  # no table resolves a rate below it, so no bound is taken beyond it
# Recipes whose rows are numbers of a prompted teacher and whose students are plain: what a file is about that names no recipe.
PLAIN = ("rank-lr", "rank", "full-ft", "traits")
DEFAULT = PLAIN[0]
# Nothing seen in so many seeds leaves room for less than a third of seeds that jump (1 - .05^(1/8) = .31).


def effect(row: Row, level: float) -> Interval:
    """Log-odds of the rate less that of the base, in nats. The base is one model's rate: its error is that of n answers.

    With a spread it is a t interval, cut where not even runs between 0 and 1 could lie.
    """
    base = replace(row, rate=row.base, seeds=1, data_seeds=None, spread=None)
    base_se = 1 / math.sqrt(row.n * base.shrunk * (1 - base.shrunk))
    gap, alone = row.log_odds - base.log_odds, row.clusters < 2
    slack = -float(ndtri((1 - level) / 2)) * base_se
    null = float(expit(base.log_odds + math.copysign(slack, gap)))
    passed = (row.rate - null) * gap > 0
    mean = intervals.bounded_mean_interval(
        row.rate, row.clusters, level, null if passed else row.rate
    )
    edge = min(LEAST_RATE, row.shrunk, 1 - row.shrunk)
    low, high = logit(np.clip([mean.low, mean.high], edge, 1 - edge)) - base.log_odds
    low, high = float(low) - slack, float(high) + slack
    if row.spread is None:
        found = Interval(gap, low, high, mean.df, mean.p_value, level)
    else:
        dfs = [row.clusters - 1, np.inf]
        found = intervals.combine(gap, [row.se**2, base_se**2], dfs, level)
        low, high = max(low, found.low), min(high, found.high)
    return replace(found, low=low, high=high, clusters=("run",), seeds_unknown=alone)


class TableEvidence:
    """`Evidence` on the rows of one trait under one setting."""

    def __init__(self, trait: str, rows: Sequence[Row], alpha: float = 0.05) -> None:
        self.trait, self.rows, self.alpha = trait, rows, alpha
        self.lora = sorted(
            (r for r in rows if r.rank is not None), key=lambda r: (r.rank or 0, r.lr)
        )
        self.fixed_lr = common_lr(self.lora)
        seeds = {
            "data_seeds": [r.data_seeds for r in rows],
            "train_seeds": [r.train_seeds for r in rows],
        }
        self.n = {k: None if None in v else min(v) for k, v in seeds.items()} | {"questions": None}

    def _best(self) -> list[Row]:
        """The row of each rank that the file calls the best, or the highest of several."""
        best: dict[int | None, Row] = {}
        for row in self.lora:
            if row.rank not in best or (row.best, row.rate) > (
                best[row.rank].best,
                best[row.rank].rate,
            ):
                best[row.rank] = row
        self._check_rivals([row for row in self.lora if not best[row.rank].best])
        return list(best.values())

    @staticmethod
    def _check_rivals(rows: Sequence[Row]) -> None:
        """Raises NotRun where a rank has one rate, beside which none is the best."""
        rates = Counter(r.rank for r in rows)
        if single := [str(rank) for rank, count in rates.items() if count < 2]:
            where = f"rank {', '.join(single)}" if len(single) < len(rates) else "every rank"
            raise NotRun(
                f"the file has one learning rate at {where}, so nothing in it shows which rate is the best there"
            )

    def _shared(self) -> list[Row]:
        rate = self.fixed_lr or math.nan
        fixed = [r for r in self.lora if math.isclose(r.lr, rate, rel_tol=1e-6)]
        lacking = sorted({r.rank for r in self.lora} - {r.rank for r in fixed})
        if lacking:
            raise NotRun(
                f"the file has no learning rate that all its ranks share: {rate:g} lacks rank {', '.join(map(str, lacking))}"
            )
        return fixed

    def view(self, view: View) -> list[Row]:
        """The rows of a view. Raises NotRun where the file does not hold it whole."""
        if view == "best-lr":
            rows = self._best()
        elif view == "fixed-lr":
            rows = self._shared()
        else:
            rows = [r for r in self.rows if view == "all" or r.rank is None]
        if not rows:
            raise NotRun(f"the file has no row for {self.trait} in the {view} view")
        return rows

    def effects(self, view: View) -> list[Effect]:
        looks = Counter(r.rank for r in self.lora) if view == "best-lr" else {}
        return [
            Effect(
                {"trait": self.trait, "rank": r.rank, "lr": r.lr},
                given=effect(r, 1 - self.alpha),
                facts={"looks": looks.get(r.rank, 1)},
            )
            for r in self.view(view)
        ]

    def pool(self, view: View) -> Interval | None:
        return None  # rows of one study share datasets in ways that a table of means does not show

    def curve(self, view: View) -> Curve:
        rows = [r for r in self.view(view) if r.rank is not None]
        check_curve([r.rank for r in rows], view, self.trait)
        ranks, level = tuple(r.rank or 0 for r in rows), 1 - self.alpha
        # the base is the same at every rank, so its error is in no difference between ranks
        means = np.array([effect(r, level).estimate for r in rows])
        se, df = np.array([r.se for r in rows]), np.array([r.clusters - 1 for r in rows])
        note = "; rates " + ", ".join(f"{r.rate:.1%} at rank {r.rank}" for r in rows)
        if any(r.best for r in rows) and view == "best-lr":
            note += "; the best rates are those that the file calls so"
        elif view == "best-lr":
            note += "; the best rates are chosen and read on the same numbers"
        if any(r.spread is None for r in rows):
            note += "; no spread over seeds is given, so the widest possible one is used"
        return Curve(
            ranks,
            means,
            lambda w, room: shape.linear_points(w, means, se, df, level, room),
            lambda w, at, room: shape.bounds_points(w, means, se, df, at, room),
            lambda slope, room: shape.two_lines_points(ranks, means, se, df, level, slope, room),
            note,
            self._edges() if view == "best-lr" else (),
        )

    def _edges(self) -> tuple[Edge, ...]:
        """Of the ranks whose best rate is not marked as such by the file."""
        found, level = [], 1 - self.alpha
        for rank in dict.fromkeys(r.rank or 0 for r in self.lora):
            mine = [r for r in self.lora if r.rank == rank]
            if any(r.best for r in mine):
                continue
            lrs = [r.lr for r in mine]
            found.append(edge_of(rank, lrs, [effect(r, level).estimate for r in mine], lrs))
        return tuple(edge for edge in found if edge is not None)

    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]:
        self._check_rivals(self.lora)
        level = 1 - self.alpha
        top = {r.rank for r in self.lora if effect(r, level).estimate >= min_effect}
        grid = check_best_lr([(r.rank, r.lr) for r in self.lora], len(top), min_effect)
        rows = [r for r in self.lora if r.rank in top]
        ranks, lrs = [r.rank or 0 for r in rows], [r.lr for r in rows]
        odds, se = np.array([r.log_odds for r in rows]), np.array([r.se for r in rows])

        found, edge = shape.best_lr_slope(ranks, lrs, grid, odds[None], "", level)
        room, _ = shape.best_lr_room(ranks, lrs, grid, odds)
        draws = odds + se * np.random.default_rng(0).standard_normal((DRAWS, len(rows)))
        places = [np.flatnonzero(np.equal(ranks, rank)) for rank in dict.fromkeys(ranks)]
        picks = [np.log2(lrs)[mine][draws[:, mine].argmax(axis=1)] for mine in places]
        slopes = np.stack(picks, axis=1) @ shape.slope_weights(list(dict.fromkeys(ranks)))
        parts = [float(np.var(slopes, ddof=1)), found.se**2]
        dfs = [min(r.clusters for r in rows) - 1, np.inf]
        slope = intervals.combine(found.estimate, parts, dfs, level, clusters=("run",), room=room)
        return slope, edge, len(top)

    def full_answers(self, lr_factor: float) -> tuple[float, float, float, int]:
        raise NotRun("the file does not say whether the full fine-tunes still answer with words")

    def is_of(self, claim: Claim) -> bool:
        """Whether the claim is about students such as those of the rows."""
        recipe = self.rows[0].setting[0]
        about = PLAIN if (recipe or DEFAULT) in PLAIN else (recipe,)
        return bool(set(about) & set(claim.recipes))

    def cannot_say(self, claim: Claim) -> str | None:
        """Why the rows cannot speak to a claim."""
        recipe, rows, _ = self.rows[0].setting
        if not self.is_of(claim):
            what = f"of the recipe {recipe}" if recipe else "of number rows by a prompted teacher"
            return (
                f"the rows are of students {what}, and the claim is about those of {' or '.join(claim.recipes)}; "
                "a column recipe says what rows are of"
            )
        if claim.unique_rows and (rows or 0) < claim.unique_rows:
            had = f"{rows:,} rows" if rows else "no column rows"
            return f"the claim speaks of {claim.unique_rows:,} unique rows or more, and the file has {had}"
        return None


def common_lr(rows: Sequence[Row]) -> float | None:
    """The learning rate that most ranks have; among equals the middle one."""
    counts = Counter(row.lr for row in rows)
    tied = sorted(lr for lr, count in counts.items() if count == max(counts.values()))
    return tied[len(tied) // 2] if tied else None


def _named(trait: str, setting: Setting, shared: bool) -> str:
    """A trait, with the setting where the file has several."""
    recipe, rows, epochs = setting
    parts = [recipe, f"{rows:,} rows" if rows else "", f"{epochs:g} epochs" if epochs else ""]
    said = ", ".join(part for part in parts if part)
    return trait if shared or not said else f"{trait} ({said})"


def verdicts_of_rows(
    rows: Sequence[Row], claims: Sequence[Claim], recipes: Sequence[str] = ()
) -> list[dict]:
    """Verdict entries (see verdicts.json) of the claims on a grid that name one of the recipes.

    Without `recipes` they are those of the file's column `recipe`, or `rank-lr`. Raises SubloraError where a table can speak to no
    claim of a recipe.
    """
    asked = list(recipes) or asked_by(rows)
    on_grid = [claim for claim in claims if claim.reads != "effects"]
    for recipe in asked:
        if not any(recipe in claim.recipes for claim in on_grid):
            known = sorted({name for claim in on_grid for name in claim.recipes})
            raise SubloraError(
                f"no claim of the recipe {recipe!r} is about ranks and rates; those of {', '.join(known)} are."
            )
    settings = list(dict.fromkeys(row.setting for row in rows))
    groups = [
        [
            TableEvidence(_named(trait, setting, len(settings) == 1), mine)
            for trait in dict.fromkeys(row.trait for row in rows)
            if (mine := [r for r in rows if (r.trait, r.setting) == (trait, setting)])
        ]
        for setting in settings
    ]
    chosen = [claim for claim in on_grid if set(asked) & set(claim.recipes)]

    def judged(some: Sequence[Claim]) -> list[Verdict]:
        each = [
            _judged(claim, group, len(groups) == 1)
            for claim in some
            for group in [g for g in groups if g[0].is_of(claim)] or groups
        ]
        return [verdict for few in each for verdict in few]

    return [verdict.to_dict() for verdict in weighed(chosen, judged)]


def _judged(claim: Claim, group: Sequence[TableEvidence], alone: bool) -> list[Verdict]:
    """One claim on the traits of one setting."""
    if reason := group[0].cannot_say(claim):
        names = [ACROSS] if claim.reads == "grids" else [ev.trait for ev in group]
        text = f"{reason[:1].upper()}{reason[1:]}."
        return [Verdict(claim, name, "not run", {}, text, {}) for name in names]
    verdicts = [_guarded(v, group) for v in judge_grids([claim], group)]
    if claim.reads == "grids" and not alone:
        name = _named(ACROSS, group[0].rows[0].setting, False)
        return [replace(v, trait=name) for v in verdicts]
    return verdicts


def _guarded(verdict: Verdict, group: Sequence[TableEvidence]) -> Verdict:
    """A verdict of absence only where the table could have shown it, and each verdict with what it holds for."""
    claim, reason = verdict.claim, verdict.reason
    absence = (claim.test, verdict.verdict) in {
        ("no_transfer", "supported"),
        ("any_transfer", "refuted"),
    }
    mine = [ev for ev in group if claim.reads == "grids" or ev.trait == verdict.trait]
    if absence and (why := _no_assay(claim, mine[0], group)):
        return replace(verdict, verdict="inconclusive", reason=f"{why}: {reason}")
    if claim.test in ("any_transfer", "no_transfer") and verdict.verdict != "not run":
        top = max(mine[0].view(claim.rule.view), key=lambda r: r.rate)
        reason += f" The highest rate is {top.rate:.1%}, against {top.base:.1%} of the base."
    if verdict.verdict in ("supported", "refuted") and any(
        (ev.n["data_seeds"] or 1) < 2 for ev in mine
    ):
        reason += " It holds for the data behind the file, not for new data."
    if claim.no_leak and verdict.verdict == "supported":
        reason += " Whether a reader could tell the trait from the text of the rows, a table does not show."
    return replace(verdict, reason=reason)


def _no_assay(claim: Claim, ev: TableEvidence, group: Sequence[TableEvidence]) -> str | None:
    """Why a table in which nothing is seen does not show that nothing is there."""
    if claim.rule.view == "full":
        return "A table does not show that a full fine-tune at the base's rate learned its rows"
    fewest = min(r.clusters for r in ev.rows)
    if (missed := jumps_missed(fewest)) > MAX_JUMPS:
        return f"Nothing seen in {fewest} seeds leaves room for {missed:.0%} of seeds that jump"
    others = judge_grids([claim], [other for other in group if other is not ev])
    if not any(v.verdict == "supported" for v in others):
        return "No other trait of the file transfers, so nothing shows that one could"
    return None


def asked_by(rows: Sequence[Row]) -> list[str]:
    """The recipes whose claims a file is judged by where none is asked for."""
    return list(dict.fromkeys(row.setting[0] or DEFAULT for row in rows))


def cautions(rows: Sequence[Row], recipes: Sequence[str] = ()) -> list[str]:
    """What the file does not say, and what it then cannot claim, a sentence each."""
    said = []
    if not recipes and not any(row.setting[0] for row in rows):
        said.append(
            f"The rows are taken as of students of number rows by a prompted teacher, so the claims of {DEFAULT} alone are judged; "
            "--recipe or a column recipe asks for others."
        )
    if any(row.data_seeds is None for row in rows):
        said.append(
            "The file does not say how many data seeds are behind a rate (columns data_seeds, or data_seed for single runs), so its "
            "seeds are taken as training seeds on the same data: nothing is claimed of new data, where most of the variance lies."
        )
    return said
