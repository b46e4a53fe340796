"""Recipes that are no grid of students: an experiment names its own stages, and its results are estimates with intervals.

A recipe file with `kind:` is one. An experiment says which artifacts it needs (units, as the grids do: named by the hash of all that can
change their content, made where they are missing) and what they come to (`Findings`); plan, resume, verdicts and the page are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from sublora.analysis.effects import Effect, named
from sublora.analysis.tables import estimate_rows
from sublora.errors import SubloraError
from sublora.stats import Interval
from sublora.store import Store

if TYPE_CHECKING:
    from sublora.model import Base


@dataclass(frozen=True)
class Work:
    """What a task works with; `made` is told each finished artifact, `base_of` gives a model by its name, loaded once."""

    store: Store
    base_of: Callable[[str], Base]
    made: Callable[[str], None]


class Task(Protocol):
    """A unit of an experiment: it makes the artifacts `makes`, in one go, from `needs`."""

    @property
    def id(self) -> str: ...
    @property
    def makes(self) -> tuple[str, ...]: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def label(self) -> str: ...
    @property
    def flops(self) -> float:
        """Floating-point operations of the whole task."""

    def perform(self, work: Work, wanted: set[str]) -> None:
        """Make the artifacts `wanted`, some of `makes`."""


@dataclass(frozen=True)
class Stage:
    """Tasks that can run in any order. `name` is for times, `label` says what they make."""

    name: str
    label: str
    tasks: tuple[Task, ...]


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


@dataclass(frozen=True)
class Findings:
    """What an experiment came to."""

    estimates: tuple[Effect | Estimate, ...]
    charts: tuple[Chart, ...]
    tiles: tuple[Tile, ...]
    how: str  # how the numbers were made, in a few sentences
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def effects(self) -> list[Effect]:
        return [e.effect() if isinstance(e, Estimate) else e for e in self.estimates]


class Experiment(BaseModel):
    """What every experiment's recipe has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$")
    kind: str
    title: str
    summary: str
    caveat: str | None = None
    level: float = Field(
        0.05, gt=0, lt=0.5, description="false calls allowed over all tested estimates of a group"
    )

    @property
    def model_name(self) -> str | None:
        """The language model that it needs, if any."""
        return None

    def identity(self) -> dict[str, str]:
        """The identity of that model, from its files. Raises SubloraError where it has to be downloaded first."""
        if self.model_name is None:
            return {}
        from sublora.model import local_identity, model_source

        source = model_source(self.model_name)
        if not Path(source).is_dir():
            raise SubloraError(
                f"The model {self.model_name} is not on this machine; run the recipe, which fetches it."
            )
        return local_identity(source, "float32")

    @property
    def out_words(self) -> list[str]:
        """What tells its runs apart, for the default folder."""
        return []

    @property
    def sentence(self) -> str:
        """What is done, in one sentence."""
        raise NotImplementedError

    def stages(self, identity: Mapping[str, str]) -> list[Stage]:
        """The stages, in an order in which they can run; `identity` is that of the language model, or empty. Runs nothing."""
        raise NotImplementedError

    def bill(self, store: Store, stages: Sequence[Stage]) -> str | None:
        """What others will be asked, and what that costs; None where nobody is."""
        return None

    def findings(
        self, store: Store, stages: Sequence[Stage], identity: Mapping[str, str]
    ) -> Findings:
        """Read what the stages made."""
        raise NotImplementedError


def findings_json(findings: Findings, level: float) -> dict[str, Any]:
    """What the page is drawn from."""
    return {
        "estimates": estimate_rows(findings.effects, level),
        "charts": [c.model_dump(mode="json") for c in findings.charts],
        "tiles": [t.model_dump(mode="json") for t in findings.tiles],
        "how": findings.how,
        "facts": dict(findings.facts),
    }
