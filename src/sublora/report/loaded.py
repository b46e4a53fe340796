"""A finished run, opened for a notebook: its tables, verdicts and figures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sublora.analysis.frame import Frame, html_table
from sublora.analysis.page import Chart, Heatmap, Page
from sublora.report.figures import draw, save
from sublora.report.page import read_page
from sublora.report.verdicts import takeaway

FIGURES_SHOWN = 2


@dataclass(frozen=True)
class Picture:
    """A figure of a page; a notebook shows it in its place."""

    chart: Chart | Heatmap

    def figure(self) -> Figure:
        """As a matplotlib figure, to be changed or saved."""
        return draw(self.chart)

    def _repr_svg_(self) -> str:
        return save(self.figure(), "svg").decode("utf-8")

    def __repr__(self) -> str:
        return f"Picture({self.chart.title})"


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """What a run left in its folder. `tables` are its CSV files by their names, such as `results`."""

    folder: Path
    page: Page
    tables: Mapping[str, Frame]

    @property
    def manifest(self) -> dict[str, Any]:
        """run.json: recipe, model, versions, warnings."""
        return self.page.manifest

    @property
    def effects(self) -> Frame:
        """One row an effect, with its interval and corrected p: the cells of a grid, its arms where it has no cells, or the estimates of
        another experiment. Transfer is in nats."""
        names = [name for name in ("cells", "arms", "results") if name in self.tables]
        return self.tables[names[0]] if names else Frame({})

    @property
    def verdicts(self) -> Frame:
        """One row a claim and trait."""
        names = ("id", "trait", "verdict", "q", "statement", "reason", "source")
        return Frame.of_rows([{n: v.get(n) for n in names} for v in self.page.verdicts or ()])

    @cached_property
    def figures(self) -> dict[str, Picture]:
        """The figures of the page by their names."""
        parts = [p for s in (*self.page.sections, *self.page.appendix) for p in s.parts]
        return {p.name: Picture(p) for p in parts if isinstance(p, Chart | Heatmap)}

    def __repr__(self) -> str:
        return f"LoadedRun({self.page.title}, {len(self.effects)} effects, {len(self.verdicts)} verdicts, in {self.folder})"

    def _repr_html_(self) -> str:
        said = (takeaway(self.page.verdicts or ()), self.page.first_line)
        texts = "".join(f"<p>{escape(text)}</p>" for text in said if text)
        judged = self.verdicts.rows()
        columns = ("verdict", "trait", "statement", "reason")
        verdicts = html_table(columns, [[v[c] for c in columns] for v in judged]) if judged else ""
        tiles = html_table(
            ("", "value", "interval"), [(t.name, t.value, t.interval) for t in self.page.tiles]
        )
        shown = list(self.figures.values())[:FIGURES_SHOWN]
        return f"<h3>{escape(self.page.title)}</h3>{texts}{tiles}{verdicts}{''.join(map(_image, shown))}"


def load_run(folder: Path | str) -> LoadedRun:
    """Open the folder of a finished run. Raises SubloraError where it holds none of this version."""
    folder = Path(folder)
    page = read_page(folder / "page.json")
    tables = {p.stem: Frame.of_csv(p.read_text("utf-8")) for p in sorted(folder.glob("*.csv"))}
    return LoadedRun(folder, page, tables)


def _image(picture: Picture) -> str:
    svg = b64encode(picture._repr_svg_().encode("utf-8")).decode("ascii")
    return f'<img alt="{escape(picture.chart.title)}" src="data:image/svg+xml;base64,{svg}">'
