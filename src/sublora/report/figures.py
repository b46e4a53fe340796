"""Figures as files and as parts of a page.

Every figure is placed in inches (a column is 3.3 in), no type is under 7 pt, and no fact is carried
by colour alone. Equal charts give equal bytes, whatever the user's matplotlib settings are.
"""

import html
import io
import re
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from sublora.analysis.page import Chart, Heatmap
from sublora.report.heatmap import draw_heatmap
from sublora.report.hover import layer, links_of
from sublora.report.lines import draw_lines
from sublora.report.rows import draw_rows
from sublora.report.style import THEME, report_style
from sublora.store import write_atomic

KINDS = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "png": {"metadata": {"Software": None}, "dpi": 300},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}


def draw(chart: Chart | Heatmap, font: str | None = None) -> Figure:
    """The chart, drawn as its kind says."""
    with report_style(font):
        if isinstance(chart, Heatmap):
            return draw_heatmap(chart)
        return draw_lines(chart) if chart.kind == "lines" else draw_rows(chart)


def save(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind, without any date."""
    with report_style():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **KINDS[kind])
        return buffer.getvalue()


def plate(chart: Chart | Heatmap, folder: Path | None = None) -> Markup:
    """The chart as an SVG in a page; as files of every kind too where there is a folder."""
    figure = draw(chart)
    svg = save(figure, "svg")
    if folder is not None:
        for kind in KINDS:
            write_atomic(
                folder / f"{chart.name}.{kind}", svg if kind == "svg" else save(figure, kind)
            )
    label = chart.alt or f"{chart.title}. {chart.caption}"
    return inline_svg(svg.decode("utf-8"), chart.name, label, layer(figure, links_of(chart)))


def inline_svg(svg: str, prefix: str, label: str, over: str = "") -> Markup:
    """An SVG file as part of a page: own ids, the page's theme colours, a label for those who cannot see it; `over` lies above all.

    Matplotlib's SVGs share ids and carry a style rule for every element of the document; two of them
    in one page would clash, so ids get a prefix and the rule is left to the page's own style sheet.
    """
    svg = svg[svg.index("<svg") :]
    # Its comments repeat the texts it draws as outlines: data of a run, and of no use here.
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m.group()), svg)
    for colour, name in THEME.items():
        svg = svg.replace(colour, f"var(--fig-{name})")
    opening, _, body = svg.partition(">")
    box = re.search(r'viewBox="([^"]*)"', opening).group(1)  # matplotlib always writes one
    body = re.sub(r"\n\s*", "\n", body.replace("xlink:href", "href"))
    head = f'<svg class="fig" viewBox="{box}" role="img" aria-label="{html.escape(label)}">'
    return Markup(head + body.replace("</svg>", f"{over}\n</svg>"))
