"""The rule that most claims are judged by: an effect less a share of another one, against a bar.

The interval decides, and one replicate alone settles nothing. A share of something that is not there says nothing either, so
what a claim compares with has to be shown to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sublora.analysis.effects import Effect, Label, NotRun, linear, mean_of
from sublora.analysis.intervals import Interval

Answer = Literal[
    "supported", "refuted", "inconclusive", "uninterpretable", "not run"
]  # every verdict there is
Outcome = tuple[Answer, dict[str, float], str]
Pattern = dict[str, Label | tuple[Label, ...]]
MIN_EFFECT = 0.1  # nats of log-odds of a transfer that counts as shown: a tenth more or fewer odds
# what a pattern asks for where it does not say: the context that was trained in, the plain adapter, the rows as written, no name
UNSAID: Pattern = {"context": "same", "condition": "", "data": "", "name": None}
# what a value may be by its place: of an axis of numbers, or in the order of the recipe
ROLES: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "lowest": min,
    "highest": max,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}


class Contrast(BaseModel):
    """`of` less `share` of `against`, each the mean of all effects that the labels fit.

    above, below, within: the whole interval lies beyond `bar`, or between minus and plus `bar`; a claim is refuted where the whole
    interval lies on the other side. reaches: the estimate is at least `bar` and clear of 0; refuted where the upper end is below `bar`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    of: Pattern
    against: Pattern | None = None
    share: float = 1.0
    says: Literal["above", "below", "within", "reaches"] = "above"
    bar: float = 0.0

    @property
    def least(self) -> float:
        """What a reference has to be shown to reach; 0 for a quantity of its own unit."""
        return 0.0 if {"name", "quantity"} & self.of.keys() else MIN_EFFECT

    @property
    def thresholds(self) -> dict[str, float]:
        if self.against is None:
            return {"bar": self.bar}
        return {"share": self.share, "min_effect": self.least, "bar": self.bar}

    def at(self, factor: float) -> Contrast:
        """This contrast with its bar, and its share unless that is 1 (a plain difference), times a factor; no share beyond 1."""
        share = self.share if self.share == 1 else min(1.0, self.share * factor)
        return self.model_copy(update={"bar": self.bar * factor, "share": share})

    def judge(self, effects: Sequence[Effect], alpha: float) -> tuple[Outcome, Effect]:
        """The outcome on the effects of one trait, and what it rests on. Raises NotRun where the run lacks what it asks for."""
        chosen = [select(effects, p) for p in (self.of, self.against) if p is not None]
        if self.against is not None and [*map(id, chosen[0])] == [*map(id, chosen[1])]:
            raise NotRun(f"the run has nothing to compare: both sides are {_said(self.of)}")
        sides = [mean_of(some) for some in chosen]
        rest = sides[0] if len(sides) == 1 else linear(sides, [1.0, -self.share])
        # a side by itself is shown beside the base as well; a difference between two arms is not
        alone = [e.shown(1 - alpha) for e in sides]
        difference = alone[0] if self.against is None else rest.interval(1 - alpha)
        intervals = [*alone, difference]
        one, other = intervals[0], intervals[1]
        name, bar = rest.labels.get("group", "effect"), f"the bar is {self.says} {self.bar:g}"
        numbers = {**interval_numbers("effect", one), "p": self._p(rest, difference)}
        text = f"{name}: {show(one)}; {bar}"
        reason = unfit([e for some in chosen for e in some])
        if any(i.seeds_unknown for i in intervals) and (rest.of_students or rest.given):
            reason = reason or "there is one replicate, whose spread is not known"
        if self.against is not None:
            numbers |= interval_numbers("reference", other)
            numbers |= interval_numbers("difference", difference)
            if other.estimate > 0:
                numbers["share"] = one.estimate / other.estimate
            text = (
                f"{name}: {show(one)} beside {show(other)} of the reference; less {self.share:g} of the "
                f"reference it is {show(difference)}; {bar}"
            )
            compared = (one, other) if self.share == 1 else (other,)
            if not any(reaches(side, self.least, alpha) for side in compared):
                reason = reason or "the reference is not shown, so there is nothing to compare with"
        if reason:
            return ("inconclusive", numbers, f"{reason}: {text}"), sides[0]
        return (self._verdict(difference, alpha), numbers, text), sides[0]

    def _p(self, effect: Effect, i: Interval) -> float:
        """The p value of what decides: against 0 where the effect has to be shown, or else against the nearest bar. NaN where the
        spread of what is given is not known."""
        ends = {"reaches": (0.0,), "within": (-self.bar, self.bar)}.get(self.says, (self.bar,))
        end = min(ends, key=lambda bar: abs(i.estimate - bar))
        null = effect.null if effect.given else 0.0
        return i.p_value if end == null else i.p_against(end)

    def _verdict(self, i: Interval, alpha: float) -> Answer:
        bar = self.bar
        supported, refuted = {
            "above": (i.low > bar, i.high < bar),
            "below": (i.high < bar, i.low > bar),
            "within": (-bar < i.low and i.high < bar, i.low > bar or i.high < -bar),
            "reaches": (reaches(i, bar, alpha), i.high < bar),
        }[self.says]
        return "supported" if supported else "refuted" if refuted else "inconclusive"


