"""Claims as data (`experiments/claims/*.yaml`) and their verdicts: what they say, and how they are judged.

Trained students, experiments and somebody else's numbers (`published.py`) are judged by the same tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sublora.analysis.contrast import Answer, Contrast, Outcome, Pattern, select
from sublora.analysis.effects import ACROSS, Effect, NotRun
from sublora.analysis.evidence import Evidence, Grid, View
from sublora.analysis.frame import Shown
from sublora.analysis.multiplicity import q_values
from sublora.analysis.rules import RULES
from sublora.errors import SubloraError, plain

NOTICE = (
    "; its authors gave notice (2026-09-08) that some of its main claims, not named, are incorrect"
)


SILENT = ("uninterpretable", "not run")  # verdicts that rest on no number, and so count in no q
FACTORS = {"half": 0.5, "twice": 2.0}  # of its bar, at which a claim is judged again
NO_BAR = {"lr_factor", "margin"}  # thresholds that say what is compared, and not how much is much
SHARES = {"share", "min_coherence", "max_takeover"}  # thresholds that go no higher than 1


class Named(BaseModel):
    """A named rule of `rules.py`: of a view of the grid, or of the effects that a pattern fits. Other keys are its thresholds."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, float] = {}
    test: str
    view: View | None = None
    of: Pattern = {}

    @model_validator(mode="after")
    def _known(self) -> Named:
        if self.test not in RULES:
            raise ValueError(f"unknown test {self.test!r}; use one of {', '.join(RULES)}")
        rule, given = RULES[self.test], self.__pydantic_extra__ or {}
        if rule.reads == "effects" and (self.view or not self.of):
            raise ValueError(f"{self.test} takes labels (of) and no view")
        if rule.reads != "effects" and (self.of or not self.view):
            raise ValueError(f"{self.test} takes a view of the grid and no labels")
        unknown = sorted(set(given) - set(rule.defaults))
        if unknown or not all(math.isfinite(value) for value in given.values()):
            known = ", ".join(rule.defaults)
            raise ValueError(
                f"threshold {unknown or 'value'} is unknown to {self.test} or not finite; it takes finite {known}"
            )
        return self

    @property
    def thresholds(self) -> dict[str, float]:
        """The claim's thresholds over its test's defaults."""
        return {**RULES[self.test].defaults, **(self.__pydantic_extra__ or {})}

    def at(self, factor: float) -> Named:
        """This rule with all its bars times a factor; no share beyond 1."""
        moved = {k: v * factor for k, v in self.thresholds.items() if k not in NO_BAR}
        capped = {k: min(1.0, v) if k in SHARES else v for k, v in moved.items()}
        return self.model_copy(update=capped)


class Claim(BaseModel):
    """One pre-registered hypothesis, judged by a contrast or by a named rule, in the recipes that it names.

    `threshold_from`: where its bar comes from, a paper's figure or "ours". `unique_rows`: how many the statement asks for where it says
    "enough"; with fewer it is not judged. `no_leak`: it speaks of rows that never mention the trait; it is not judged where a reader of
    the text alone can tell them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    statement: str = Field(min_length=1)
    source: str = Field(min_length=1)
    threshold_from: str = Field(min_length=1)
    recipes: tuple[str, ...] = Field(min_length=1)
    contrast: Contrast | None = None
    rule: Named | None = None
    author_notice: bool = False
    unique_rows: int | None = Field(None, ge=1)
    no_leak: bool = False

    @model_validator(mode="after")
    def _one_test(self) -> Claim:
        if (self.contrast is None) == (self.rule is None):
            raise ValueError("a claim has either a contrast or a rule; give one of them")
        return self

    @property
    def test(self) -> str:
        return "contrast" if self.rule is None else self.rule.test

    @property
    def reads(self) -> str:
        """What it is judged on: `effects`, `grid`, or `grids`."""
        return "effects" if self.rule is None else RULES[self.rule.test].reads

    @property
    def thresholds(self) -> dict[str, float]:
        return (self.contrast or self.rule).thresholds

    @property
    def of(self) -> Pattern:
        return (self.contrast or self.rule).of

    def at(self, factor: float) -> Claim:
        """This claim with every bar times a factor, see `Contrast.at` and `Named.at`."""
        part = "rule" if self.contrast is None else "contrast"
        return self.model_copy(update={part: (self.contrast or self.rule).at(factor)})


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """The verdict on one claim for one trait; `to_dict` gives an entry of verdicts.json.

    `q`: its q value among all claims of the run, None where its test has no p value. `stability`: what it would be at `half` and at
    `twice` its bar; empty where it is not run or has no bar but 0.
    """

    claim: Claim
    trait: str
    verdict: Answer
    statistic: Mapping[str, float]
    reason: str
    n: Mapping[str, int | None]
    q: float | None = None
    stability: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        """The p value of what decides, where its test has one."""
        p = math.nan if self.verdict in SILENT else self.statistic.get("p", math.nan)
        return p if math.isfinite(p) else None

    def _line(self) -> str:
        return f"{self.verdict}: {self.claim.id}, {self.trait}"

    def _pairs(self) -> Mapping[str, Any]:
        own = {"verdict": self.verdict, "claim": self.claim.statement, "trait": self.trait}
        return {**own, "why": self.reason, "q": self.q, **self.stability}

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: a statistic that is not finite becomes None."""
        claim = self.claim
        return {
            "id": claim.id,
            "statement": claim.statement,
            "test": claim.test,
            "view": claim.rule.view or "" if claim.rule else "",
            "source": claim.source + (NOTICE if claim.author_notice else ""),
            "trait": self.trait,
            "threshold": claim.thresholds,
            "threshold_from": claim.threshold_from,
            "verdict": self.verdict,
            "statistic": {
                k: float(v) if math.isfinite(v) else None for k, v in self.statistic.items()
            },
            "reason": self.reason,
            "n": dict(self.n),
            "q": self.q,
            "stability": dict(self.stability),
        }


