"""Arms of a run: rows of effects with intervals, and the matrix of training context by context of the measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from sublora.report.heatmap import GAP, Box, Panel, draw_cell, draw_empty, draw_scale
from sublora.report.layout import (
    Key,
    draw_legend,
    legend_height,
    name_row,
    name_x_axis,
    new_figure,
    nice_ticks,
    place_axes,
    quiet_frame,
    text_width,
    write,
    write_title,
)
from sublora.report.load import Arm, RunData
from sublora.report.style import BODY, COLUMN, INK, MUTED, PAPER, STUDENT
from sublora.report.words import rank_name, rate, short, signed, tick_labels

_AXES = {
    "variant": "Effect by variant of the students",
    "data": "Effect by rows",
    "condition": "Effect by condition",
    "placement": "Effect by place of the adapter",
    "optimizer": "Effect by optimizer at one held-out loss",
    "context": "Effect by context of the measurement",
}
_LONGEST = 30  # letters of a row's name


def has_matrix(arms: Sequence[Arm]) -> bool:
    """Whether there are several training contexts, which a matrix shows."""
    return len({a.train_context for a in arms}) > 1


def row_axis(arms: Sequence[Arm]) -> str | None:
    """What the rows of effects differ by: the first axis, of variant, rows, condition, placement, optimizer and context, that has several."""
    return next((axis for axis in _AXES if len({getattr(a, axis) for a in arms}) > 1), None)


def arm_rows(data: RunData, trait: str, width: float = COLUMN) -> Figure | None:
    """One row an arm, with its interval; the first row is the reference, whose effect is drawn through all rows.

    One panel for each other combination (training context, context, rank, rate). None where nothing has several values.
    """
    arms = data.arms_of(trait)
    axis = row_axis(arms)
    if axis is None:
        return None
    panels: dict[tuple, list[Arm]] = {}
    for arm in arms:
        rest = tuple(getattr(arm, a) for a in _AXES if a != axis)
        lr = None if axis == "optimizer" else arm.lr  # each optimizer has a rate of its own
        panels.setdefault((arm.train_context, *rest, arm.rank, lr), []).append(arm)
    titles = _panel_titles(panels, axis)
    keys = [
        Key("called", STUDENT, "o"),
        Key("not called", STUDENT, "o", filled=False),
        Key(f"{data.level:.0%} interval", INK, bar=True),
        Key("reference", MUTED, line=(0, (3, 2))),
    ]
    step, below = 0.17, 0.46
    top = 0.4 + legend_height(keys, width)
    heights = [
        step * len(rows) + below + (0.2 if title else 0)
        for rows, title in zip(panels.values(), titles, strict=True)
    ]
    figure = new_figure(width, top + sum(heights))
    write_title(figure, _AXES[axis])
    draw_legend(figure, keys)
    names = {short(getattr(a, axis), _LONGEST) for a in arms}
    left, right = 0.12 + max(text_width(figure, n) for n in names), 0.42
    low, high = _span(arms)
    for rows, title, height in zip(panels.values(), titles, heights, strict=True):
        inside = top + (0.2 if title else 0)
        if title:
            write(figure, 0.05, top, title, fontsize=BODY, fontweight="bold")
        axes = place_axes(figure, left, inside, width - left - right, step * len(rows))
        axes.set_xlim(low, high)
        axes.set_ylim(len(rows), 0)
        quiet_frame(axes, "x")
        ticks = nice_ticks(low, high, 4)
        axes.set_xticks(ticks, tick_labels(ticks))
        axes.axvline(0, color=MUTED, linewidth=0.9)
        reference = rows[0].effect
        axes.plot([reference] * 2, [0, len(rows)], color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        for i, arm in enumerate(rows):
            y = i + 0.5
            name_row(figure, left - 0.07, inside + y * step, short(getattr(arm, axis), _LONGEST))
            ends = {"marker": "|", "markersize": 4, "markeredgewidth": 1}
            axes.plot([arm.low, arm.high], [y, y], color=STUDENT, linewidth=1.1, **ends)
            fill = STUDENT if arm.called else PAPER
            axes.plot(
                [arm.effect],
                [y],
                "o",
                markersize=4.2,
                color=STUDENT,
                markerfacecolor=fill,
                markeredgewidth=1,
            )
            name_row(
                figure, width - 0.05, inside + y * step, signed(arm.effect, 3 if high < 0.1 else 2)
            )
        name_x_axis(
            figure,
            (left + width - right) / 2,
            inside + step * len(rows) + 0.18,
            "P(target): student − control",
        )
        top += height
    return figure


def _panel_titles(panels: dict[tuple, list[Arm]], axis: str) -> list[str]:
    """What tells the panels apart; nothing where there is one."""
    if len(panels) < 2:
        return [""]
    firsts = [rows[0] for rows in panels.values()]
    titles = []
    for arm in firsts:
        parts = []
        if len({a.train_context for a in firsts}) > 1:
            parts.append(f"trained in {arm.train_context}")
        if axis != "context" and len({a.context for a in firsts}) > 1:
            parts.append(f"asked in {arm.context}")
        for other in ("placement", "condition"):
            if axis != other and len({getattr(a, other) for a in firsts}) > 1:
                parts.append(getattr(arm, other))
        if axis != "data" and len({a.data for a in firsts}) > 1:
            parts.append(f"rows {arm.data}")
        if axis == "optimizer" and len({a.rank for a in firsts}) > 1:
            parts.append(rank_name(arm.rank))
        elif axis != "optimizer" and len({(a.rank, a.lr) for a in firsts}) > 1:
            parts.append(f"{rank_name(arm.rank)}, lr {rate(arm.lr)}")
        titles.append(", ".join(parts))
    return titles


def _span(arms: Sequence[Arm]) -> tuple[float, float]:
    low, high = min(0.0, *(a.low for a in arms)), max(0.05, *(a.high for a in arms))
    pad = 0.04 * (high - low)
    return max(low - pad, -1.1), min(high + pad, 1.1)


def context_matrix(data: RunData, trait: str) -> Figure | None:
    """Effects by training context (rows) and context of the measurement (columns), a panel a rank and rate, over the base's P(target)
    in each context. None with one training context."""
    arms = [a for a in data.arms_of(trait) if a.condition == data.plain_condition]
    if not has_matrix(arms):
        return None
    trained = list(dict.fromkeys(a.train_context for a in arms))
    asked = list(dict.fromkeys(a.context for a in arms))
    grids = list(dict.fromkeys((a.placement, a.rank, a.lr) for a in arms))
    probe = new_figure(COLUMN, 3)
    left = 0.16 + max(text_width(probe, short(n, 18)) for n in (*trained, "base, P(target)"))
    step, row = max(0.34, min(0.62, (COLUMN - left - 0.1) / len(asked))), 0.235
    tilted = any(text_width(probe, short(n, 18)) > step - 0.04 for n in asked)
    longest = max(text_width(probe, short(n, 18)) for n in asked)
    head = 0.12 + (longest * math.sin(math.radians(45)) if tilted else 0.08)
    overhang = longest * math.cos(math.radians(45)) - step / 2 if tilted else 0.0
    width = max(left + step * len(asked) + max(0.1, overhang), COLUMN if len(asked) < 6 else 0.0)
    keys = [
        Key("called after correction", INK, marker="o"),
        Key("trained and asked alike", MUTED, line="-"),
    ]
    each = 0.2 + row * len(trained)
    figure = new_figure(
        width, 0.44 + legend_height(keys, width) + head + each * len(grids) + row + 0.5
    )
    write_title(figure, "Training context by context asked")
    draw_legend(figure, keys)
    effects = [a.effect for a in arms]
    panel = Panel(
        title="",
        colours="viridis",
        low=min([0.0, *effects]),
        high=max([0.1, *effects]),
        value=lambda a: a.effect,
        label=lambda v: signed(v, 2),
        scale="student − control",
        marks=True,
    )
    top = 0.34 + legend_height(keys, width)
    write(
        figure, left - 0.07, top + head - 0.02, "trained in", color=MUTED, ha="right", va="bottom"
    )
    for j, name in enumerate(asked):
        x = left + (j + 0.5) * step
        style = (
            {"rotation": 45, "rotation_mode": "anchor", "ha": "left"}
            if tilted
            else {"ha": "center"}
        )
        write(
            figure,
            x - (0.04 if tilted else 0),
            top + head - 0.03,
            short(name, 18),
            va="bottom",
            **style,
        )
    top += head
    for placement, rank, lr in grids:
        if len(grids) > 1:
            name = ", ".join(filter(None, (placement, rank_name(rank), f"lr {rate(lr)}")))
            write(figure, left, top + 0.04, name, color=MUTED)
            top += 0.17
        axes = place_axes(figure, left, top, step * len(asked), row * len(trained))
        axes.set_xlim(0, step * len(asked))
        axes.set_ylim(row * len(trained), 0)
        axes.axis("off")
        found = {
            (a.train_context, a.context): a
            for a in arms
            if (a.placement, a.rank, a.lr) == (placement, rank, lr)
        }
        for i, train in enumerate(trained):
            name_row(figure, left - 0.07, top + (i + 0.5) * row, short(train, 18))
            for j, context in enumerate(asked):
                box = Box(j * step + GAP / 2, i * row + GAP / 2, step - GAP, row - GAP)
                arm = found.get((train, context))
                if arm is None:
                    draw_empty(axes, box)
                    continue
                draw_cell(axes, box, panel, arm.effect, arm.called, arm.coherent)
                if train == context:
                    axes.add_patch(box.patch(facecolor="none", edgecolor=MUTED, linewidth=1.4))
        top += row * len(trained) + 0.03
    name_row(figure, left - 0.07, top + 0.13, "base, P(target)", color=MUTED)
    for j, context in enumerate(asked):
        base = next((a.p_base for a in arms if a.context == context), None)
        if base is not None:
            write(
                figure,
                left + (j + 0.5) * step,
                top + 0.08,
                f"{base:.3f}"[1:],
                color=MUTED,
                ha="center",
            )
    name_x_axis(figure, left + step * len(asked) / 2, top + 0.26, "asked in")
    draw_scale(figure, panel, left, top + 0.44, step * len(asked))
    return figure
