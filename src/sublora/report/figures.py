"""The figures of a report: pure functions from a loaded run to matplotlib figures, sized for a paper.

Every figure is placed in inches (one column is 3.3 in, two are 6.8 in), no type is under 7 pt, and no fact is
carried by colour alone: series differ by marker and line, called cells by a dot, incoherent cells by hatching.
A drawing returns None where the run has nothing to show in it. Draw with `render`, write with `save`.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from matplotlib.figure import Figure

from sublora.report.arms import arm_rows, context_matrix, has_matrix, row_axis
from sublora.report.bars import answer_bars, best_lora, traits_overview
from sublora.report.curves import full_ft, rank_best_lr, rank_fixed_lr
from sublora.report.finding_rows import finding_rows
from sublora.report.heatmap import heatmap
from sublora.report.style import COLUMN, PAGE, STUDENT, THEME, report_style
from sublora.report.words import rate, signed, trait_target

__all__ = [
    "COLUMN",
    "PAGE",
    "STUDENT",
    "THEME",
    "answer_bars",
    "arm_rows",
    "best_lora",
    "context_matrix",
    "finding_rows",
    "full_ft",
    "has_matrix",
    "heatmap",
    "rank_best_lr",
    "rank_fixed_lr",
    "rate",
    "render",
    "row_axis",
    "save",
    "signed",
    "trait_target",
    "traits_overview",
]


def render(draw: Callable[[], Figure | None], font: str | None = None) -> Figure | None:
    """Draw under the report's own style, whatever the user's matplotlib settings are."""
    with report_style(font):
        return draw()


def save(figure: Figure) -> dict[str, bytes]:
    """The figure as bytes by kind: "svg", "png" (300 dpi), "pdf". No dates: equal figures, equal bytes."""
    kinds = {
        "svg": {"metadata": {"Date": None, "Creator": None}},
        "png": {"metadata": {"Software": None}, "dpi": 300},
        "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    }
    out = {}
    with report_style():
        for kind, options in kinds.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            out[kind] = buffer.getvalue()
    return out
