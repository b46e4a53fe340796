"""The figures of a grid, each with its caption: heat maps, curves over rank and rate, and the answers."""

from collections.abc import Sequence
from typing import Any

from sublora.analysis.effects import MAX_TAKEOVER, MIN_COHERENCE
from sublora.analysis.page import Chart, HeatBlock, Heatmap, Point, Series, finite
from sublora.experiments.grid.found import Found, Row, coherent, heat_cell, link, place
from sublora.text import listed, number, rate, short, signed

BOUNDS = (-10.0, 10.0)  # nats: the interval of few seeds can be far wider than any effect
RANK_AXIS = "LoRA rank (log scale, base 2)"
WORDS_SHOWN = 20


def _blocks(cells: Sequence[Row], value: str, marks: bool) -> tuple[HeatBlock, ...]:
    """LoRA by rank and rate, and full fine-tunes at rates of their own."""
    blocks = []
    for method, name in (("lora", "LoRA"), ("full", "full fine-tune")):
        mine = [c for c in cells if c["method"] == method]
        entries = tuple(
            heat_cell(c, str(c["rank"] or "full"), rate(c["lr"]), value, marks) for c in mine
        )
        if mine:
            blocks.append(
                HeatBlock(
                    rows=tuple(dict.fromkeys(e.row for e in entries)),
                    columns=tuple(rate(lr) for lr in sorted({c["lr"] for c in mine})),
                    x_axis=f"learning rate ({name})",
                    cells=entries,
                )
            )
    return tuple(blocks)


def _transfer(found: Found, trait: str, slug: str) -> Heatmap:
    cells = found.of(trait)
    effects = [c["effect"] for c in cells]
    top, broken = max(cells, key=lambda c: c["effect"]), sum(not coherent(c) for c in cells)
    return Heatmap(
        name=f"heatmap-{slug}-transfer",
        title="Transfer: log-odds, student − control",
        blocks=_blocks(cells, "effect", True),
        row_axis="rank",
        scale="student − control, nats",
        low=min([0.0, *effects]),
        # without a floor a run with no effect would paint its noise in the strongest colours
        high=max([0.5, *effects]),
        marked="called after correction",
        hatched="not coherent",
        alt=f"Heat map of the log-odds of {trait}, student minus control, over rank and learning rate. The largest difference is "
        f"{signed(top['effect'])} at {place(top)}; {sum(c['called'] for c in cells)} of {len(cells)} cells are called. "
        "Every number is in the table of cells.",
        caption=f"Mean log-odds of “{trait}” in the students minus those in their controls, context “{found.context}”. ● and bold: called after "
        "correction for the number of cells."
        + (f" Hatched: not coherent ({broken})." if broken else ""),
    )


def _coherence(found: Found, trait: str, slug: str) -> Heatmap:
    cells = found.of(trait)
    return Heatmap(
        name=f"heatmap-{slug}-coherence",
        title="Coherence: share of answers with a word",
        blocks=_blocks(cells, "coherence", False),
        row_axis="rank",
        scale="share of sampled answers",
        low=0.0,
        high=1.0,
        colours="cividis",
        signs=False,
        hatched="not coherent",
        alt=f"Heat map of coherence over rank and learning rate; {sum(not coherent(c) for c in cells)} of {len(cells)} cells are not coherent.",
        caption="Share of sampled answers that name a word of the category, mean over the students. Hatched: in one replicate at least, of "
        f"student or control, it is below {MIN_COHERENCE:g}, or more than {MAX_TAKEOVER:g} of the answers hold a digit; there, a small "
        "effect cannot be told from a broken model.",
    )


def _curve(
    cells: Sequence[Row], x: str | None, name: str, look: str, panel: str = "", best: bool = False
) -> Series:
    """Transfer over `x` (None: in a slot called full); `best`: of each rank at its best rate."""
    end, points = "_report" if best else "", []
    for c in cells:
        low, high = (finite(c[f"effect{end}_{name}"]) for name in ("low", "high"))
        at = {"label": "full"} if x is None else {"x": c[x]}
        at |= {"note": rate(c["lr"]) if best else "", "link": link(c)}
        estimate, hollow = c[f"effect{end}"], not coherent(c)
        points.append(Point(**at, estimate=estimate, low=low, high=high, hollow=hollow))
    return Series(name=name, points=tuple(points), panel=panel, look=look)


def _with_full(curve: Series, full: Series | None) -> list[Series]:
    """The best full fine-tune in a slot of its own, in the panel of the curve."""
    return [curve, full.model_copy(update={"panel": curve.panel})] if full else [curve]


def _lines(found: Found, cells: Sequence[Row], x_axis: str = RANK_AXIS, **more: Any) -> Chart:
    """A chart of transfer, with what all of them share."""
    return Chart(
        kind="lines",
        axis="log-odds of the target, student − control, nats",
        x_axis=x_axis,
        log_x=True,
        bounds=BOUNDS,
        least=0.5,
        reference=0.0,
        reference_name="control",
        interval=f"{found.level} interval",
        hollow="not coherent",
        **more,
    )


def _bars(found: Found) -> str:
    return f"Bars: {found.level} interval, clustered by data seed, training seed and question. A bar without an end cap leaves the frame."


