"""The tests that judge claims, by name in ``RULES``, and the evidence that they ask for.

A rule sees only ``Evidence``: effects of cells, curves over rank, answers of the full fine-tune. It comes from
trained students (``claim_evidence``) or from somebody else's numbers (``verdict_csv``). Every rule can end in
"inconclusive", and one replicate alone never settles anything. DESIGN.md 5.6 and 5.10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from sublora.shape import TwoLines, slope_weights
from sublora.stats import Array, Interval, holm

View = Literal["all", "fixed-lr", "best-lr", "full", "arms", "findings", "estimates"]


class NotRun(Exception):
    """The evidence cannot answer this test; the message is the verdict's reason."""


@dataclass(frozen=True)
class Effect:
    """Transfer of one cell: target's probability or rate less that of its control (or base), in 0..1 units.

    ``looks``: how many cells it was picked from as the best. The luck of the seeds is in the picking and in
    the report alike, so its p value is multiplied by that number.
    """

    rank: int | None
    lr: float
    interval: Interval
    coherent: bool
    looks: int = 1

    @property
    def label(self) -> str:
        return f"{'full' if self.rank is None else f'rank {self.rank}'}, lr {self.lr:g}"


@dataclass(frozen=True)
class Curve:
    """Transfer over ranks (C,): any linear combination of it with its interval, and the two-lines test on it."""

    ranks: tuple[int, ...]
    means: Array
    linear: Callable[[Array], Interval]
    two_lines: Callable[[float], TwoLines]
    note: str = ""


class Evidence(Protocol):
    """What the rules may ask of one trait's results. Each method raises ``NotRun`` where the results lack it."""

    trait: str
    alpha: float
    n: Mapping[str, int | None]

    def effects(self, view: View) -> list[Effect]: ...
    def pool(self, view: View) -> Interval | None: ...
    def curve(self, view: View) -> Curve: ...
    def best_lr(self, min_effect: float) -> tuple[Interval, float, int]: ...
    def full_answers(self, lr_factor: float) -> tuple[float, float, float]: ...


Outcome = tuple[str, dict[str, float], str]
Threshold = Mapping[str, float]


def show(interval: Interval) -> str:
    """An interval as text: estimate [low, high]."""
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _transfer(ev: Evidence, view: View, th: Threshold) -> tuple[bool, bool, dict[str, float], str]:
    """(found, absent, numbers, text). Found: a coherent cell is called after Holm's correction over the view,
    or the mean over coherent cells is clear of 0, with an effect of min_effect or more. Both look for a rise
    at a two-sided alpha, so a false find of each has alpha/2 and of either alpha. Absent: every coherent
    cell's upper bound is lower.
    """
    effects = ev.effects(view)
    corrected = holm([min(1.0, e.looks * e.interval.p_value) for e in effects])
    fine = [(e, p) for e, p in zip(effects, corrected, strict=True) if e.coherent]
    numbers: dict[str, float] = {"cells": len(effects), "coherent_cells": len(fine), "called": 0}
    if not fine:
        return (
            False,
            False,
            numbers,
            f"none of {len(effects)} cells answers with words: a zero says nothing",
        )
    if any(e.interval.seeds_unknown for e, _ in fine):
        return (
            False,
            False,
            numbers,
            "there is one replicate, so the spread over seeds is not known",
        )
    least = th["min_effect"]
    called = [e for e, p in fine if p < ev.alpha and e.interval.estimate >= least]
    pool, (top, top_p) = ev.pool(view), max(fine, key=lambda pair: pair[0].interval.estimate)
    highest = max(e.interval.high for e, _ in fine)
    numbers |= {
        "called": len(called),
        "largest_effect": top.interval.estimate,
        "largest_effect_low": top.interval.low,
        "largest_effect_p": float(top_p),
        "highest_upper_bound": highest,
    }
    kind = "cells" if len(fine) == len(effects) else "coherent cells"
    text = (
        f"{len(called)} of {len(fine)} {kind} called, the largest effect is {show(top.interval)} "
        f"({top.label}; corrected p {top_p:.2g}), the highest upper bound {highest:+.3f}"
    )
    pooled = False
    if pool is not None:
        pooled = pool.p_value < ev.alpha and pool.estimate >= least and not pool.seeds_unknown
        numbers |= {
            "mean_effect": pool.estimate,
            "mean_effect_low": pool.low,
            "mean_effect_p": pool.p_value,
        }
        text += f", the mean over {kind} {show(pool)}"
    return bool(called) or pooled, highest < least, numbers, f"{text}; the bar is {least:g}"


def _any_transfer(ev: Evidence, view: View, th: Threshold) -> Outcome:
    found, absent, numbers, text = _transfer(ev, view, th)
    return "supported" if found else "refuted" if absent else "inconclusive", numbers, text


