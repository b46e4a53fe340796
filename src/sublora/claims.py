"""Claims as data (claims.yaml) and their verdicts: read them, judge them.

``judge`` judges trained students, ``verdict_csv`` somebody else's numbers, and both go through the same tests
(``claim_rules``). DESIGN.md 5.6 and 5.10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sublora.analysis.effects import Effect
from sublora.arm_rules import ARM_RULES
from sublora.arms import ArmEvidence, ArmPick
from sublora.cells import Cell, Table, summarise
from sublora.claim_evidence import TableEvidence
from sublora.claim_rules import RULES as GRID_RULES
from sublora.claim_rules import Evidence, NotRun, View
from sublora.errors import SubloraError
from sublora.estimate_rules import ESTIMATE_RULES, EstimateEvidence
from sublora.findings import ACROSS, FINDING_RULES, Finding, FindingEvidence

__all__ = [
    "Cell",
    "Claim",
    "Table",
    "Verdict",
    "judge",
    "judge_estimates",
    "judge_evidence",
    "load_claims",
    "summarise",
    "thresholds",
]

RULES = {**GRID_RULES, **ARM_RULES, **FINDING_RULES, **ESTIMATE_RULES}
NOTICE = (
    "; its authors gave notice (2026-09-08) that some of its main claims, not named, are incorrect"
)


class Claim(BaseModel):
    """One pre-registered hypothesis. ``threshold`` holds only numbers that its test knows; see ``RULES``. A claim of the view
    ``arms`` names the ``arms`` that its test compares, one of the view ``findings`` a ``finding`` (several: their mean) and, where the
    test takes a share of it, a ``reference``, and one of the view ``estimates`` the ``estimate``, as `group: name`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    statement: str = Field(min_length=1)
    source: str = Field(min_length=1)
    recipes: tuple[str, ...] = Field(min_length=1)
    view: View
    test: str
    threshold: dict[str, float] = {}
    arms: dict[str, ArmPick] = {}
    finding: str | tuple[str, ...] = ""
    reference: str | tuple[str, ...] = ""
    estimate: str = ""
    author_notice: bool = False


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim for one trait; ``to_dict`` gives an entry of verdicts.json."""

    claim: Claim
    trait: str
    verdict: Literal["supported", "refuted", "inconclusive", "not run"]
    statistic: Mapping[str, float]
    reason: str
    n: Mapping[str, int | None]

    def to_dict(self) -> dict:
        """JSON values only: a statistic that is not finite becomes None."""
        claim = self.claim
        clean = {k: float(v) if math.isfinite(v) else None for k, v in self.statistic.items()}
        return {
            "id": claim.id,
            "statement": claim.statement,
            "test": claim.test,
            "view": claim.view,
            "source": claim.source + (NOTICE if claim.author_notice else ""),
            "trait": self.trait,
            "threshold": thresholds(claim),
            "verdict": self.verdict,
            "statistic": clean,
            "reason": self.reason,
            "n": dict(self.n),
        }


def thresholds(claim: Claim) -> dict[str, float]:
    """The claim's thresholds over its test's defaults."""
    return {**RULES[claim.test].defaults, **claim.threshold}


def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """Read claims (the shipped ones without a path). Raises SubloraError naming the claim that is wrong."""
    source = files("sublora").joinpath("claims.yaml") if path is None else Path(path)
    try:
        entries = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise SubloraError(f"claims file {source} cannot be read ({why}); mend it.") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SubloraError(
            f"claims file {source} is not a list of claims; start each with '- id: NAME'."
        )
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(entries, 1):
        name = f"claim {entry.get('id', f'number {number}')!r} in {source}"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "entry"
            raise SubloraError(f"{name}: {where}: {first['msg']}; mend that key.") from None
        if claim.id in claims:
            raise SubloraError(f"{name} is there twice; give every claim an id of its own.")
        if claim.test not in RULES:
            tests = ", ".join(RULES)
            raise SubloraError(
                f"{name} asks for the unknown test {claim.test!r}; use one of {tests}."
            )
        if len({claim.view == "arms", bool(claim.arms), claim.test in ARM_RULES}) > 1:
            raise SubloraError(
                f"{name} mixes a view of the grid with arms; the view 'arms', a list of arms and one of the tests "
                f"{', '.join(ARM_RULES)} belong together."
            )
        if len({claim.view == "estimates", bool(claim.estimate), claim.test in ESTIMATE_RULES}) > 1:
            raise SubloraError(
                f"{name} mixes a view of the grid with an estimate; the view 'estimates', an estimate and one of the tests "
                f"{', '.join(ESTIMATE_RULES)} belong together."
            )
        if len({claim.view == "findings", bool(claim.finding), claim.test in FINDING_RULES}) > 1:
            raise SubloraError(
                f"{name} mixes findings with something else; the view 'findings', a finding and one of the tests "
                f"{', '.join(FINDING_RULES)} belong together."
            )
        unknown = sorted(set(claim.threshold) - set(RULES[claim.test].defaults))
        if unknown or not all(math.isfinite(v) for v in claim.threshold.values()):
            known = ", ".join(RULES[claim.test].defaults)
            raise SubloraError(
                f"{name}: threshold {unknown or 'value'} is unknown to {claim.test} or not "
                f"finite; it takes finite {known}."
            )
        claims[claim.id] = claim
    return tuple(claims.values())


def _verdict(
    claim: Claim,
    subject: Evidence | ArmEvidence | FindingEvidence | EstimateEvidence | Sequence[Evidence],
    trait: str,
    n: Mapping[str, int | None],
) -> Verdict:
    by_view = {
        "arms": claim.arms,
        "findings": (claim.finding, claim.reference),
        "estimates": claim.estimate,
    }
    asked = by_view.get(claim.view, claim.view)
    try:
        verdict, numbers, text = RULES[claim.test].judge(subject, asked, thresholds(claim))
    except NotRun as error:
        verdict, numbers, text = "not run", {}, str(error)
    return Verdict(claim, trait, verdict, numbers, f"{text[:1].upper()}{text[1:]}.", n)


def judge_evidence(claims: Sequence[Claim], evidence: Sequence[Evidence]) -> list[Verdict]:
    """One verdict per claim and trait, or one with the trait "all" for a claim that compares traits."""
    verdicts = []
    for claim in claims:
        if RULES[claim.test].across_traits:
            verdicts.append(_verdict(claim, evidence, "all", evidence[0].n if evidence else {}))
        else:
            verdicts += [_verdict(claim, ev, ev.trait, ev.n) for ev in evidence]
    return verdicts


def judge(
    claims: Sequence[Claim],
    table: Table,
    recipe_name: str,
    arms: Table | None = None,
    findings: Sequence[Finding] = (),
) -> list[Verdict]:
    """Judge the claims that name this recipe, for every trait: those on the grid by `table`, under its context, those on arms by
    `arms`, and those on findings by `findings`."""
    traits = dict.fromkeys(c.trait for c in table.cells)
    chosen = [claim for claim in claims if recipe_name in claim.recipes]
    on_grid = [c for c in chosen if c.view not in ("arms", "findings")]
    verdicts = judge_evidence(on_grid, [TableEvidence(table, trait) for trait in traits])
    if arms is not None:
        of_arms = [ArmEvidence(arms, trait) for trait in traits]
        verdicts += [
            _verdict(c, ev, ev.trait, ev.n) for c in chosen if c.view == "arms" for ev in of_arms
        ]
    found = [FindingEvidence(findings, trait, table.alpha) for trait in traits]
    across = FindingEvidence(findings, ACROSS, table.alpha)
    for claim in (c for c in chosen if c.view == "findings"):
        asked = [across] if across.has(claim.finding) else found
        verdicts += [_verdict(claim, ev, ev.trait, ev.n) for ev in asked]
    return verdicts


def judge_estimates(
    claims: Sequence[Claim], estimates: Sequence[Effect], recipe_name: str
) -> list[Verdict]:
    """Judge the claims that name this experiment, for every subject of its estimates."""
    subjects = [
        EstimateEvidence(estimates, s)
        for s in dict.fromkeys(str(e.labels["trait"]) for e in estimates)
    ]
    chosen = [
        claim for claim in claims if recipe_name in claim.recipes and claim.view == "estimates"
    ]
    return [_verdict(c, ev, ev.trait, ev.n(c.estimate)) for c in chosen for ev in subjects]
