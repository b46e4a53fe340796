"""Estimates with intervals and the figures that they are drawn in, for experiments that have not moved to `analysis` yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sublora.analysis.effects import Effect, named
from sublora.stats import Interval


@dataclass(frozen=True)
class Estimate:
    """What `analysis.effects.named` makes, for experiments that have not moved to it yet."""

    subject: str
    group: str
    name: str
    interval: Interval
    n: Mapping[str, int]
    null: float = 0.0
    tested: bool = True
    unfit: str | None = None

    def effect(self) -> Effect:
        return named(
            self.subject,
            self.group,
            self.name,
            self.interval,
            self.n,
            null=self.null,
            tested=self.tested,
            unfit=self.unfit,
        )


class Point(BaseModel):
    """A point of a figure: at `x`, or a row called `label`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str = ""
    x: float | None = None
    estimate: float
    low: float | None = None
    high: float | None = None


class Series(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = ""
    points: tuple[Point, ...]


class Chart(BaseModel):
    """A figure of estimates. rows: one row a point; lines: one line a series over x."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    kind: Literal["rows", "lines"]
    axis: str = Field(description="what the values are")
    x_axis: str = ""
    log_x: bool = False
    reference: float | None = Field(None, description="a line to compare with")
    caption: str
    series: tuple[Series, ...]


class Tile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    value: str
    interval: str = ""
    note: str = ""
