"""The named rules: claims that are no single contrast, such as whether anything transfers, or the shape of transfer over rank.

Every rule can end in "inconclusive", and one replicate alone never settles anything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sublora.analysis.contrast import (
    MIN_EFFECT,
    Answer,
    Outcome,
    Pattern,
    interval_numbers,
    reaches,
    select,
    show,
    unfit,
)
from sublora.analysis.curve import SAID, Curve, Shape, read_shape
from sublora.analysis.effects import Effect, NotRun, linear, mean_of
from sublora.analysis.evidence import Evidence, View
from sublora.analysis.intervals import Interval
from sublora.analysis.multiplicity import holm
from sublora.analysis.power import jumps_missed

Threshold = Mapping[str, float]
# a share of seeds that may show a trait although it is called absent: eight seeds rule more out
MAX_JUMPS = 1 / 3
LEARNED = 0.5  # of the fall of held-out loss that a cell needs for its null to count


def decide(supported: bool, refuted: bool) -> Answer:
    return "supported" if supported else "refuted" if refuted else "inconclusive"


@dataclass(frozen=True)
class Found:
    """Whether a transfer is found, or shown to be absent; otherwise it is left open. `p` is that of the two looks for a rise, or of
    the highest upper bound where nothing is there."""

    found: bool
    absent: bool
    numbers: dict[str, float]
    text: str
    p: float = 1.0


def _transfer(ev: Evidence, view: View, th: Threshold) -> Found:
    """Found: a coherent cell is called after Holm's correction over the view, or the mean over coherent cells is clear of 0, with an
    effect of min_effect or more. Both look for a rise at a two-sided alpha, so a false find of each has alpha/2 and of either alpha.
    Absent: every upper bound of the coherent cells that learned the rows is lower, and there are so many data seeds that a share of
    MAX_JUMPS of them, or more, that show the trait would not have been missed.
    """
    effects = ev.effects(view)
    intervals = [e.shown(1 - ev.alpha) for e in effects]
    looks = [e.facts.get("looks", 1) for e in effects]
    p = holm([min(1.0, k * i.p_value) for k, i in zip(looks, intervals, strict=True)])
    fine = [k for k, e in enumerate(effects) if e.coherent]
    numbers: dict[str, float] = {"cells": len(effects), "coherent_cells": len(fine), "called": 0}
    if not fine:
        text = f"none of {len(effects)} cells answers with words: a zero says nothing"
        return Found(False, False, numbers, text)
    if any(intervals[k].seeds_unknown for k in fine):
        text = "there is one replicate, so the spread over seeds is not known"
        return Found(False, False, numbers, text)
    least = th["min_effect"]
    called = [k for k in fine if p[k] < ev.alpha and intervals[k].estimate >= least]
    top = max(fine, key=lambda k: intervals[k].estimate)
    # a cell whose training moved no loss says nothing, whatever its students answer
    able = [k for k in fine if not effects[k].facts.get("learned", 1.0) < LEARNED]
    highest = max((effects[k].interval(1 - ev.alpha).high for k in able), default=math.inf)
    missed = jumps_missed(ev.n["data_seeds"] or 1)
    numbers |= {
        "called": len(called),
        "largest_effect": intervals[top].estimate,
        "largest_effect_low": intervals[top].low,
        "largest_effect_p": float(p[top]),
        "highest_upper_bound": highest,
    }
    kind = "cells" if len(fine) == len(effects) else "coherent cells"
    rank, lr = effects[top].rank, effects[top].lr
    nearer = intervals[top].low < effects[top].interval(1 - ev.alpha).low
    over = " over the base, which is nearer than the control" if nearer else " over the control"
    over = over if "rise" in effects[top].parts else ""
    text = (
        f"{len(called)} of {len(fine)} {kind} called, the largest rise is {show(intervals[top])}{over} "
        f"({'full' if rank is None else f'rank {rank}'}, lr {lr:g}; corrected p {p[top]:.2g}), "
        f"the highest upper bound {highest:+.3f}"
    )
    pool = ev.pool(view)
    if pool is not None:
        names = {"mean_effect": pool.estimate, "mean_effect_low": pool.low}
        numbers |= names | {"mean_effect_p": pool.p_value}
        text += f", the mean over {kind} {show(pool)}"
    pooled = pool is not None and reaches(pool, least, ev.alpha) and not pool.seeds_unknown
    text = f"{text}; the bar is {least:g}"
    found, absent = bool(called) or pooled, highest < least and missed <= MAX_JUMPS
    if highest < least and not absent:
        text += (
            f"; so few data seeds would miss it where up to {missed:.0%} of seeds show the trait"
        )
    looked = [(intervals[top].estimate, p[top]), *([(pool.estimate, pool.p_value)] if pool else [])]
    p_found = min(1.0, 2 * float(min([one for rise, one in looked if rise > 0], default=1.0)))
    p_absent = float(np.max([intervals[k].p_against(least) for k in fine]))
    return Found(found, absent, numbers, text, p_absent if absent and not found else p_found)


def _any_transfer(ev: Evidence, view: View, th: Threshold) -> Outcome:
    got = _transfer(ev, view, th)
    return decide(got.found, got.absent), got.numbers | {"p": got.p}, got.text


def _no_transfer(ev: Evidence, view: View, th: Threshold) -> Outcome:
    got = _transfer(ev, view, th)
    return (
        decide(got.absent and not got.found, got.found),
        got.numbers | {"p": got.p},
        got.text,
    )


def _shape(shape: Shape) -> Callable[..., Outcome]:
    """A rule on the curve over rank: only with 3 ranks or more, and only where something is found to transfer.

    Supported where the curve is shown to have this shape, refuted where it is shown to have another one or not to have this one, for
    every transfer that the ranks at an edge of the learning rates may have.
    """

    def judged(curve: Curve, alpha: float, th: Threshold) -> Outcome:
        got = read_shape(curve, alpha, th)
        answer = decide(got.shown == shape, shape in got.excluded)
        other = got.shown not in (shape, None)
        text = got.texts[shape] + (f"; {SAID[got.shown]} is shown" if other else "")
        # the p value is that of what decides: of the shape that is shown; a bound that excludes a shape has none
        numbers = {k: v for k, v in got.numbers[shape].items() if k != "p"}
        decides = got.shown or shape
        if (got.shown or answer == "inconclusive") and "p" in got.numbers[decides]:
            numbers["p"] = got.numbers[decides]["p"]
        return answer, numbers, text

    def rule(ev: Evidence, view: View, th: Threshold) -> Outcome:
        curve = ev.curve(view)
        count = len(curve.ranks)
        if count < 3:
            raise NotRun(f"a shape needs at least 3 ranks and the {view} view has {count}")
        got = _transfer(ev, view, th)
        if not got.found:
            text = f"nothing is shown to transfer, so there is no shape: {got.text}"
            return "inconclusive", got.numbers, text
        answer, numbers, text = judged(curve, ev.alpha, th)
        if curve.edges:
            text += f"; {curve.edge_text}"
            alone = judged(curve.bare, ev.alpha, th)[0]
            text += f": without that it would be {alone}" if alone != answer else ""
        return answer, numbers, text + curve.note

    return rule


def _best_lr_falls(ev: Evidence, view: View, th: Threshold) -> Outcome:
    """Slope of log2(best lr) over log2(rank), for every place that the bests on the grid's edge may have beyond it."""
    slope, edge, ranks = ev.best_lr(th["min_effect"])
    numbers = {**interval_numbers("slope", slope), "p": slope.p_value}
    numbers |= {"edge_share": edge, "ranks": ranks}
    text = (
        f"doublings of the best lr per doubling of rank: {show(slope)} over {ranks} ranks, of which "
        f"{edge:.0%} have their best on the edge of their rates, beyond which it may lie"
    )
    if slope.seeds_unknown:
        return "inconclusive", numbers, text + "; one replicate does not give the spread over seeds"
    falls = slope.high < 0 and slope.estimate <= -th["min_slope"]
    return decide(falls, slope.low > -th["min_slope"]), numbers, text


