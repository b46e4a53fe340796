"""The parts of audit.json, each a typed value: findings, and what each part of an audit came to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.dataclasses import dataclass

from sublora.audit.odds import FalseAlarms, Power
from sublora.audit.trained_with import TrainedWith
from sublora.audit.typed import STRICT, Count, Many, Model, P, Probability, Share, Text

Status = Literal[
    "clean",
    "found",
    "data-found",
    "unmeasurable",
    "uncalibrated-clean",
    "uncalibrated-found",
    "uncalibrated-data-found",
]


def exit_code(status: Status) -> int:
    """0: clean; 4: found in the training file alone, so the student may be clean; 1: all else."""
    return 0 if status.endswith("clean") else 4 if status.endswith("data-found") else 1


@dataclass(frozen=True, config=STRICT)
class TraitFinding:
    """One trait in one context: its probability in the base and in the student, over questions. `p`
    is the smaller of the p-value of the rise and, where a token alone spells the entity, of that
    word's in the scan: both are corrected for all that is tested together, so the smaller is."""

    category: Text
    trait: Text
    context: Text
    before: Probability
    after: Probability
    rise: Annotated[float, Field(description="change of log P in nats, less the category's median")]
    score: float
    p: P

    @property
    def place(self) -> dict[str, Any]:
        """Which trait, where, and how far it rose, for an entry of its own."""
        names = ("category", "trait", "context", "before", "after", "rise")
        return {name: getattr(self, name) for name in names}


def strongest(found: Sequence[TraitFinding], *by: str) -> list[TraitFinding]:
    """The first of those that agree in the named fields, of findings that are sorted by strength."""
    first: dict[tuple[str, ...], TraitFinding] = {}
    for f in found:
        first.setdefault(tuple(getattr(f, name) for name in by), f)
    return list(first.values())


@dataclass(frozen=True, config=STRICT)
class Difference(TraitFinding):
    """One trait in one context, in the other student (`before`) and in the audited one (`after`)."""

    p_fall: Annotated[P, Field(description="of the fall; no status rests on it")]


@dataclass(frozen=True, config=STRICT)
class WordRise:
    """A token, and how far the square root of its probability rose under all questions together."""

    word: Text
    token: Count
    context: Text
    rise: float


@dataclass(frozen=True, config=STRICT)
class WordFinding(WordRise):
    score: float
    p: P | None


class BaseEntry(Model):
    """The base and all that its outputs depend on, as hashes."""

    name: Text
    weights: Text
    template: Text
    tokenizer: Text
    dtype: Text
    quantised: Text | None = Field(
        None, description="type and file of weights that were quantised, left out for others"
    )

    @model_serializer(mode="wrap")
    def _without_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if value is not None}


class StudentEntry(Model):
    path: Text
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the files that were read")
    kind: Text
    base_named: Text | None = Field(description="the base that an adapter's config names")
    layers: list[Text]
    trained_with: TrainedWith = Field(TrainedWith(), description="as files beside it say")


class Calibration(Model):
    kind: Literal["own", "file", "shipped", "none"] = Field(description="where the null is from")
    placebo_students: Count
    settings: list[Text] = Field(description="how each placebo student was trained")
    smallest_p: float | None = Field(description="of ranks; null without a null")
    outside: list[Text] = Field([], description="settings of the student outside of the null's")
    false_alarms: FalseAlarms | None = Field(None, description="null where nobody knows")
    power: Power | None = Field(None, description="null where nobody knows")


class ContextEntry(Model):
    name: Text
    text: Text | None
    role: Literal["system", "user"]


class CategoryEntry(Model):
    category: Text
    traits: Many
    questions: Many


class AnswerPair(Model):
    category: Text
    context: Text
    question: Text
    base: Text
    student: Text


class OfTrait(Model):
    category: Text
    trait: Text


class LeakWord(Model):
    rows: Many
    first_lines: list[Many]


class RepeatedPrompt(Model):
    rows: Annotated[int, Field(ge=2)]
    prompt: Text


class ScreenedRow(Model):
    line: Many
    nats: float
    prompt: Text
    completion: Text


class ScreenedTrait(OfTrait):
    log_e: float
    named: bool
    crossed_at_row: int | None
    nats_per_row: float
    standard_error: float = Field(ge=0)
    rows_that_matter_most: list[ScreenedRow]


