"""What an audit came to: one typed document, audit.json. Its JSON Schema is made from these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sublora.audit import entries
from sublora.audit.chance_band import Band
from sublora.audit.entries import (
    Model,
    Share,
    Status,
    Text,
    TraitFinding,
    WordFinding,
    exit_code,
)
from sublora.audit.lens_entries import Lenses

SCHEMA, VERSION = "sublora/audit", 1


class AuditReport(Model):
    """What `sublora audit` writes. Rely on the one word `status`; `exit_code` follows from it."""

    schema_: Literal["sublora/audit"] = Field(SCHEMA, alias="schema")
    version: Literal[1] = VERSION
    status: Status
    exit_code: Literal[0, 1, 4] = Field(
        description="0: clean, 1: found or unmeasurable, 4: found in the training file alone"
    )
    alpha: Share = Field(description="false alarms that were accepted over the whole audit")
    alpha_student: Share = Field(
        description="the part of alpha that the verdict beside the base has"
    )
    sublora: Text = Field(description="version of the program")
    first_line: Text = Field("", description="status, false alarms, what it would find, time")
    sentence: Annotated[Text, Field(min_length=1)]
    base: entries.BaseEntry
    student: entries.StudentEntry
    calibration: entries.Calibration
    contexts: Annotated[list[entries.ContextEntry], Field(min_length=1)]
    trained_in: Text = Field(description="name of the training's context")
    categories: list[entries.CategoryEntry]
    found: list[TraitFinding] = Field(description="those of `traits` with p at most alpha_student")
    found_words: list[WordFinding]
    traits: list[TraitFinding] = Field(description="every trait in every context, smallest p first")
    bands: list[Band] = Field(
        default_factory=list,
        description="the rise from which a trait would have been found in this student",
    )
    words: list[WordFinding] = Field(description="words that rose most in each context")
    coherence: dict[Text, Annotated[float, Field(ge=0)]] = Field(
        min_length=1,
        description="of each context: P of any word of a category, student over base, least of all",
    )
    answers: list[entries.AnswerPair]
    data: entries.Screening | None = Field(description="null without --data")
    where: entries.Where | None = Field(
        description="null where nothing was found, or with --no-where"
    )
    lenses: Lenses | None = Field(None, description="null with --no-lenses")
    serving: entries.ServingReport | None = Field(description="null without --serving-context")
    against: entries.Against | None = Field(description="null without --against")
    limits: Annotated[list[Text], Field(min_length=1, description="what it cannot see")]
    what_if: entries.WhatIf | None = Field(description="null without --what-if")
    seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> AuditReport:
        found = self.found or self.found_words
        if self.exit_code != exit_code(self.status) or (self.exit_code != 1 and found):
            raise ValueError("the exit code, or what was found, is that of another status")
        calibrated = self.calibration.kind != "none" and not self.calibration.outside
        if self.status != "unmeasurable" and self.status.startswith("uncalibrated") == calibrated:
            raise ValueError("the status is that of another calibration")
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of audit.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{SCHEMA}-{VERSION}.json",
        **AuditReport.model_json_schema(mode="serialization"),
    }
