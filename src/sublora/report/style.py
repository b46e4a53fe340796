"""Colours, sizes and type of the figures: our own defaults, whatever the user's matplotlib settings are.

The few colours that depend on the page's theme are fixed sentinels (INK, MUTED, ...), which the page swaps for
CSS variables.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib import font_manager

COLUMN = 3.3  # inches: the width of a column of a paper
SMALL, BODY, TITLE = 7.0, 7.5, 8.5  # points

INK, MUTED, GRID, PAPER = "#1b1f24", "#5c6670", "#dde1e6", "#fefefe"
STUDENT, CONTROL, FULL, TEACHER = "#0072b2", "#d55e00", "#00855f", "#a8508a"
THEME = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    STUDENT: "student",
    CONTROL: "control",
    FULL: "full",
    TEACHER: "teacher",
}
HATCH = "//////"  # of what is not coherent

_FONTS = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")


def _installed_font() -> str:
    installed = set(font_manager.get_font_names())
    return next((name for name in _FONTS if name in installed), "DejaVu Sans")


@contextmanager
def report_style(font: str | None = None) -> Iterator[None]:
    """Our own defaults, so that a user's matplotlibrc cannot change a report."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": "sans-serif",
                "font.sans-serif": [font or _installed_font(), "DejaVu Sans"],
                "font.size": BODY,
                "text.color": INK,
                "text.parse_math": False,
                "axes.edgecolor": MUTED,
                "axes.linewidth": 0.6,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "hatch.linewidth": 0.7,
                "svg.fonttype": "path",
                "svg.hashsalt": "sublora",
                "pdf.fonttype": 42,
                "figure.facecolor": PAPER,
                "savefig.facecolor": PAPER,
            }
        )
        yield