def fits(pattern: Pattern, labels: Mapping[str, Label]) -> bool:
    """Whether labels fit a pattern: by a value or one of several, and by `UNSAID` on axes that it does not name, unless it names a
    quantity."""
    unsaid = {} if "quantity" in pattern else UNSAID
    for name in {**unsaid, **pattern}:
        if name not in labels and name not in pattern:
            continue
        wanted, value = pattern.get(name, unsaid.get(name)), labels.get(name)
        if name == "context" and wanted in ("same", "other"):
            fit = (value == labels.get("train_context")) == (wanted == "same")
        else:
            fit = value in wanted if isinstance(wanted, tuple) else value == wanted
        if not fit:
            return False
    return True


def in_place(pattern: Pattern, labels: Sequence[Mapping[str, Label]]) -> Pattern:
    """The pattern with a value for each of `ROLES`: that of the labels that fit the rest of it. Raises NotRun where there is none."""
    roles = {name: v for name, v in pattern.items() if isinstance(v, str) and v in ROLES}
    rest = {name: v for name, v in pattern.items() if name not in roles}
    alike = [one for one in labels if fits(rest, one)] if roles else []
    for name, role in roles.items():
        values = [one[name] for one in alike if one.get(name) not in (None, "")]
        if not values:
            raise NotRun(f"the run has no {name} of which one is the {role}")
        rest[name] = ROLES[role](values)
    return rest


def select(effects: Sequence[Effect], pattern: Pattern) -> list[Effect]:
    """The effects that fit. Raises NotRun where there is none, or one of several names is missing, or one is unfit."""
    wanted = in_place(pattern, [e.labels for e in effects])
    chosen = [e for e in effects if fits(wanted, e.labels)]
    names = pattern.get("name", ())
    lacking = {*(names if isinstance(names, tuple) else (names,))}
    if not chosen or lacking - {e.labels.get("name") for e in chosen}:
        raise NotRun(f"the run has no result for {_said(pattern)}")
    if faults := [e.unfit for e in chosen if e.unfit]:
        raise NotRun(faults[0])
    return chosen


def _said(pattern: Pattern) -> str:
    said = ", ".join(f"{name} {_listed(v)}" for name, v in pattern.items())
    return said or "the plain adapter"


def _listed(value: Label | tuple[Label, ...]) -> str:
    return " or ".join(f"'{v}'" for v in (value if isinstance(value, tuple) else (value,)))


def unfit(effects: Sequence[Effect]) -> str | None:
    """Why nothing can be said of these effects, whatever they are."""
    for e in effects:
        if not e.matched:
            return f"{_named(e)} does not come to the held-out loss of the comparison"
        if not e.coherent:
            return f"{_named(e)} no longer answers with words"
    return None


def _named(effect: Effect) -> str:
    parts = [f"{k} {v}" for k, v in effect.labels.items() if v not in ("", None, "transfer")]
    return f"the arm '{', '.join(parts)}'"


def reaches(effect: Interval, least: float, alpha: float) -> bool:
    """Whether an effect is shown to be there: at least so large, and clear of 0."""
    return effect.estimate >= least and effect.p_value < alpha


def interval_numbers(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def show(interval: Interval) -> str:
    """An interval as text: estimate [low, high]."""
    return f"{interval.estimate:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