def read_claims(text: str, name: str, recipe: str) -> list[Claim]:
    """The claims of a YAML text called `name`: a list, or `claims` below what all of them share. One without `recipes` belongs to
    `recipe`.

    Raises SubloraError naming the claim that is wrong.
    """
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise SubloraError(f"claims file {name} cannot be read ({why}); fix it.") from None
    shared: dict[str, Any] = {"recipes": [recipe]}
    if isinstance(entries, dict) and "claims" in entries:
        shared |= entries
        entries = shared.pop("claims")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SubloraError(
            f"claims file {name} is not a list of claims; start each with '- id: NAME'."
        )
    claims = []
    for number, entry in enumerate(entries, 1):
        try:
            claims.append(Claim.model_validate(shared | entry))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "entry"
            claim = f"claim {entry.get('id', f'number {number}')!r} in {name}"
            raise SubloraError(f"{claim}: {where}: {plain(first)}; fix that key.") from None
    return claims


def judge(
    claims: Sequence[Claim],
    recipe: str,
    effects: Sequence[Effect],
    grid: Grid | None = None,
    alpha: float = 0.05,
    interpret: Callable[[list[Verdict]], list[Verdict]] = list,
) -> list[Verdict]:
    """Judge the claims that name this recipe, for every trait: those on a grid of ranks and rates by `grid`, the others by `effects`.

    `interpret` says which of the verdicts cannot be interpreted; these count in no q value.
    """
    chosen = [claim for claim in claims if recipe in claim.recipes]
    evidence = evidence_of(grid)
    return weighed(chosen, lambda some: interpret(judged(some, effects, evidence, alpha)))


def evidence_of(grid: Grid | None) -> list[Evidence]:
    """Of every trait; it keeps the intervals that it was asked for."""
    return [grid.of(trait) for trait in grid.traits] if grid else []


def weighed(
    claims: Sequence[Claim], judged: Callable[[Sequence[Claim]], list[Verdict]]
) -> list[Verdict]:
    """What `judged` says of the claims, each with its q value among them all, and with what it would be at half and twice its bar."""
    given = judged(claims)
    moved = {name: judged([c.at(f) for c in claims]) for name, f in FACTORS.items()}
    q = q_values([verdict.p for verdict in given])

    def stability(k: int) -> dict[str, Answer]:
        fixed = given[k].verdict in SILENT or given[k].claim.at(2.0) == given[k].claim
        return {} if fixed else {name: some[k].verdict for name, some in moved.items()}

    return [replace(v, q=q[k], stability=stability(k)) for k, v in enumerate(given)]


def judged(
    claims: Sequence[Claim], effects: Sequence[Effect], evidence: Sequence[Evidence], alpha: float
) -> list[Verdict]:
    """The verdicts by themselves, without what they are among all claims and at other bars."""
    on_grid = [claim for claim in claims if claim.reads != "effects"]
    verdicts = judge_grids(on_grid, evidence) if evidence else []
    traits = list(dict.fromkeys(e.trait for e in effects))
    for claim in claims:
        if claim.reads == "effects":
            verdicts += [
                _on_effects(claim, [e for e in effects if e.trait == trait], trait, alpha)
                for trait in _asked(claim, traits, effects)
            ]
    return verdicts


def _asked(claim: Claim, traits: Sequence[str], effects: Sequence[Effect]) -> list[str]:
    """Every trait, or once for all where the quantity is one across traits."""
    try:
        select([e for e in effects if e.trait == ACROSS], claim.of)
    except NotRun:
        return [trait for trait in traits if trait != ACROSS]
    return [ACROSS]


def _on_effects(claim: Claim, effects: Sequence[Effect], trait: str, alpha: float) -> Verdict:
    try:
        if claim.contrast is not None:
            outcome, on = claim.contrast.judge(effects, alpha)
        else:
            on = select(effects, claim.of)[0]
            outcome = RULES[claim.test].judge(effects, claim.of, claim.thresholds, alpha)
    except NotRun as error:
        outcome, on = ("not run", {}, str(error)), None
    return _verdict(claim, trait, outcome, on.sizes if on else {})


def judge_grids(claims: Sequence[Claim], evidence: Sequence[Evidence]) -> list[Verdict]:
    """One verdict for each claim and trait, or one with the trait "all" for a claim that compares traits."""
    verdicts = []
    for claim in claims:
        if claim.reads == "grids":
            subjects: list[tuple[str, Any]] = [(ACROSS, evidence)]
        else:
            subjects = [(ev.trait, ev) for ev in evidence]
        for trait, subject in subjects:
            n = evidence[0].n if claim.reads == "grids" and evidence else subject.n
            try:
                outcome = RULES[claim.test].judge(subject, claim.rule.view, claim.thresholds)
            except NotRun as error:
                outcome = ("not run", {}, str(error))
            verdicts.append(_verdict(claim, trait, outcome, n))
    return verdicts


def _verdict(claim: Claim, trait: str, outcome: Outcome, n: Mapping[str, int | None]) -> Verdict:
    verdict, numbers, text = outcome
    return Verdict(claim, trait, verdict, numbers, f"{text[:1].upper()}{text[1:]}.", n)
