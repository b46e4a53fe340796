"""The page of a run as one typed document, `page.json`: the run writes it, and the report is made of nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)
NAME = r"^[a-z0-9][a-z0-9-]*$"


class Point(BaseModel):
    """A point of a figure: at `x`, or a row called `label`."""

    model_config = _STRICT
    label: str = ""
    x: float | None = None
    estimate: float
    low: float | None = None
    high: float | None = None
    hollow: bool = Field(False, description="drawn empty: not coherent, not matched")


class Series(BaseModel):
    model_config = _STRICT
    name: str = ""
    points: tuple[Point, ...]


class Chart(BaseModel):
    """A figure of estimates. rows: one row a point; lines: one line a series over x."""

    model_config = _STRICT
    kind: Literal["rows", "lines"]
    name: str = Field(pattern=NAME)
    title: str
    axis: str = Field(description="what the values are")
    x_axis: str = ""
    log_x: bool = False
    reference: float | None = Field(None, description="a line to compare with")
    caption: str
    series: tuple[Series, ...]


class Tile(BaseModel):
    """A number at the top of the page."""

    model_config = _STRICT
    name: str
    value: str
    interval: str = ""
    note: str = ""


class Table(BaseModel):
    """A table of texts; `marks[i]` are the CSS classes of row i."""

    model_config = _STRICT
    name: str = Field(pattern=NAME)
    title: str
    caption: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()


Figure = Annotated[Chart, Field(discriminator="kind")]  # later a union: heatmap, tokens, bars, ...


class Page(BaseModel):
    """All that a page shows, in the order in which it shows it. `manifest` is run.json."""

    model_config = _STRICT
    schema_version: int = 1
    title: str
    sentence: str
    manifest: dict[str, Any]
    warnings: tuple[str, ...] = ()
    tiles: tuple[Tile, ...] = ()
    figures: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    verdicts: tuple[dict[str, Any], ...] = ()
    how: str = ""
    facts: dict[str, str] = {}