def _no_transfer(ev: Evidence, view: View, th: Threshold) -> Outcome:
    found, absent, numbers, text = _transfer(ev, view, th)
    return "refuted" if found else "supported" if absent else "inconclusive", numbers, text


def _shape(rule: Callable[[Curve, Evidence, Threshold], Outcome]) -> Callable[..., Outcome]:
    """A rule on the curve over rank: only with 3 ranks or more, and only where something is found to
    transfer.
    """

    def wrapped(ev: Evidence, view: View, th: Threshold) -> Outcome:
        curve = ev.curve(view)
        if len(curve.ranks) < 3:
            raise NotRun(
                f"a shape needs at least 3 ranks and the {view} view has {len(curve.ranks)}"
            )
        found, _, numbers, text = _transfer(ev, view, th)
        if not found:
            return (
                "inconclusive",
                numbers,
                f"nothing is shown to transfer, so there is no shape: {text}",
            )
        verdict, numbers, text = rule(curve, ev, th)
        return verdict, numbers, text + curve.note

    return wrapped


def _lines(curve: Curve, th: Threshold) -> tuple[TwoLines, dict[str, float], str]:
    lines = curve.two_lines(th["min_slope"])
    numbers = {
        "break_rank": lines.break_x,
        "slope_left": lines.slope_left,
        "slope_right": lines.slope_right,
        "p_left": lines.p_left,
        "p_right": lines.p_right,
    }
    text = (
        f"per doubling of rank {show(lines.left)} up to rank {lines.break_x:g} and {show(lines.right)} "
        f"after (one-sided p {lines.p_left:.2g}, {lines.p_right:.2g})"
    )
    return lines, numbers, text


def _inverted_u(curve: Curve, ev: Evidence, th: Threshold) -> Outcome:
    lines, numbers, text = _lines(curve, th)
    verdict = "supported" if lines.inverted_u else "refuted" if lines.ruled_out else "inconclusive"
    return (
        verdict,
        numbers,
        text + (", and every break of the grid is ruled out" if lines.ruled_out else ""),
    )


def _monotone_decline(curve: Curve, ev: Evidence, th: Threshold) -> Outcome:
    """Supported: the slope over all ranks is below 0 and a rise before the fall is ruled out. Refuted: an
    inverted U is found, or the slope is shown to be above -min_slope.
    """
    slope, (lines, numbers, text) = curve.linear(slope_weights(curve.ranks)), _lines(curve, th)
    numbers |= {"slope": slope.estimate, "slope_low": slope.low, "slope_high": slope.high}
    falls = slope.high < 0 and slope.estimate <= -th["min_slope"] and lines.ruled_out
    against = lines.inverted_u or slope.low > -th["min_slope"]
    verdict = "refuted" if against else "supported" if falls else "inconclusive"
    return verdict, numbers, f"slope over all ranks {show(slope)} per doubling; {text}"


def _transfer_flat_in_rank(curve: Curve, ev: Evidence, th: Threshold) -> Outcome:
    """Supported: every rank's distance from the mean over ranks lies within max_gap with its whole interval.
    Refuted: a distance of max_gap or more is clear of 0 after Holm's correction over ranks.
    """
    count = len(curve.ranks)
    gaps = [curve.linear(np.eye(count)[k] - 1 / count) for k in range(count)]
    corrected = holm([gap.p_value for gap in gaps])
    far = max(range(count), key=lambda k: abs(gaps[k].estimate))
    flat = all(max(-gap.low, gap.high) <= th["max_gap"] for gap in gaps)
    off = any(
        p < ev.alpha and abs(g.estimate) >= th["max_gap"]
        for g, p in zip(gaps, corrected, strict=True)
    )
    text = (
        f"rank {curve.ranks[far]} lies farthest from the mean over ranks, by {show(gaps[far])} "
        f"(corrected p {corrected[far]:.2g}); the room is {th['max_gap']:g}"
    )
    numbers = {
        "rank": curve.ranks[far],
        "gap": gaps[far].estimate,
        "gap_low": gaps[far].low,
        "gap_high": gaps[far].high,
        "p": float(corrected[far]),
    }
    return "refuted" if off else "supported" if flat else "inconclusive", numbers, text


def _best_lr_falls(ev: Evidence, view: View, th: Threshold) -> Outcome:
    """Slope of log2(best lr) over log2(rank). Where most bests lie on the grid's edge the slope is pulled to
    0, so then a flat slope refutes nothing.
    """
    slope, edge, ranks = ev.best_lr(th["min_effect"])
    numbers = {
        "slope": slope.estimate,
        "slope_low": slope.low,
        "slope_high": slope.high,
        "edge_share": edge,
        "ranks": ranks,
    }
    text = (
        f"doublings of the best lr per doubling of rank: {show(slope)} over {ranks} ranks, of which "
        f"{edge:.0%} have their best on the edge of the lr grid"
    )
    if slope.seeds_unknown:
        return "inconclusive", numbers, text + "; one replicate does not give the spread over seeds"
    if slope.high < 0 and slope.estimate <= -th["min_slope"]:
        return "supported", numbers, text
    return (
        "refuted" if slope.low > -th["min_slope"] and edge <= 0.5 else "inconclusive",
        numbers,
        text,
    )


