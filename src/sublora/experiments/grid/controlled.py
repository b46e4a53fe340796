"""What the controls of a run came to. Where one fails, the run's claims about that trait cannot be interpreted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sublora.analysis.claims import Verdict
from sublora.analysis.contrast import MIN_EFFECT, NotRun, reaches, select, show
from sublora.analysis.effects import ACROSS, ALL_TRAITS, Effect, found, mean_of
from sublora.analysis.intervals import Interval
from sublora.analysis.multiplicity import holm
from sublora.analysis.page import Section, Table
from sublora.experiments.grid.controls import positive_pattern
from sublora.experiments.grid.effects import Results, effect_of
from sublora.steps.students import Student
from sublora.text import listed
from sublora.traits.trait import Trait

POSITIVE = "positive arm"


@dataclass(frozen=True)
class Control:
    """One control of one trait: whether it holds, and the sentence that says so or why not."""

    trait: str
    name: str
    holds: bool
    sentence: str


def controls_of(results: Results, effects: Sequence[Effect], level: float) -> list[Control]:
    """The controls of every trait of a run that has them. `effects`: its transfers."""
    recipe = results.plan.recipe
    if not recipe.controlled:
        return []
    neutral = {t.name: _neutral(results, t) for t in results.plan.traits}
    intervals = {name: e.shown(1 - level) for name, e in neutral.items()}
    p = dict(zip(intervals, holm([i.p_value for i in intervals.values()]), strict=True))
    out = []
    for trait in results.plan.traits:
        mine = [e for e in effects if e.trait == trait.name]
        out.append(_null(trait.name, intervals[trait.name], p[trait.name], level))
        out.append(_positive(trait.name, mine, results, level))
        if results.losses:
            out.append(_learned(results, trait, level))
    if mine := [e for e in effects if e.trait == ALL_TRAITS]:
        broken = [c for c in out if not c.holds and c.name != POSITIVE]
        out += [
            replace(c, trait=ALL_TRAITS, sentence=f"of {c.trait}, {c.sentence}") for c in broken
        ]
        out.append(_positive(ALL_TRAITS, mine, results, level))
    return out


def _neutral(results: Results, trait: Trait) -> Effect:
    """Students of neutral rows less the trait's control twins."""
    members = [s for s in results.plan.neutral if trait.name in s.twins]
    return effect_of(results, trait, members, results.plan.recipe.judged_context, None)


def _null(trait: str, i: Interval, p: float, level: float) -> Control:
    called = p < level and i.estimate >= MIN_EFFECT and not i.seeds_unknown
    said = "show the trait" if called else "are not called"
    sentence = f"students of neutral rows {said}, {show(i)} (corrected p {p:.2g})"
    return Control(trait, "neutral rows", not called, sentence)


def _positive(trait: str, effects: Sequence[Effect], results: Results, level: float) -> Control:
    """The arm that must transfer: a cell of it after Holm's correction, or the mean over its coherent cells."""
    name = POSITIVE
    try:
        arm = [e for e in select(effects, positive_pattern(results.plan.recipe)) if e.coherent]
    except NotRun as error:
        return Control(trait, name, False, f"the positive arm is missing, because {error}")
    if not arm:
        return Control(trait, name, False, "no student of the positive arm answers with words")
    intervals = [e.shown(1 - level) for e in arm]
    if intervals[0].seeds_unknown:
        return Control(
            trait, name, False, "the positive arm has one replicate, which shows nothing"
        )
    p = holm([i.p_value for i in intervals])
    top = max(range(len(arm)), key=lambda k: intervals[k].estimate)
    called = [k for k, i in enumerate(intervals) if p[k] < level and i.estimate >= MIN_EFFECT]
    pooled = mean_of(arm).shown(1 - level)
    holds = bool(called) or reaches(pooled, MIN_EFFECT, level)
    said = "transfers" if holds else "is not shown to transfer"
    most = f"at most {show(intervals[top])}" if len(arm) > 1 else show(intervals[top])
    return Control(trait, name, holds, f"the positive arm {said}, {most}")


def _learned(results: Results, trait: Trait, level: float) -> Control:
    """Whether students know held-out rows of their teacher better than their control twins do, beside the neutral students."""
    labels = results.plan.neutral[0].labels
    members = [s for s in results.plan.students if trait.name in s.twins and s.labels == labels]
    gap = np.array(
        [_loss(results, s, s.twins[trait.name]) - _own(results, trait, s) for s in members]
    )
    i = found(trait.name, "", "", gap, [s.replicate for s in members]).interval(1 - level)
    # every replicate counts: two seeds can show that where an interval cannot
    holds = bool((gap > 0).all())
    said = "know" if holds else "are not shown to know"
    sentence = f"students {said} held-out rows of their teacher better than their controls do, by {show(i)} nats a token, the least {gap.min():+.3g}"
    return Control(trait.name, "held-out rows", holds, sentence)


def _loss(results: Results, of: Student, reader: str) -> float:
    return results.losses[reader, of.heldout, of.context]


def _own(results: Results, trait: Trait, student: Student) -> float:
    context, category = student.context.name, trait.category.category
    return results.of(student.id, context, category).heldout_loss or np.nan


def first_line(controls: Sequence[Control], least: float | None) -> str:
    """The first line of a run's page: what fails, for which trait, or that all holds. `least`: the smallest effect that its cells would
    have shown, in nats."""
    failed: dict[str, list[str]] = {}
    for c in controls:
        failed.setdefault(c.trait, []).extend([] if c.holds else [c.sentence])
    lines = [f"Uninterpretable for {t}: {'; '.join(why)}." for t, why in failed.items() if why]
    if fine := [t for t, why in failed.items() if not why]:
        said = [c.sentence for c in controls if c.trait == fine[0]]
        what = "; ".join(said) if len(fine) == 1 else "their numbers stand under Controls"
        lines.append(f"The controls of {listed(fine)} hold: {what}.")
    if least is not None:
        lines.append(f"A cell would have shown an effect of {least:+.2f} nats with a power of 80%.")
    return " ".join(lines)


def control_section(controls: Sequence[Control]) -> tuple[Section, ...]:
    """A row a control, for the end of the page."""
    if not controls:
        return ()
    rows = tuple(
        (c.trait, c.name, "yes" if c.holds else "no", c.sentence[:1].upper() + c.sentence[1:])
        for c in controls
    )
    text = "Where one of them fails, the claims about its trait cannot be interpreted."
    columns = ("trait", "control", "holds", "what it shows")
    table = Table(name="table-controls", title="Controls", columns=columns, rows=rows)
    return (Section(name="controls", title="Controls", text=text, parts=(table,)),)


def interpreted(verdicts: Sequence[Verdict], controls: Sequence[Control]) -> list[Verdict]:
    """The verdicts, uninterpretable where a control of their trait fails, or of any trait for a claim across traits."""
    out = []
    for v in verdicts:
        why = [c for c in controls if not c.holds and v.trait in (c.trait, ACROSS)]
        if why and v.verdict != "not run":
            said = f"{why[0].sentence[:1].upper()}{why[0].sentence[1:]} ({why[0].trait})"
            reason = f"{said}. By itself the claim would be {v.verdict}. {v.reason}"
            v = replace(v, verdict="uninterpretable", reason=reason)
        out.append(v)
    return out
