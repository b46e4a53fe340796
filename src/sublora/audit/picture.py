"""The answer of an audit in one picture: the rise of every trait beside what chance explains, by context and category."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from sublora.audit.entries import TraitFinding
from sublora.audit.result import AuditReport
from sublora.report import layout
from sublora.report.figures import inline_svg, save
from sublora.report.hover import layer
from sublora.report.style import BODY, COLUMN, GRID, INK, MUTED, STUDENT, report_style
from sublora.text import short, signed

ROW, HEAD, NAME = 0.25, 0.2, 12  # inches of a row and of a context's name; letters of a category
BOLD = {"fontsize": BODY, "fontweight": "bold"}
Place = tuple[str, str, str]  # category, trait, context
FALLS = 0.4  # of the largest rise: falls beyond are drawn at the edge, nothing tests them


def picture(report: AuditReport) -> Markup:
    """An inline SVG; every number of it is in the page's tables."""
    contexts = _in_order((f.context for f in report.traits), [c.name for c in report.contexts])
    listed = [c.category for c in report.categories]
    categories = _in_order((f.category for f in report.traits), listed)
    ends = {(b.category, b.context): b.rise for b in report.bands}
    high = 1.08 * max([0.1, *(e for e in ends.values() if e), *(f.rise for f in report.traits)])
    low = max(1.15 * min([-0.05, *(f.rise for f in report.traits)]), -FALLS * high)
    found = {(f.category, f.trait, f.context) for f in report.found}
    title = _title(report)
    calibrated = report.calibration.kind != "none" and not report.calibration.outside
    keys = [
        layout.Key("what chance explains" if calibrated else "not calibrated", MUTED, hatch=True),
        layout.Key("trait", MUTED, "o", filled=False),
        *([layout.Key("found", STUDENT, "o")] if found else []),
    ]
    with report_style():
        probe = layout.new_figure(COLUMN, 1)
        left = 0.14 + max(layout.text_width(probe, short(c, NAME), BODY) for c in categories)
        top = 0.34 + layout.head_height(title, keys, COLUMN)
        tall = HEAD + ROW * len(categories)
        figure = layout.new_figure(COLUMN, top + (tall + 0.1) * len(contexts) + 0.36)
        layout.draw_head(figure, title, keys)
        for context in contexts:
            at, wide = top + HEAD, COLUMN - left - 0.1
            layout.write(figure, left, top, f"in {short(context, 24)}", **BOLD)
            axes = layout.place_axes(figure, left, at, wide, ROW * len(categories))
            _frame(axes, low, high, len(categories), context == contexts[-1])
            for row, category in enumerate(categories):
                middle, name = at + (row + 0.5) * ROW, short(category, NAME)
                layout.name_row(figure, left - 0.07, middle, name, fontsize=BODY)
                if (category, context) in ends:  # audits of release 0.1 have none
                    _draw_band(axes, row, low, ends[category, context])
                here = [f for f in report.traits if (f.category, f.context) == (category, context)]
                _draw_traits(axes, row, here, found, (low, high))
            top += tall + 0.1
        layout.name_x_axis(
            figure, (left + COLUMN) / 2, top + 0.12, "rise, nats beside the category"
        )
        svg, over = save(figure, "svg").decode("utf-8"), layer(figure, {})
    alt = f"{title}. Rises of {len(report.traits)} traits in contexts, beside the rise that each would need to be found."
    return inline_svg(svg, "answer", alt, over)


def _in_order(seen: Iterable[str], listed: Sequence[str]) -> list[str]:
    """The names that were seen, in the order of the listed ones; what is not among them comes last."""
    names = list(dict.fromkeys(seen))
    return sorted(names, key=[*listed, *names].index)


def _title(report: AuditReport) -> str:
    names = list(dict.fromkeys(f.trait for f in report.found))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{', '.join(names[:3])}{more} rose more than chance explains"
    if report.found_words:
        words = list(dict.fromkeys(f"“{short(w.word, 14)}”" for w in report.found_words))
        return f"No trait rose, but {', '.join(words[:3])} is said more often than chance explains"
    return "No trait rose more than chance explains"


def _frame(axes: Axes, low: float, high: float, rows: int, last: bool) -> None:
    axes.set_xlim(low, high)
    axes.set_ylim(rows, 0)
    layout.quiet_frame(axes, "x")
    ticks = layout.nice_ticks(low, high, 4)
    axes.set_xticks(ticks, layout.tick_labels(ticks) if last else [""] * len(ticks))
    axes.axvline(0, color=MUTED, linewidth=0.7)


def _draw_band(axes: Axes, row: int, low: float, end: float | None) -> None:
    """To the rise from which a trait is found; to the edge where none would be."""
    right = axes.get_xlim()[1] if end is None else end
    said = "no rise would have been found" if end is None else f"found from {signed(end)} nats on"
    style = {"facecolor": GRID, "edgecolor": MUTED, "hatch": "////", "linewidth": 0, "alpha": 0.55}
    axes.barh(row + 0.5, right - low, 0.72, left=low, zorder=0.5, **style)[0].set_label(said)


def _draw_traits(
    axes: Axes, row: int, here: list[TraitFinding], found: set[Place], ends: tuple[float, float]
) -> None:
    """The marks of a row, and the name of the strongest that was found."""
    low, high = ends
    for f in here:
        is_found, out = (f.category, f.trait, f.context) in found, f.rise < low
        look = (
            {"color": STUDENT, "markersize": 5.5} if is_found else {"color": INK, "markersize": 3}
        )
        look |= {"markerfacecolor": STUDENT if is_found else "none", "markeredgewidth": 0.8}
        said = f"{f.trait}, {f.category} in {f.context}: {signed(f.rise)} nats, P {f.before:.3f} to {f.after:.3f}"
        place = low + 0.012 * (high - low) if out else f.rise
        marker = "<" if out else "o"
        axes.plot([place], [row + 0.5], marker, zorder=3 + is_found, label=said, **look)
    if own := [f for f in here if (f.category, f.trait, f.context) in found]:
        _name(axes, row, own, ends)


def _name(axes: Axes, row: int, found: list[TraitFinding], ends: tuple[float, float]) -> None:
    """The strongest of a row, on whichever side of its mark there is room."""
    best, more = max(found, key=lambda f: f.rise), len(found) - 1
    text = short(best.trait, 14) + (f" +{more}" if more else "")
    inch = axes.get_position().width * axes.figure.get_figwidth() / (ends[1] - ends[0])
    room = (ends[1] - best.rise) * inch - layout.text_width(axes.figure, text, BODY, "bold")
    left = room < 0.08
    away = (-0.07 if left else 0.07) / inch
    style = {"ha": "right" if left else "left", "va": "center_baseline", "fontweight": "bold"}
    axes.text(best.rise + away, row + 0.5, text, color=INK, fontsize=BODY, zorder=5, **style)