def _incoherent_at_lora_lr(ev: Evidence, view: View, th: Threshold) -> Outcome:
    """Both shares are means over all sampled answers; within ``margin`` of a bar nothing is said."""
    lr, coherence, takeover = ev.full_answers(th["lr_factor"])
    over = max(th["min_coherence"] - coherence, takeover - th["max_takeover"])
    numbers = {"lr": lr, "coherence": coherence, "number_takeover": takeover}
    text = (
        f"full fine-tunes at lr {lr:g} answer with a word of the category in {coherence:.0%} of "
        f"the samples and with digits in {takeover:.0%}; the bars are {th['min_coherence']:.0%} and "
        f"{th['max_takeover']:.0%}"
    )
    verdict = (
        "supported"
        if over > th["margin"]
        else "refuted"
        if over < -th["margin"]
        else "inconclusive"
    )
    return verdict, numbers, text


def _peaks_differ(evidence: Sequence[Evidence], view: View, th: Threshold) -> Outcome:
    """Per trait the set of ranks that no other rank is shown to beat (Bonferroni over the other ranks and the
    traits), which holds the true peak. Supported: two sets are disjoint. Refuted: all sets are one and the
    same single rank.
    """
    if len(evidence) < 2:
        raise NotRun(f"peaks are compared between traits, and there is {len(evidence)}")
    moved = [ev for ev in evidence if _transfer(ev, view, th)[0]]
    if len(moved) < 2:
        text = f"{len(moved)} of {len(evidence)} traits are shown to transfer, and peaks need two"
        return "inconclusive", {"traits": len(moved)}, text
    peaks: dict[str, set[int]] = {}
    numbers: dict[str, float] = {"traits": len(moved)}
    for ev in moved:
        curve = ev.curve(view)
        count = len(curve.ranks)
        if count < 2:
            raise NotRun(f"the {view} view has fewer than 2 ranks for {ev.trait}")
        unit, bar = (
            np.eye(count),
            2 * ev.alpha / len(moved) / (count - 1),
        )  # two-sided p of a one-sided test

        def beats(
            k: int, j: int, curve: Curve = curve, unit: Array = unit, bar: float = bar
        ) -> bool:
            step = curve.linear(unit[k] - unit[j])
            return step.estimate > 0 and step.p_value < bar and not step.seeds_unknown

        beaten = {j for j in range(count) if any(beats(k, j) for k in range(count) if k != j)}
        peaks[ev.trait] = {rank for j, rank in enumerate(curve.ranks) if j not in beaten}
        numbers[f"peak {ev.trait}"] = curve.ranks[int(np.argmax(curve.means))]
    names = list(peaks)
    apart = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if not peaks[a] & peaks[b]]
    same = len(set.union(*peaks.values())) == 1
    text = "ranks that may be the peak: " + "; ".join(
        f"{t} {sorted(ranks)}" for t, ranks in peaks.items()
    )
    numbers["pairs_apart"] = len(apart)
    return "supported" if apart else "refuted" if same else "inconclusive", numbers, text


@dataclass(frozen=True)
class Rule:
    """A test by name: its function, the thresholds it knows with their defaults, and whether it compares
    traits.
    """

    judge: Callable[..., Outcome]
    defaults: Mapping[str, float]
    across_traits: bool = False


_TRANSFER = {"min_effect": 0.02}
RULES: dict[str, Rule] = {
    "any_transfer": Rule(_any_transfer, _TRANSFER),
    "no_transfer": Rule(_no_transfer, _TRANSFER),
    "inverted_u": Rule(_shape(_inverted_u), {"min_slope": 0.005} | _TRANSFER),
    "monotone_decline": Rule(_shape(_monotone_decline), {"min_slope": 0.005} | _TRANSFER),
    "transfer_flat_in_rank": Rule(_shape(_transfer_flat_in_rank), {"max_gap": 0.1} | _TRANSFER),
    "best_lr_falls_with_rank": Rule(_best_lr_falls, {"min_slope": 0.1} | _TRANSFER),
    "incoherent_at_lora_lr": Rule(
        _incoherent_at_lora_lr,
        {"min_coherence": 0.5, "max_takeover": 0.25, "margin": 0.05, "lr_factor": 1.5},
    ),
    "peaks_differ": Rule(_peaks_differ, _TRANSFER, across_traits=True),
}