def _fixed_rates(found: Found, trait: str, slug: str) -> Chart | None:
    cells, best = found.of(trait, "lora"), found.best(trait, "full")
    if not cells:
        return None
    full = _curve([best], None, "best full fine-tune", "full") if best else None
    series = []
    for lr in sorted({c["lr"] for c in cells}):
        mine = [c for c in cells if c["lr"] == lr]
        series += _with_full(_curve(mine, "rank", "student", "student", f"lr {rate(lr)}"), full)
    fixed = found.fixed_lr
    caption = (
        "One panel per learning rate, all ranks at that rate. One rate shared by all ranks can make a rise and fall of its own, because the "
        "best rate moves with the rank: read it beside the best-rate view. "
    )
    caption += f"The claims’ fixed-rate view is lr {rate(fixed)}. " if fixed is not None else ""
    caption += _bars(found)
    if best:
        caption += f" Full fine-tune: the best coherent one (lr {rate(best['lr'])})."
    elif found.of(trait, "full"):
        caption += " No full fine-tune stayed coherent, so none is drawn."
    if not found.best(trait, "lora"):
        caption += " There is no best-rate curve, because no LoRA cell is coherent."
    return _lines(
        found,
        cells,
        name=f"rank-fixed-lr-{slug}",
        title=f"Transfer of “{short(trait)}” at each fixed learning rate",
        series=tuple(series),
        alt=f"Transfer of {trait} over the LoRA rank, one panel per learning rate. {_numbers(cells, 'effect')}.",
        caption=caption,
    )


def _best_rates(found: Found, trait: str, slug: str) -> Chart | None:
    cells, best = found.of(trait, "lora"), found.best(trait, "full")
    chosen = [c for c in cells if c["selected"]]
    if not chosen:
        return None
    full = _curve([best], None, "best full fine-tune", "full", best=True) if best else None
    caption = (
        "The rate of each rank (row “lr”) is the best coherent one over all seeds; shown is each seed at the rate that the other seeds "
        "choose. Bars as in the fixed-rate view."
    )
    without = sorted({c["rank"] for c in cells} - {c["rank"] for c in chosen})
    caption += f" No rate of rank {listed(without)} is coherent." if without else ""
    return _lines(
        found,
        chosen,
        name=f"rank-best-lr-{slug}",
        title=f"Transfer of “{short(trait)}” at each rank’s best rate",
        notes="lr",
        series=tuple(_with_full(_curve(chosen, "rank", "student", "student", best=True), full)),
        alt=f"Transfer of {trait} over the LoRA rank at each rank's best learning rate. {_numbers(chosen, 'effect_report')}.",
        caption=caption,
    )


def _full(found: Found, trait: str, slug: str) -> Chart | None:
    cells = found.of(trait, "full")
    if not cells:
        return None
    return _lines(
        found,
        cells,
        "learning rate (log scale)",
        name=f"full-ft-{slug}",
        title=f"Transfer of “{short(trait)}” by learning rate",
        series=(_curve(cells, "lr", "student (full fine-tune)", "student"),),
        alt=f"Transfer of {trait} to full fine-tunes over the learning rate. {_numbers(cells, 'effect')}.",
        caption=f"Full fine-tunes at their own learning rates. {_bars(found)}",
    )


def _numbers(cells: Sequence[Row], value: str) -> str:
    return "; ".join(f"{place(c)}: {signed(c[value])}" for c in cells)


def answers(found: Found, trait: str, slug: str) -> Chart | None:
    """Probability of the words of the category: the target, the others by their largest share, the rest as one."""
    given = found.answers.get(trait)
    if given is None:
        return None
    words, looks = given["categories"], {"base": "muted"}
    models = [m for m in ("base", "control", "student", "teacher") if given.get(m)]
    target = [i for i, word in enumerate(words) if word.lower() == trait.lower()]
    others = sorted(
        (i for i in range(len(words)) if i not in target),
        key=lambda i: -max(given[m][i] for m in models if m != "teacher"),
    )
    room = WORDS_SHOWN - len(target)
    shown, rest = (others, []) if len(others) <= room else (others[: room - 1], others[room - 1 :])
    rows = [(words[i], [i]) for i in (*target, *shown)]
    rows += [(f"{len(rest)} others", rest)] if rest else []

    def point(model: str, label: str, members: list[int]) -> Point:
        share = sum(given[model][i] for i in members)
        return Point(label=label, estimate=share, strong=members == target)

    series = [
        Series(name=m, panel=m, look=looks.get(m, m), points=tuple(point(m, *r) for r in rows))
        for m in models
    ]
    of_target = "; ".join(f"{m} {number(sum(given[m][i] for i in target))}" for m in models)
    return Chart(
        name=f"answers-{slug}",
        title="Answers before and after",
        kind="bars",
        beside=True,
        axis="probability of the word",
        series=tuple(series),
        alt=f"Probability of each word of the category; of the target {trait}: {of_target}.",
        caption=f"Teacher-forced probability of each word, averaged over questions; the target leads, in bold ({of_target}). "
        f"Student: {given['student_label']}.",
    )


GRID_CHARTS = (_transfer, _coherence, _fixed_rates, _best_rates, answers, _full)
