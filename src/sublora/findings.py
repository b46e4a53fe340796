"""Findings: named quantities of a run besides transfer, each with its replicates, so that claims can be judged on them.

A finding is one number for every replicate, or one for every replicate and question. What it is, and its unit, is said by its group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sublora.claim_rules import NotRun, Outcome, Rule, Threshold, show
from sublora.stats import Array, Interval, clustered_interval

ACROSS = "all"  # the trait of what is found across traits


@dataclass(frozen=True)
class Finding:
    """`values` (R, Q), or (R, 1) where there are no questions. `of_students`: whether replicates are students, of which one alone settles
    nothing; of the base there is only one, and its spread is that over questions. `given`: the interval of what is no mean of values, such
    as a correlation over traits (trait "all")."""

    trait: str
    group: str
    name: str
    values: Array
    data_seeds: tuple[int, ...]
    train_seeds: tuple[int, ...]
    of_students: bool = True
    given: Interval | None = None

    def interval(self, level: float) -> Interval:
        if self.given is not None:
            return self.given
        return clustered_interval(self.values, self.data_seeds, self.train_seeds, level)


FINDING_COLUMNS = (
    "trait",
    "group",
    "finding",
    "estimate",
    "low",
    "high",
    "p_value",
    "n_data_seeds",
    "n_train_seeds",
    "n_questions",
)


def finding_rows(findings: Sequence[Finding], level: float) -> list[dict[str, Any]]:
    """The rows of findings.csv; nothing is corrected here."""
    rows = []
    for f in findings:
        interval = f.interval(level)
        rows.append(
            {
                "trait": f.trait,
                "group": f.group,
                "finding": f.name,
                "estimate": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "p_value": interval.p_value,
                "n_data_seeds": len(set(f.data_seeds)),
                "n_train_seeds": len(set(f.train_seeds)),
                "n_questions": f.values.shape[1],
            }
        )
    return rows


class FindingEvidence:
    """The findings of one trait, as claims ask for them: by name, several of one name's tuple averaged."""

    def __init__(self, findings: Sequence[Finding], trait: str, alpha: float) -> None:
        self.trait, self.alpha = trait, alpha
        self.findings = {f.name: f for f in findings if f.trait == trait}
        first = next(iter(self.findings.values()), None)
        self.n: Mapping[str, int | None] = {
            "data_seeds": len(set(first.data_seeds)) if first else 0,
            "train_seeds": len(set(first.train_seeds)) if first else 0,
            "questions": first.values.shape[1] if first else 0,
        }

    def has(self, names: str | tuple[str, ...]) -> bool:
        return all(n in self.findings for n in ((names,) if isinstance(names, str) else names))

    def of(self, names: str | tuple[str, ...]) -> Finding:
        """Raises NotRun where the run lacks one."""
        asked = (names,) if isinstance(names, str) else names
        if missing := [n for n in asked if n not in self.findings]:
            raise NotRun(f"the run has no finding '{missing[0]}'")
        found = [self.findings[n] for n in asked]
        if len(found) == 1:
            return found[0]
        values = np.mean([f.values for f in found], axis=0)
        return Finding(
            self.trait,
            found[0].group,
            asked[0],
            values,
            found[0].data_seeds,
            found[0].train_seeds,
            found[0].of_students,
        )

    def interval(self, like: Finding, values: Array) -> tuple[Interval, bool]:
        """(interval of a linear combination, whether it may settle something)."""
        if like.given is not None:
            return like.given, not like.given.seeds_unknown
        found = clustered_interval(values, like.data_seeds, like.train_seeds, 1 - self.alpha)
        return found, not (like.of_students and found.seeds_unknown)


Asked = tuple[str | tuple[str, ...], str | tuple[str, ...]]


def _numbers(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _against_bar(above: bool) -> Callable[..., Outcome]:
    """Supported: the whole interval lies beyond the bar on the named side; refuted: on the other one."""

    def rule(ev: FindingEvidence, asked: Asked, th: Threshold) -> Outcome:
        finding = ev.of(asked[0])
        interval, settles = ev.interval(finding, finding.values)
        higher, lower = interval.low > th["bar"], interval.high < th["bar"]
        text = f"{finding.group}: {show(interval)}; the bar is {th['bar']:g}"
        if not settles:
            return (
                "inconclusive",
                _numbers("finding", interval),
                f"there is one replicate, whose spread is not known: {text}",
            )
        verdict = (
            "supported"
            if (higher if above else lower)
            else "refuted"
            if (lower if above else higher)
            else "inconclusive"
        )
        return verdict, _numbers("finding", interval), text

    return rule


def _against_share(least: bool) -> Callable[..., Outcome]:
    """A rule on finding - share * reference, where the reference is above 0 with its whole interval."""

    def rule(ev: FindingEvidence, asked: Asked, th: Threshold) -> Outcome:
        finding, reference = ev.of(asked[0]), ev.of(asked[1])
        one, _ = ev.interval(finding, finding.values)
        whole, _ = ev.interval(reference, reference.values)
        rest, settles = ev.interval(finding, finding.values - th["share"] * reference.values)
        numbers = {
            **_numbers("finding", one),
            **_numbers("reference", whole),
            **_numbers("difference", rest),
        }
        text = f"{finding.group}: {show(one)} beside {show(whole)} of the reference; finding minus {th['share']:g} of it is {show(rest)}"
        if not settles:
            return (
                "inconclusive",
                numbers,
                f"there is one replicate, whose spread is not known: {text}",
            )
        if whole.low <= 0:
            return (
                "inconclusive",
                numbers,
                f"the reference is not shown to be above 0, so there is nothing to share: {text}",
            )
        higher, lower = rest.low > 0, rest.high < 0
        verdict = (
            "supported"
            if (higher if least else lower)
            else "refuted"
            if (lower if least else higher)
            else "inconclusive"
        )
        return verdict, numbers, text

    return rule


FINDING_RULES: dict[str, Rule] = {
    "finding_above": Rule(_against_bar(True), {"bar": 0.0}),
    "finding_below": Rule(_against_bar(False), {"bar": 0.0}),
    "finding_at_least": Rule(_against_share(True), {"share": 0.5}),
    "finding_at_most": Rule(_against_share(False), {"share": 0.5}),
}