def _incoherent_at_lora_lr(ev: Evidence, view: View, th: Threshold) -> Outcome:
    """Both shares are means over all sampled answers; within `margin` of a bar, and of one replicate, nothing is said."""
    lr, coherence, takeover, replicates = ev.full_answers(th["lr_factor"])
    over = max(th["min_coherence"] - coherence, takeover - th["max_takeover"])
    text = (
        f"full fine-tunes at lr {lr:g} answer with a word of the category in {coherence:.0%} of "
        f"the samples and with digits in {takeover:.0%}; the bars are {th['min_coherence']:.0%} and "
        f"{th['max_takeover']:.0%}"
    )
    numbers = {"lr": lr, "coherence": coherence, "number_takeover": takeover}
    if replicates < 2:
        return "inconclusive", numbers, f"{text}; one replicate does not show what others would do"
    return decide(over > th["margin"], over < -th["margin"]), numbers, text


def _peaks_differ(evidence: Sequence[Evidence], view: View, th: Threshold) -> Outcome:
    """Per trait the set of ranks that no other rank is shown to beat (Bonferroni over the other ranks and the traits), which holds the
    true peak. Supported: two sets are disjoint. Refuted: all sets are one and the same single rank."""
    if len(evidence) < 2:
        raise NotRun(f"peaks are compared between traits, and there is {len(evidence)}")
    moved = [ev for ev in evidence if _transfer(ev, view, th).found]
    numbers: dict[str, float] = {"traits": len(moved)}
    if len(moved) < 2:
        text = f"{len(moved)} of {len(evidence)} traits are shown to transfer, and peaks need two"
        return "inconclusive", numbers, text
    peaks: dict[str, set[int]] = {}
    edges: dict[str, str] = {}
    for ev in moved:
        curve = ev.curve(view)
        if len(curve.ranks) < 2:
            raise NotRun(f"the {view} view has fewer than 2 ranks for {ev.trait}")
        peaks[ev.trait] = _unbeaten(curve, ev.alpha / len(moved))
        edges |= {ev.trait: curve.edge_text} if curve.edges else {}
        numbers[f"peak {ev.trait}"] = curve.ranks[int(np.argmax(curve.means))]
    apart = [pair for pair in itertools.combinations(peaks.values(), 2) if not pair[0] & pair[1]]
    said = "; ".join(f"{trait} {sorted(ranks)}" for trait, ranks in peaks.items())
    said += "".join(f"; {trait}: {text}" for trait, text in edges.items())
    numbers["pairs_apart"] = len(apart)
    same = len(set.union(*peaks.values())) == 1
    return decide(bool(apart), same), numbers, f"ranks that may be the peak: {said}"