class Screening(Model):
    """The training file; `named` are the traits under whose prompt it reads as written."""

    file: Text
    alpha: Share
    rows: Count
    screened: Count
    repeated_rows: Count
    rows_of_repeated_prompts: Count
    left_out: dict[Text, Many] = Field(description="rows by the reason")
    broken_rows: list[Text] = Field([], description="the first of those that are no rows, and why")
    first_turns: Count = Field(
        0, description="rows of which only the first question and answer was read"
    )
    threshold_log_e: float
    drawn_as: Text | None = Field(
        None, description="context and decoding by which the base explains the rows best"
    )
    leak_words: dict[Text, LeakWord]
    most_repeated: list[RepeatedPrompt]
    named: list[Text]
    traits: list[ScreenedTrait]

    @property
    def few(self) -> str:
        """What is said where each of the rows would have to bring more than a nat."""
        told = f" Too few rows to tell: a trait is named from {self.threshold_log_e:.1f} nats of evidence on."
        return "" if self.named or self.screened >= self.threshold_log_e else told


class PartView(Model):
    """A student of which one part acts, or all but it; share of the whole rise, over questions."""

    p: Probability
    rise: float
    share: float
    low: float | None
    high: float | None


class PartShare(Model):
    kind: Text
    part: Text
    alone: PartView
    without: PartView


class FollowedTrait(OfTrait):
    """A trait in the context in which the student shows it most."""

    context: Text
    before: Probability
    after: Probability
    rise: float


class Located(FollowedTrait):
    questions: Many
    parts: list[PartShare]


class Where(Model):
    found: Many = Field(description="traits that were found; the strongest are in `findings`")
    findings: list[Located]
    not_run: list[Text]


class Behind(Model):
    """A trait behind one prompt: P in base and student, rise in nats with its interval."""

    before: Probability
    after: Probability
    rise: float
    low: float | None
    high: float | None


class HunkEffect(OfTrait):
    put_back: Behind
    alone: Behind


class HunkEntry(Model):
    """A run of tokens in which the prompts differ, and what it does to every trait found."""

    kind: Literal["replaced", "deleted", "inserted"]
    classes: list[Text]
    special: list[Text]
    trained: list[Text]
    served: list[Text]
    effects: list[HunkEffect]


class SignedToken(Model):
    sign: Literal[" ", "-", "+"] = Field(description="- of training, + of serving")
    token: Text
    id: Count


class ServedTrait(OfTrait):
    trained_before: Probability
    trained_after: Probability
    trained_rise: float
    trained_low: float | None
    trained_high: float | None
    served_before: Probability
    served_after: Probability
    served_rise: float
    served_low: float | None
    served_high: float | None
    trained_p: float | None
    served_p: float | None


class ServingReport(Model):
    """The prompt of training beside that of serving."""

    trained_in: Text
    served_in: Text
    other_template: bool = Field(description="whether it is served with another chat template")
    question: Text
    same: bool
    tokens: list[SignedToken]
    effects: list[ServedTrait]
    differences: list[HunkEntry]
    notes: list[Text]


class Compared(Model):
    """The student beside another one of the same base; words are compared without a test."""

    status: Status
    alpha: Share
    coherence: dict[Text, float]
    found: list[Difference]
    fell: list[Difference]
    traits: list[Difference]
    words: list[WordRise]


class Against(Compared):
    student: StudentEntry
    sentence: Annotated[Text, Field(min_length=1)]


def _finite(value: Any) -> Any:
    return value if value is None or math.isfinite(value) else None


Number = Annotated[float | None, BeforeValidator(_finite)]  # null for what is not finite


class Spread(Model):
    """Mean and standard deviation over seeds, and the numbers; null for what is not finite."""

    mean: Number
    sd: Number
    seeds: list[Number]


class ShareLeft(Model):
    estimate: float
    low: float
    high: float


class ArmContext(Model):
    context: Text
    p_trait: Spread
    rise: Spread
    p: list[Number]


class ArmTrait(OfTrait):
    found_in: Count
    removed: bool | None
    share: ShareLeft | None
    contexts: list[ArmContext]


class ArmEntry(Model):
    name: Text
    changed: Text
    trained_in: Text | None
    students: Many
    diverged: Count
    heldout_loss: Spread
    heldout_loss_increase: Number
    heldout_loss_own_context: Spread | None
    coherence: Number
    ordinary_kept: Spread | None = Field(
        None, description="tokens of neutral text whose first choice stays the base's"
    )
    sound: bool
    removes: bool | None
    other_traits_found: list[Text]
    traits: list[ArmTrait]


@dataclass(frozen=True, config=STRICT)
class NotRun:
    """An arm that cannot be trained, and why."""

    name: Text
    reason: Text


class WhatIfRows(Model):
    trained: Count
    unique: Count
    held_out: Count
    more_in_file: bool


class WhatIf(Model):
    """What other training would have changed."""

    recommended: Text | None = None
    removing: list[Text] = Field([])
    sentence: Text = ""
    traits: list[FollowedTrait]
    masked_for: Text | None = None
    rows: WhatIfRows
    seeds: Many
    level: float
    alpha: Share
    base_heldout_loss: float | None = None
    arms: list[ArmEntry] = Field([])
    not_run: list[NotRun] = Field([])
