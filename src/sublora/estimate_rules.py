"""The tests that judge claims about an experiment's estimates: one estimate, by name, against a bar.

An estimate is a number with an interval that the experiment defines (a difference of arms, say); the claim names it in `estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sublora.analysis.effects import Effect
from sublora.claim_rules import NotRun, Outcome, Rule, Threshold
from sublora.stats import Interval


class EstimateEvidence:
    """The estimates of one subject."""

    def __init__(self, estimates: Sequence[Effect], subject: str) -> None:
        self.trait = subject
        self.by_name = {
            f"{e.labels['group']}: {e.labels['name']}": e
            for e in estimates
            if e.labels["trait"] == subject
        }

    def find(self, name: str) -> Effect:
        """`group: name`. Raises NotRun where the run has no such estimate."""
        if name not in self.by_name:
            raise NotRun(f"the run has no estimate '{name}'")
        return self.by_name[name]

    def n(self, name: str) -> Mapping[str, int]:
        return self.by_name[name].n if name in self.by_name else {}


def _against(verdict: Callable[[Interval, float], str], words: str) -> Callable[..., Outcome]:
    def rule(ev: EstimateEvidence, name: str, th: Threshold) -> Outcome:
        found, bar = ev.find(name), th["bar"]
        if found.unfit:
            raise NotRun(found.unfit)
        interval = found.interval()
        numbers = {
            "estimate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "p": interval.p_value,
        }
        text = f"{name} is {interval.estimate:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]; the bar is {words} {bar:g}"
        if interval.seeds_unknown:
            return "inconclusive", numbers, f"one replicate settles nothing: {text}"
        return verdict(interval, bar), numbers, text

    return rule


def _above(i: Interval, bar: float) -> str:
    return "supported" if i.low > bar else "refuted" if i.high < bar else "inconclusive"


def _within(i: Interval, bar: float) -> str:
    inside, outside = -bar < i.low and i.high < bar, i.low > bar or i.high < -bar
    return "supported" if inside else "refuted" if outside else "inconclusive"


ESTIMATE_RULES: dict[str, Rule] = {
    "estimate_above": Rule(_against(_above, "above"), {"bar": 0.0}),
    "estimate_within": Rule(_against(_within, "within plus or minus"), {"bar": 0.05}),
}