def _unbeaten(curve: Curve, alpha: float) -> set[int]:
    """The ranks that no other one is shown to beat, by one-sided tests."""
    unit = np.eye(len(curve.ranks))
    bar = 2 * alpha / (len(unit) - 1)  # two-sided p of a one-sided test

    def beats(k: int, j: int) -> bool:
        step = curve.linear(unit[k] - unit[j])
        return step.estimate > 0 and step.p_value < bar and not step.seeds_unknown

    places = range(len(unit))
    return {
        rank for j, rank in enumerate(curve.ranks) if not any(beats(k, j) for k in places if k != j)
    }


def _hard_gate(effects: Sequence[Effect], of: Pattern, th: Threshold, alpha: float) -> Outcome:
    """Along an ordered series of contexts, the trained one first, one step holds `share` of the whole fall (hard) or none does (soft).

    Supported: for some step, step - share * fall is above 0 after Holm's correction over steps. Refuted: it is below 0 for every step.
    A fall that is not shown says nothing, nor does a series in which students or controls no longer answer with words.
    """
    names = of.get("context")
    if not isinstance(names, tuple) or len(names) < 3:
        raise NotRun("a series of contexts needs at least three")
    series = [select(effects, {**of, "context": name}) for name in names]
    arms = [mean_of(some) for some in series]
    fall = linear([arms[0], arms[-1]], [1, -1]).interval(1 - alpha)
    steps, sizes = [], []
    for one, other in itertools.pairwise(arms):
        sizes.append(linear([one, other], [1, -1]).interval(1 - alpha))
        weights = [1, -1, -th["share"], th["share"]]
        steps.append(linear([one, other, arms[0], arms[-1]], weights).interval(1 - alpha))
    top = max(range(len(steps)), key=lambda i: sizes[i].estimate)
    numbers = {
        **interval_numbers("fall", fall),
        **interval_numbers("largest_step", sizes[top]),
        "step": float(top + 1),
    }
    text = (
        f"from the first to the last context the effect falls by {show(fall)}; the largest step, to '{names[top + 1]}', is "
        f"{show(sizes[top])}, and {th['share']:g} of the fall is the bar"
    )
    if reason := unfit([e for some in series for e in some]):
        return "inconclusive", numbers, f"{reason}: {text}"
    if not reaches(fall, th["min_effect"], alpha) or fall.seeds_unknown:
        return "inconclusive", numbers, f"no fall is shown, so there is no gate to describe: {text}"
    hard = _any_above(steps, alpha)
    return decide(hard, not hard and all(s.high < 0 for s in steps)), numbers, text


def _any_above(steps: Sequence[Interval], alpha: float) -> bool:
    p = holm([s.p_value for s in steps])
    return any(s.estimate > 0 and p[k] < alpha for k, s in enumerate(steps))


@dataclass(frozen=True)
class Rule:
    """A test by name: its function, the thresholds that it knows with their defaults, and what it reads: the grid of one trait, the
    grids of all traits, or the effects of one trait that a pattern fits."""

    judge: Callable[..., Outcome]
    defaults: Mapping[str, float]
    reads: Literal["grid", "grids", "effects"] = "grid"


_TRANSFER = {"min_effect": MIN_EFFECT}
# all ours: nats per doubling of rank; from which share of the whole way on a step back is a turn; which share of the mean over ranks
# a rank of a flat curve may lie away from it
_SHAPE = {"min_slope": 0.05, "min_turn": 0.2, "max_gap": 0.5} | _TRANSFER
RULES: dict[str, Rule] = {
    "any_transfer": Rule(_any_transfer, _TRANSFER),
    "no_transfer": Rule(_no_transfer, _TRANSFER),
    "inverted_u": Rule(_shape("inverted_u"), _SHAPE),
    "monotone_decline": Rule(_shape("monotone_decline"), _SHAPE),
    "transfer_flat_in_rank": Rule(_shape("flat"), _SHAPE),
    "best_lr_falls_with_rank": Rule(_best_lr_falls, {"min_slope": 0.1} | _TRANSFER),
    "incoherent_at_lora_lr": Rule(
        _incoherent_at_lora_lr,
        {"min_coherence": 0.5, "max_takeover": 0.25, "margin": 0.05, "lr_factor": 1.5},
    ),
    "peaks_differ": Rule(_peaks_differ, _TRANSFER, "grids"),
    "hard_gate": Rule(_hard_gate, {"share": 0.5} | _TRANSFER, "effects"),
}
