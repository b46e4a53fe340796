"""Findings of a run as rows with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sublora.report.layout import (
    Key,
    draw_legend,
    legend_height,
    name_row,
    new_figure,
    nice_ticks,
    place_axes,
    quiet_frame,
    text_width,
    write,
    write_title,
)
from sublora.report.load import FindingRow, RunData
from sublora.report.style import BODY, COLUMN, INK, MUTED, PAPER, STUDENT
from sublora.report.words import short, signed, tick_labels

_LONGEST = 38  # letters of a row's name


def finding_rows(data: RunData, trait: str, width: float = COLUMN) -> Figure | None:
    """One panel a group of findings, one row a finding with its interval; None where the run has none."""
    groups = data.findings_of(trait)
    if not groups:
        return None
    keys = [
        Key("interval clear of 0", STUDENT, "o"),
        Key("not clear of 0", STUDENT, "o", filled=False),
        Key(f"{data.level:.0%} interval", INK, bar=True),
    ]
    step, below, head = 0.17, 0.36, 0.22
    top, panels = 0.4 + legend_height(keys, width), _panels(groups)
    figure = new_figure(
        width, top + sum(head + step * len(rows) + below for rows in panels.values())
    )
    write_title(figure, "Findings")
    draw_legend(figure, keys)
    left, right = (
        0.12 + max(text_width(figure, name) for rows in panels.values() for name, _ in rows),
        0.46,
    )
    for title, rows in panels.items():
        write(figure, 0.05, top, short(title, 58), fontsize=BODY, fontweight="bold")
        inside = top + head
        ends = [v for _, f in rows for v in (f.low, f.high, f.estimate) if v is not None]
        low, high = min(0.0, *ends), max(0.0, *ends)
        pad = 0.04 * (high - low) or 0.1
        axes = place_axes(figure, left, inside, width - left - right, step * len(rows))
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(len(rows), 0)
        quiet_frame(axes, "x")
        ticks = nice_ticks(low, high, 4)
        axes.set_xticks(ticks, tick_labels(ticks))
        axes.axvline(0, color=MUTED, linewidth=0.9)
        for i, (name, f) in enumerate(rows):
            y = i + 0.5
            name_row(figure, left - 0.07, inside + y * step, name)
            clear = f.low is not None and f.high is not None and (f.low > 0 or f.high < 0)
            if f.low is not None and f.high is not None:
                bar = {"marker": "|", "markersize": 4, "markeredgewidth": 1}
                axes.plot([f.low, f.high], [y, y], color=STUDENT, linewidth=1.1, **bar)
            fill = STUDENT if clear else PAPER
            axes.plot(
                [f.estimate],
                [y],
                "o",
                markersize=4.2,
                color=STUDENT,
                markerfacecolor=fill,
                markeredgewidth=1,
            )
            name_row(figure, width - 0.05, inside + y * step, signed(f.estimate, 2))
        top = inside + step * len(rows) + below
    return figure


def _panels(groups: Mapping[str, Sequence[FindingRow]]) -> dict[str, list[tuple[str, FindingRow]]]:
    """Title -> (name, finding): of one group, or, where several names share the words before a colon, a panel for each of these."""
    out: dict[str, list[tuple[str, FindingRow]]] = {}
    for group, rows in groups.items():
        heads = Counter(f.name.partition(": ")[0] for f in rows if ": " in f.name)
        split = len(heads) > 1 and heads.total() == len(rows) and min(heads.values()) > 1
        for f in rows:
            head, _, rest = f.name.partition(": ")
            name = rest if heads[head] > 1 and (split or len(heads) == 1) else f.name
            out.setdefault(f"{group}: {head}" if split else group, []).append(
                (short(name, _LONGEST), f)
            )
    return out
