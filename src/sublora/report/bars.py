"""Rows of bars and intervals: the answers before and after training, and the effect of each trait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
from sublora.report.load import Answers, Cell, RunData
from sublora.report.style import BODY, COLUMN, CONTROL, FULL, INK, MUTED, SMALL, STUDENT, TEACHER
from sublora.report.words import share, short, tick_labels, trait_target


class _Word(NamedTuple):
    """A row of the answers: one word, or the rest of the words summed into one."""

    label: str
    indices: list[int]
    is_target: bool

    def share_of(self, values: Sequence[float]) -> float:
        return sum(values[i] for i in self.indices)


def _top_words(answers: Answers, target: str, keep: int) -> list[_Word]:
    """The target, then the words by their largest share, the rest summed into one."""
    present = [s for s in (answers.base, answers.control, answers.student) if s]
    order = sorted(
        range(len(answers.words)), key=lambda i: -max((s[i] for s in present), default=0.0)
    )
    first = [i for i in order if answers.words[i].lower() == target.lower()]
    rest = [i for i in order if i not in first]
    shown = rest if len(order) <= keep else rest[: keep - 1 - len(first)]
    other = rest[len(shown) :]
    rows = [
        _Word(answers.words[i], [i], k == 0 and bool(first)) for k, i in enumerate(first + shown)
    ]
    return rows + ([_Word(f"{len(other)} others", other, False)] if other else [])


def _draw_answers(
    axes: Axes, rows: Sequence[_Word], values: Sequence[float], colour: str, end: float
) -> None:
    """One model's bars, each with its number but the target's, which stands above the column."""
    axes.set_xlim(0, end)
    axes.set_ylim(len(rows), 0)
    quiet_frame(axes, "x")
    axes.set_xticks([0, end / 2, end], ["0", "", tick_labels([end])[0]])
    axes.plot([0, 0], [0, len(rows)], color=MUTED, linewidth=0.8, clip_on=False)
    for i, word in enumerate(rows):
        value, middle = word.share_of(values), i + 0.5
        alpha = 1.0 if word.is_target else 0.5
        axes.barh(middle, value, height=0.72, color=colour, alpha=alpha, linewidth=0)
        if not word.is_target and 0.005 <= value < 0.75 * end:
            x = value + 0.03 * end
            axes.text(x, middle, share(value), va="center_baseline", color=MUTED, fontsize=SMALL)


def answer_bars(data: RunData, trait: str, width: float = COLUMN, keep: int = 20) -> Figure | None:
    """Probability of each word of the category by base, control, student and teacher; the target leads."""
    answers = data.answers.get(trait)
    if answers is None:
        return None
    models = (
        ("base", MUTED, answers.base),
        ("control", CONTROL, answers.control),
        ("student", STUDENT, answers.student),
        ("teacher", TEACHER, answers.teacher),
    )
    series = [(name, colour, values) for name, colour, values in models if values]
    if not series:
        return None
    target = trait_target(data, trait)
    rows = _top_words(answers, target, keep)
    step, top = 0.142, 0.62
    figure = new_figure(width, top + step * len(rows) + 0.36)
    write_title(figure, "Answers before and after")
    left = 0.22 + max(text_width(figure, short(word.label), SMALL, "bold") for word in rows)
    right, gap = 0.12, 0.14
    wide = (width - left - right - gap * (len(series) - 1)) / len(series)
    longest = 0.0
    for i, word in enumerate(rows):
        # The target's number stands above its column, every other one needs room beside its bar.
        largest = max(word.share_of(values) for _, _, values in series)
        longest = max(longest, largest if word.is_target else largest / 0.7)
        middle = top + (i + 0.5) * step
        name_row(
            figure,
            left - 0.05,
            middle,
            short(word.label),
            fontweight="bold" if word.is_target else "normal",
        )
        if word.is_target:
            w, h = figure.get_size_inches()
            arrow = {"marker": ">", "markersize": 4, "color": INK, "markeredgewidth": 0}
            figure.add_artist(Line2D([0.1 / w], [1 - middle / h], **arrow))
    end = min(1.0, math.ceil(longest * 10 + 1e-9) / 10)
    for k, (name, colour, values) in enumerate(series):
        x = left + k * (wide + gap)
        axes = place_axes(figure, x, top, wide, step * len(rows))
        _draw_answers(axes, rows, values, colour, end)
        write(figure, x, top - 0.18, name, va="bottom", fontweight="bold", fontsize=BODY)
        if rows[0].is_target:
            value = rows[0].share_of(values)
            text = f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
            write(figure, x, top - 0.055, text, va="bottom", color=INK)
    centre, below = left + (width - left - right) / 2, top + step * len(rows) + 0.2
    name_x_axis(figure, centre, below, f"probability of the word (number: P(“{short(target)}”))")
    return figure


def best_lora(data: RunData, trait: str) -> Cell | None:
    """Of the cells selected per rank, the best on the `select` half; its `report` half had no part in it."""
    chosen = [
        c for c in data.of(trait, method="lora") if c.selected and c.effect_report is not None
    ]
    return max(chosen, key=lambda c: c.p_target_select or 0.0, default=None)


def _reported_full(data: RunData, trait: str) -> Cell | None:
    best = data.best_full(trait)
    return best if best and best.effect_report is not None else None


def _draw_effect(axes: Axes, cell: Cell, y: float, colour: str, marker: str) -> None:
    low, high = cell.effect_report_low, cell.effect_report_high
    if low is not None and high is not None:
        ends = {"marker": "|", "markersize": 4.5, "markeredgewidth": 1.1}
        axes.plot([low, high], [y, y], color=colour, linewidth=1.2, **ends)
    axes.plot(
        [cell.effect_report], [y], color=colour, marker=marker, markersize=4.4, linestyle="none"
    )


def traits_overview(data: RunData, width: float = COLUMN) -> Figure | None:
    """One row per trait: best LoRA cell and best full fine-tune, on the half not used to choose them."""
    found = [(t.name, best_lora(data, t.name), _reported_full(data, t.name)) for t in data.traits]
    found = [(name, lora, full) for name, lora, full in found if lora or full]
    if not found:
        return None
    any_lora, any_full = any(lora for _, lora, _ in found), any(full for _, _, full in found)
    keys = [Key("best LoRA", STUDENT, "o")] if any_lora else []
    keys += [Key("best full fine-tune", FULL, "s")] if any_full else []
    keys += [Key(f"{data.level:.0%} interval", INK, bar=True)]
    top = 0.43 + legend_height(keys, width)
    step = 0.36 if any_lora and any_full else 0.26
    figure = new_figure(width, top + step * len(found) + 0.4)
    write_title(figure, "Effect per trait")
    draw_legend(figure, keys)
    left = 0.12 + max(text_width(figure, short(name), BODY) for name, _, _ in found)
    wide = width - left - 0.1
    axes = place_axes(figure, left, top, wide, step * len(found))
    cells = [cell for _, *pair in found for cell in pair if cell]
    triples = [(c.effect_report, c.effect_report_low, c.effect_report_high) for c in cells]
    ends = [v for triple in triples for v in triple if v is not None]
    low, high = min([0.0, *ends]), max([0.05, *ends])
    pad = 0.05 * (high - low)
    axes.set_xlim(max(low - pad, -1.1), min(high + pad, 1.1))
    axes.set_ylim(len(found), 0)
    quiet_frame(axes, "x")
    ticks = nice_ticks(*axes.get_xlim(), 5)
    axes.set_xticks(ticks, tick_labels(ticks))
    axes.axvline(0, color=MUTED, linewidth=0.9)
    for i, (name, lora, full) in enumerate(found):
        y = i + 0.5
        name_row(figure, left - 0.07, top + y * step, short(name), fontsize=BODY)
        apart = 0.17 if lora and full else 0.0
        if lora:
            _draw_effect(axes, lora, y - apart, STUDENT, "o")
        if full:
            _draw_effect(axes, full, y + apart, FULL, "s")
    below = top + step * len(found) + 0.2
    name_x_axis(figure, left + wide / 2, below, "P(target): student − control, reported half")
    return figure
