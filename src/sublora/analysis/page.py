"""The page of a run as one typed document, `page.json`: the run writes it, and the report is made of nothing else.

Texts may hold `code` between backticks. A figure's caption comes from whoever makes the figure.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Look = Literal["student", "control", "full", "teacher", "muted", "ink"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Figure(_Strict):
    name: Name
    title: str
    caption: str
    alt: str = Field("", description="the figure in words, for those who cannot see it")


class Point(_Strict):
    """A point at `x`, or called `label`: a row, or in a chart of lines a place beyond the last x.

    `hollow`, `strong`: drawn empty, and in bold. `note`: written below the x. `link`: the part of the
    page that a click leads to.
    """

    label: str = ""
    x: float | None = None
    estimate: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    strong: bool = False
    note: str = ""
    link: str = ""


class Series(_Strict):
    """Points of one kind, in the panel of this title; without a `look`, looks are given in order."""

    name: str = ""
    points: tuple[Point, ...]
    panel: str = ""
    look: Look | None = None


class Chart(_Figure):
    """Estimates with their intervals, in panels. rows, bars: one row a label; lines: over x.

    Panels stand below one another and share one scale where they share the name of an axis; rows and
    bars may stand `beside` one another, with a scale each, and share the names of their rows.
    """

    kind: Literal["rows", "bars", "lines"]
    axis: str = Field(description="what the values are")
    x_axis: str = ""
    log_x: bool = False
    reference: float | None = Field(None, description="a line to compare with")
    reference_name: str = ""
    bounds: tuple[float, float] | None = Field(None, description="the scale reaches no further")
    least: float = Field(0.0, description="the scale reaches at least so far")
    beside: bool = False
    interval: str = Field("interval", description="what the bars are called")
    filled: str = Field("", description="what filled points are called")
    hollow: str = Field("", description="what hollow points are called")
    notes: str = Field("", description="what the notes below the x are")
    series: tuple[Series, ...]


class HeatCell(_Strict):
    """The value at a row and a column of a block; marked with a dot, hatched, framed."""

    row: str
    column: str
    value: float
    marked: bool = False
    hatched: bool = False
    framed: bool = False
    link: str = ""


class HeatBlock(_Strict):
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    x_axis: str
    cells: tuple[HeatCell, ...]
    title: str = ""


class Heatmap(_Figure):
    """Values by row and column, in blocks that share a scale from `low` to `high`."""

    kind: Literal["heatmap"] = "heatmap"
    blocks: tuple[HeatBlock, ...]
    row_axis: str
    scale: str = Field(description="what the values are")
    low: float
    high: float
    colours: Literal["viridis", "cividis"] = "viridis"
    digits: int = 2
    signs: bool = True
    marked: str = Field("", description="what marked cells are called; so with the next two")
    hatched: str = ""
    framed: str = ""


class TokenPrompt(_Strict):
    """A prompt's tokens with their classes, and a value a token in each view."""

    question: str
    pieces: tuple[str, ...]
    classes: tuple[str, ...]
    views: dict[str, tuple[float, ...]]
    whole: float = Field(description="the value of all tokens together")


class TokenMaps(_Strict):
    """Prompts as coloured tokens; values in `unit`."""

    kind: Literal["tokens"] = "tokens"
    name: Name
    title: str
    caption: str
    unit: str
    prompts: tuple[TokenPrompt, ...]


class Table(_Strict):
    """A table of texts; `marks` are the CSS classes of the rows, `links` the parts of the page that their
    first texts lead to ("" for none). `folded`: opened by a click."""

    kind: Literal["table"] = "table"
    name: Name
    title: str
    caption: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    folded: bool = False


class Quote(_Strict):
    """A prompt, and what each column says to it: no text, one or several."""

    prompt: str
    texts: tuple[tuple[str, ...], ...]


class Quotes(_Strict):
    """Rows and answers word for word, a column for each who wrote them; answers with the word `marked` stand out."""

    kind: Literal["quotes"] = "quotes"
    name: Name
    title: str
    caption: str = ""
    columns: tuple[str, ...]
    rows: tuple[Quote, ...]
    marked: str = ""
    folded: bool = False


Part = Annotated[Chart | Heatmap | TokenMaps | Table | Quotes, Field(discriminator="kind")]


class Section(_Strict):
    """A part of the page under a heading; `nav` is its name in the list of sections."""

    name: Name
    title: str
    text: str = ""
    nav: str = ""
    parts: tuple[Part, ...] = ()


class Tile(_Strict):
    """A number at the top of the page."""

    name: str
    value: str
    interval: str = ""
    note: str = ""
    link: str = Field("", description="the part of the page that it leads to")


class Registration(_Strict):
    """How a run stands to the file that fixed it beforehand: `planned` students (or artifacts, `what`), `before` of them made before it
    was written. Times are UTC."""

    file: str
    sha256: str
    written: str
    what: str
    planned: int
    before: int
    first_made: str | None

    @property
    def sentence(self) -> str:
        """What the page says of it."""
        written, made = (
            (when or "").replace("T", " ").replace("+00:00", " UTC")
            for when in (self.written, self.first_made)
        )
        file = f"`{self.file}`, written {written} (sha256 {self.sha256[:16]}…)"
        if self.before:
            return (
                f"This is no pre-registration: {self.before} of {self.planned} {self.what}s were made before {file}, the first at "
                f"{made}."
            )
        first = f"; the first {self.what} was made at {made}" if made else ""
        return f"Recipe, claims, thresholds and model are those of {file}{first}."


class Page(_Strict):
    """All that a page shows; the verdicts stand between `sections` and `appendix`.

    `manifest` is run.json; `registration`: of a run that a file fixed beforehand; `note` stands below the tiles; `verdicts` None: no part for them.
    """

    schema_version: Literal[1] = 1
    title: str
    manifest: dict[str, Any]
    registration: Registration | None = None
    first_line: str = Field("", description="whether the controls hold")
    tiles: tuple[Tile, ...] = ()
    note: str = ""
    sections: tuple[Section, ...] = ()
    verdicts: tuple[dict[str, Any], ...] | None = None
    appendix: tuple[Section, ...] = ()
    facts: dict[str, str] = {}


def finite(value: Any) -> float | None:
    """The number, or None where it is empty, NaN or infinite."""
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None


def point(label: str, found: Mapping[str, Any], **more: Any) -> Point:
    """A point of a row with `estimate`, `low` and `high`, whose ends may be unknown."""
    low, high = finite(found["low"]), finite(found["high"])
    return Point(label=label, estimate=found["estimate"], low=low, high=high, **more)
