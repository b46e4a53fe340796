"""Estimates with intervals and the figures that they are drawn in, for experiments that have not moved to `analysis` yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sublora.analysis.effects import Effect, named
from sublora.analysis.page import Chart, Point, Series, Tile  # noqa: F401, for the experiments
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
