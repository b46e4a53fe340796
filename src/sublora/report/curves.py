"""P(target) over the LoRA rank, at fixed rates and at each rank's best one, and over the rate of full fine-tunes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sublora.report.layout import (
    draw_legend,
    legend_height,
    name_x_axis,
    new_figure,
    nice_ticks,
    place_axes,
    quiet_frame,
    text_width,
    write,
    write_title,
)
from sublora.report.load import RunData
from sublora.report.points import Curve, base_of, draw_curve, keys_of, limits_of, point_of
from sublora.report.style import BODY, COLUMN, MUTED
from sublora.report.words import p_of_target, rate, tick_labels

_LEFT, _RIGHT = 0.34, 0.06  # inches beside the axes
_RANK_AXIS = "LoRA rank (log scale, base 2)"


class _RankAxis(NamedTuple):
    """A horizontal axis of `width` inches: every rank at its log2, and a slot for the full fine-tune."""

    ranks: list[int]
    slot: float
    limits: tuple[float, float]
    width: float

    @property
    def inch(self) -> float:
        """Inches per doubling of rank."""
        return self.width / (self.limits[1] - self.limits[0])


def _rank_axis(figure: Figure, ranks: list[int], full: bool, width: float) -> _RankAxis:
    first, last = math.log2(ranks[0]), math.log2(ranks[-1])
    pad = max(0.35, 0.06 * (last - first))
    # Far enough beyond the last rank for both names to stand on the axis.
    need = (text_width(figure, "full") + text_width(figure, str(ranks[-1]))) / 2 + 0.07
    gap = max(0.9, need * (last - first + 2 * pad) / (width - need))
    return _RankAxis(ranks, last + gap, (first - pad, last + pad + (gap if full else 0)), width)


def _set_rank_ticks(figure: Figure, axes: Axes, axis: _RankAxis, full: bool) -> None:
    """Ticks at every rank; labels at both ends and at as many between them as fit."""
    ranks = axis.ranks
    placed = [("full", axis.slot)] if full else []
    labels = {}
    for r in dict.fromkeys((ranks[-1], ranks[0], *reversed(ranks))):
        x, need = math.log2(r), text_width(figure, str(r))
        if all(
            abs(x - other) * axis.inch > (need + text_width(figure, text)) / 2 + 0.05
            for text, other in placed
        ):
            placed.append((str(r), x))
            labels[r] = str(r)
    ticks = [math.log2(r) for r in ranks] + ([axis.slot] if full else [])
    axes.set_xticks(ticks, [labels.get(r, "") for r in ranks] + (["full"] if full else []))


def _set_frame(
    axes: Axes,
    across: tuple[float, float],
    upright: tuple[float, float],
    ticks: Sequence[float],
    labelled: bool = True,
) -> None:
    axes.set_xlim(*across)
    axes.set_ylim(*upright)
    quiet_frame(axes, "y")
    axes.set_yticks(ticks, tick_labels(ticks) if labelled else [""] * len(ticks))


def rank_fixed_lr(data: RunData, trait: str, width: float = COLUMN) -> Figure | None:
    """P(target) over the LoRA rank, one small panel per learning rate, on one shared scale."""
    lora = [c for c in data.of(trait, method="lora") if c.p_target is not None]
    if not lora:
        return None
    best = data.best_full(trait)
    rates = sorted({c.lr for c in lora})
    columns = min(len(rates), 2 if width < 5 else 4)
    lines = math.ceil(len(rates) / columns)
    gap, tall = 0.16, 0.92 if columns > 1 else 1.35
    whole = width - _LEFT - _RIGHT
    wide = (whole - gap * (columns - 1)) / columns
    axis = _rank_axis(
        new_figure(width, 3), sorted({c.rank or 0 for c in lora}), best is not None, wide
    )
    full = point_of(data, best, axis.slot) if best else None
    found = [(c.lr, q) for c in lora if (q := point_of(data, c, math.log2(c.rank or 0)))]
    every = Curve([q for _, q in found], full, base_of(lora))

    keys = keys_of(data, every)
    top = 0.5 + legend_height(keys, width)
    figure = new_figure(width, top + lines * (tall + 0.2) + 0.16)
    write_title(figure, f"{p_of_target(data, trait)} at each fixed learning rate")
    draw_legend(figure, keys)
    upright = limits_of(every)
    for k, lr in enumerate(rates):
        row, column = divmod(k, columns)
        x, y = _LEFT + column * (wide + gap), top + row * (tall + 0.2)
        axes = place_axes(figure, x, y, wide, tall)
        _set_frame(axes, axis.limits, upright, nice_ticks(*upright), column == 0)
        _set_rank_ticks(figure, axes, axis, full is not None)
        if k + columns < len(rates):
            axes.set_xticklabels([])
        fixed = data.fixed_lr is not None and math.isclose(lr, data.fixed_lr, rel_tol=1e-6)
        weight = "bold" if fixed else "normal"
        write(figure, x, y - 0.03, f"lr {rate(lr)}", va="bottom", fontsize=BODY, fontweight=weight)
        draw_curve(axes, every._replace(points=[q for own, q in found if own == lr]))
    name_x_axis(figure, _LEFT + whole / 2, top + lines * (tall + 0.2), _RANK_AXIS)
    return figure


def rank_best_lr(
    data: RunData, trait: str, width: float = COLUMN, height: float | None = None
) -> Figure | None:
    """P(target) over the LoRA rank at each rank's own learning rate, chosen on one half of the questions.

    Shown: the other half. None where no cell was selected.
    """
    lora = data.of(trait, method="lora")
    chosen = [c for c in lora if c.selected and c.p_target_report is not None]
    if not chosen:
        return None
    best = data.best_full(trait)
    wide = width - _LEFT - _RIGHT
    probe = new_figure(width, 3)
    axis = _rank_axis(probe, sorted({c.rank or 0 for c in lora}), best is not None, wide)
    full = point_of(data, best, axis.slot, reported=True) if best else None
    points = [q for c in chosen if (q := point_of(data, c, math.log2(c.rank or 0), reported=True))]
    curve = Curve(points, full, base_of(chosen))

    # The chosen rate under each rank: level where they fit, upright where they would touch.
    named = [(math.log2(c.rank or 0), rate(c.lr)) for c in chosen]
    named += [(axis.slot, rate(best.lr))] if full and best else []
    named += [(math.log2(r), "–") for r in axis.ranks if r not in {c.rank for c in chosen}]
    named.sort()
    sizes = [text_width(probe, text) for _, text in named]
    rotated = any(
        (b[0] - a[0]) * axis.inch < (m + n) / 2 + 0.05
        for a, b, m, n in zip(named, named[1:], sizes, sizes[1:], strict=False)
    )
    deep = max(sizes) + 0.04 if rotated else 0.13

    keys = keys_of(data, curve)
    top = 0.4 + legend_height(keys, width)
    height = max(height or 0, top + 1.92 + deep)
    tall = height - top - 0.37 - deep
    figure = new_figure(width, height)
    write_title(figure, f"{p_of_target(data, trait)} at each rank’s best rate")
    draw_legend(figure, keys)
    axes = place_axes(figure, _LEFT, top, wide, tall)
    upright = limits_of(curve)
    _set_frame(axes, axis.limits, upright, nice_ticks(*upright, 5))
    _set_rank_ticks(figure, axes, axis, full is not None)
    draw_curve(axes, curve)
    style = {"rotation": 90} if rotated else {}
    for x, text in named:
        left = _LEFT + (x - axis.limits[0]) * axis.inch
        write(figure, left, top + tall + 0.18, text, ha="center", color=MUTED, **style)
    write(figure, 0.05, top + tall + 0.18, "lr", color=MUTED)
    name_x_axis(figure, _LEFT + wide / 2, top + tall + 0.2 + deep, _RANK_AXIS)
    return figure


def full_ft(data: RunData, trait: str, width: float = COLUMN) -> Figure | None:
    """P(target) over the learning rate of full fine-tunes. None where there are none."""
    cells = [c for c in data.of(trait, method="full") if c.p_target is not None]
    if not cells:
        return None
    points = [q for c in cells if (q := point_of(data, c, math.log10(c.lr)))]
    curve = Curve(points, None, base_of(cells))
    keys = keys_of(data, curve, "student (full fine-tune)")
    wide, tall = width - _LEFT - 0.1, 1.45
    top = 0.4 + legend_height(keys, width)
    figure = new_figure(width, top + tall + 0.4)
    write_title(figure, f"{p_of_target(data, trait)} by learning rate")
    draw_legend(figure, keys)
    axes = place_axes(figure, _LEFT, top, wide, tall)
    first, last = points[0].x, points[-1].x
    pad = max(0.15, 0.07 * (last - first))
    upright = limits_of(curve)
    _set_frame(axes, (first - pad, last + pad), upright, nice_ticks(*upright, 5))
    inch, edge, labels = wide / (last - first + 2 * pad), -math.inf, []
    for q, c in zip(points, cells, strict=True):
        half = text_width(figure, rate(c.lr)) / 2
        fits = q.x * inch - half > edge
        labels.append(rate(c.lr) if fits else "")
        edge = q.x * inch + half + 0.04 if fits else edge
    axes.set_xticks([q.x for q in points], labels)
    draw_curve(axes, curve)
    name_x_axis(figure, _LEFT + wide / 2, top + tall + 0.2, "learning rate (log scale)")
    return figure
