"""One self-contained HTML page for a run, with its figures beside it as SVG, PNG and PDF."""

from __future__ import annotations

import html
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from sublora.errors import SubloraError
from sublora.findings import ACROSS
from sublora.report import figures
from sublora.report.load import Arm, Cell, RunData, load_run
from sublora.report.words import rank_name

MAX_TOKENS = 400


def build_report(run_dir: Path) -> Path:
    """Write report.html and figures/*.svg|png|pdf of a run folder; return the path of the page.

    The same folder gives the same bytes. Each file is replaced in one step, so nobody reads half a page.
    Raises SubloraError where the folder is no run, its tables cannot be read, or the disk takes no more.
    """
    run_dir = Path(run_dir)
    data = load_run(run_dir)
    try:
        (run_dir / "figures").mkdir(exist_ok=True)
        page = _render(data, partial(write_figure, run_dir / "figures"))
        return replace_file(run_dir / "report.html", page.encode("utf-8"))
    except OSError as error:
        raise SubloraError(
            f"The report of {run_dir} could not be written ({error.strerror or error}): "
            "free some room or check the folder's permissions, then run `sublora report` again."
        ) from error


def replace_file(path: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_figure(folder: Path, name: str, figure: Figure) -> str:
    """Write one figure in its three forms; return the SVG's text."""
    forms = figures.save(figure)
    for kind, content in forms.items():
        replace_file(folder / f"{name}.{kind}", content)
    return forms["svg"].decode("utf-8")


# Figures in the page


def inline_svg(svg: str, prefix: str, label: str) -> Markup:
    """An SVG file as part of a page: own ids, the page's theme colours, a label for those who cannot see it.

    Matplotlib's SVGs share ids and carry a style rule for every element of the document; two of them in one
    page would clash, so ids get a prefix and the rule is left to the page's own style sheet.
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
    for colour, name in figures.THEME.items():
        svg = svg.replace(colour, f"var(--fig-{name})")
    head = re.match(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="([^"]*)"', head.group()) if head else None
    if head is None or box is None:
        raise ValueError("not an SVG with a viewBox")
    opening = (
        f'<svg class="fig" viewBox="{box.group(1)}" role="img" aria-label="{html.escape(label)}">'
    )
    body = svg[head.end() :].replace("xlink:href", "href")
    return Markup(opening + re.sub(r"\n\s*", "\n", body))


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """File names for traits: letters, digits and dashes, and no two alike."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "trait"
        numbered = (f"{plain}-{k}" for k in count(2))
        taken = set(found.values())
        found[name] = next(slug for slug in chain([plain], numbered) if slug not in taken)
    return found


# Words and numbers


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return ("+" if round(value, digits) > 0 else "") + _number(value, digits)


def _interval(low: float | None, high: float | None, digits: int = 3) -> str:
    return (
        "" if low is None or high is None else f"[{_signed(low, digits)}, {_signed(high, digits)}]"
    )


def _whole(text: str) -> Markup:
    """Text as HTML in which a learning rate does not break at its hyphen."""
    rates = re.compile(r"\b(?:lr )?[0-9.]+e-[0-9]+")
    return Markup(rates.sub(r'<span class="whole">\g<0></span>', html.escape(text)))


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _place(cell: Cell) -> str:
    method = "full fine-tune" if cell.method == "full" else f"rank {cell.rank}"
    return f"{method}, lr {figures.rate(cell.lr)}"


def _stat(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


# What the page says


def _largest(data: RunData) -> Cell | None:
    """The largest called effect among coherent cells under the training context."""
    called = [c for t in data.traits for c in data.of(t.name) if c.called and c.effect is not None]
    return max((c for c in called if data.coherent(c)), key=lambda c: c.effect or 0.0, default=None)


def _headline(data: RunData) -> list[dict[str, str]]:
    cells = [c for t in data.traits for c in data.of(t.name)]
    several = len(data.traits) > 1
    tested = [c for c in cells if c.effect is not None]
    if data.arms:
        return [*_arm_tiles(data), _control_tile(data)]

    def where(cell: Cell) -> str:
        return (f"{cell.trait}: " if several else "") + _place(cell)

    def effect(cell: Cell) -> dict[str, str]:
        return {
            "value": _signed(cell.shift, 2),
            "interval": _interval(cell.effect_low, cell.effect_high, 2),
            "note": f"{where(cell)}: P(target) {_number(cell.p_target)}, control {_number(cell.p_control)}",
        }

    tiles = []
    best = _largest(data)
    if best is not None:
        tiles.append({"name": "Largest called effect", **effect(best)})
        tiles[-1]["note"] += (
            f". The largest of {len(tested)} cells, so it reads high." if len(tested) > 1 else "."
        )
    elif tested:
        tiles.append(
            {
                "name": "Largest called effect",
                "value": "none",
                "interval": "",
                "note": "No coherent cell is called after correction.",
            }
        )
    if tested:
        called = [c for c in tested if c.called]
        broken = sum(not data.coherent(c) for c in called)
        note = "Student against control, corrected for the number of cells."
        if broken:
            note += f" {broken} of those called {'is' if broken == 1 else 'are'} not coherent."
        if several:
            hit = len({c.trait for c in called})
            note += f" Traits with a called cell: {hit} of {len(data.traits)}."
        tiles.append(
            {
                "name": "Cells called",
                "value": f"{len(called)} of {len(tested)}",
                "interval": "",
                "note": note,
            }
        )
    else:
        tiles.append(
            {
                "name": "Cells called",
                "value": "not tested",
                "interval": "",
                "note": "No control was trained: the page shows student − base, which no control checks.",
            }
        )
    full = [c for c in cells if c.method == "full"]
    chosen = [c for t in data.traits if (c := data.best_full(t.name)) and c.shift is not None]
    if chosen:
        top = max(chosen, key=lambda c: c.shift or 0.0)
        tile = {"name": "Best full fine-tune", **effect(top)}
        tile["note"] += ", called." if top.called else ", not called."
        tiles.append(tile)
    else:
        note = "No full fine-tune stayed coherent." if full else "This run has no full fine-tune."
        tiles.append(
            {
                "name": "Best full fine-tune",
                "value": "none" if full else "not run",
                "interval": "",
                "note": note,
            }
        )
    tiles.append(_control_tile(data))
    return tiles


def _arm_tiles(data: RunData) -> list[dict[str, str]]:
    """The reference, the arm that is farthest from it, and how many arms are called."""
    several = len(data.traits) > 1

    def name(arm: Arm) -> str:
        rank = rank_name(arm.rank) if len({a.rank for a in data.arms}) > 1 else ""
        place = (
            f"trained in {arm.train_context}, asked in {arm.context}"
            if len({a.context for a in data.arms}) > 1
            else ""
        )
        rows = f"rows {arm.data}" if len({a.data for a in data.arms}) > 1 else ""
        gate = "plain adapter" if arm.condition == data.plain_condition else arm.condition
        names = (
            arm.trait if several else "",
            rows,
            arm.variant,
            arm.placement,
            arm.optimizer,
            gate,
            place,
            rank,
        )
        return ", ".join(filter(None, names))

    def tile(title: str, arm: Arm) -> dict[str, str]:
        note = f"{name(arm)}: P(target) {_number(arm.p_target)}, control {_number(arm.p_control)}."
        return {
            "name": title,
            "value": _signed(arm.effect, 2),
            "interval": _interval(arm.low, arm.high, 2),
            "note": note[:1].upper() + note[1:],
        }

    first = data.arms[0]
    apart = max(
        (a for a in data.arms if a.trait == first.trait), key=lambda a: abs(a.effect - first.effect)
    )
    called = sum(a.called for a in data.arms)
    tiles = [tile("Reference arm", first), tile("Arm farthest from it", apart)]
    note = "Student against control under the same conditions, corrected for the number of arms of a trait."
    return [
        *tiles,
        {
            "name": "Arms called",
            "value": f"{called} of {len(data.arms)}",
            "interval": "",
            "note": note,
        },
    ]


def _control_tile(data: RunData) -> dict[str, str]:
    """Mean over control students with their range; the base with its own interval beside it."""
    here = [r for r in data.results if r.get("context") == data.training_context]
    controls = [
        float(r["p_target"]) for r in here if r.get("kind") == "control" and r.get("p_target")
    ]
    means = [c.p_control for t in data.traits for c in data.of(t.name) if c.p_control is not None]
    bases = [r for r in here if r.get("kind") == "base" and r.get("p_target")]
    note = ""
    if bases:
        first = bases[0]
        low, high = first.get("p_target_low"), first.get("p_target_high")
        span = f" [{float(low):.3f}, {float(high):.3f}]" if low and high else ""
        note = "Base: " + (f"{first.get('trait')} " if len(data.traits) > 1 else "")
        note += f"P(target) {float(first['p_target']):.3f}{span}."
    if not means:
        return {"name": "Control", "value": "not run", "interval": "", "note": note}
    tile = {
        "name": "Control, mean P(target)",
        "value": f"{sum(means) / len(means):.3f}",
        "interval": "",
        "note": note,
    }
    if controls:
        tile["interval"] = f"range {min(controls):.3f} to {max(controls):.3f}"
        tile["note"] = f"{len(controls)} control measurements. {note}".strip()
    return tile


def _cell_row(data: RunData, cell: Cell) -> dict[str, Any]:
    return {
        "context": cell.context,
        "method": "full" if cell.method == "full" else "LoRA",
        "rank": "–" if cell.rank is None else str(cell.rank),
        "lr": figures.rate(cell.lr),
        "p_target": _number(cell.p_target),
        "p_control": _number(cell.p_control),
        "p_base": _number(cell.p_base),
        "effect": _signed(cell.effect),
        "interval": _interval(cell.effect_low, cell.effect_high),
        "p_corrected": _p_value(cell.p_corrected),
        "called": cell.called,
        "selected": cell.selected,
        "report": _signed(cell.effect_report),
        "report_interval": _interval(cell.effect_report_low, cell.effect_report_high),
        "whole_word": _number(cell.rate_whole_word),
        "coherence": _number(cell.coherence, 2),
        "takeover": _number(cell.number_takeover, 2),
        "coherent": data.coherent(cell),
        "heldout": _number(cell.heldout_loss),
        "train": _number(cell.train_loss),
        "n": " × ".join(
            "–" if n is None else str(n)
            for n in (cell.n_data_seeds, cell.n_train_seeds, cell.n_questions)
        ),
    }


def _context_table(data: RunData, trait: str) -> dict[str, Any] | None:
    """Effects of every cell, one column per context; None where there is only the training context."""
    names = [
        c
        for c in data.contexts
        if any(cell.context == c and cell.trait == trait for cell in data.cells)
    ]
    if len(names) < 2:
        return None
    names.sort(key=lambda c: c != data.training_context)
    by = {(c.context, c.method, c.rank, c.lr): c for c in data.cells if c.trait == trait}
    keys = list(
        dict.fromkeys(
            k[1:]
            for name in names
            for k in [(c.context, c.method, c.rank, c.lr) for c in data.of(trait, name)]
        )
    )
    rows = []
    for key in keys:
        found = [by.get((name, *key)) for name in names]
        first = next(c for c in found if c)
        rows.append(
            {
                "place": _place(first),
                "values": [
                    {
                        "effect": _signed(c.shift) if c else "–",
                        "interval": _interval(c.effect_low, c.effect_high) if c else "",
                        "called": bool(c and c.called),
                        "coherent": c is None or data.coherent(c),
                    }
                    for c in found
                ],
            }
        )
    return {"names": names, "rows": rows}


def _rejects(data: RunData) -> dict[str, Any]:
    sets = data.run.get("datasets") or []
    reasons = list(dict.fromkeys(reason for d in sets for reason in (d.get("rejects") or {})))
    rows = [
        {
            **d,
            "counts": [(d.get("rejects") or {}).get(r, 0) for r in reasons],
            "total": sum((d.get("rejects") or {}).values()),
        }
        for d in sets
    ]
    return {"reasons": reasons, "rows": rows}


def _example(entry: dict[str, Any] | None) -> dict[str, Any]:
    """A rendered text with its tokens paired to their ids where both are known."""
    entry = entry or {}
    ids, tokens = list(entry.get("ids") or []), list(entry.get("tokens") or [])
    pairs = (
        list(zip(tokens, ids, strict=True)) if len(tokens) == len(ids) else [("", i) for i in ids]
    )
    return {
        "text": entry.get("text") or "",
        "pairs": [(_visible(t), i) for t, i in pairs[:MAX_TOKENS]],
        "more": max(0, len(pairs) - MAX_TOKENS),
    }


def _visible(token: Any) -> str:
    return str(token).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


MARKS = {"supported": "✓", "refuted": "✗", "inconclusive": "≈", "not run": "–"}


def verdict_rows(verdicts: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The verdicts as the page shows them; None where none has been reached."""
    if verdicts is None:
        return None
    rows = []
    for v in verdicts:
        verdict = str(v.get("verdict", "not run"))
        rows.append(
            {
                **{
                    key: v.get(key) or ""
                    for key in ("id", "statement", "source", "test", "view", "trait", "reason")
                },
                "verdict": verdict,
                "mark": MARKS.get(verdict, "?"),
                "kind": verdict.replace(" ", "-"),
                "threshold": "; ".join(
                    f"{k} = {_stat(x)}" for k, x in (v.get("threshold") or {}).items()
                ),
                "statistic": "; ".join(
                    f"{k} = {_stat(x)}" for k, x in (v.get("statistic") or {}).items()
                ),
                "n": "; ".join(f"{k.replace('_', ' ')} {x}" for k, x in (v.get("n") or {}).items()),
            }
        )
    return rows


# Arms and tokens


def _arm_plates(
    data: RunData, trait: str
) -> list[tuple[str, Callable[[], Figure | None], str, str]]:
    arms = data.arms_of(trait)
    if not arms:
        return []
    matrix, axis = figures.has_matrix(arms), figures.row_axis(arms)
    numbers = f"Intervals: {data.level:.0%}, clustered by data seed, training seed and question; the numbers stand in the table of arms."
    called = f"{sum(a.called for a in arms)} of {len(arms)} arms are called"
    shown = []
    if matrix:
        label = f"Matrix of effects on P({figures.trait_target(data, trait)}) by training context and context asked; {called}."
        caption = (
            "Student − control twin, both trained in the row’s context and asked in the column’s. ● called after correction over all "
            "arms. Below: the base in each context. " + numbers
        )
        shown.append(("contexts-{}", partial(figures.context_matrix, data, trait), label, caption))
    if axis is not None and not (matrix and axis == "context"):
        label = f"Effects on P({figures.trait_target(data, trait)}) by {axis}, with intervals; {called}."
        if axis == "condition":
            caption = "Student − control twin under the same gate. The first row, and the dashed line, is the plain adapter. "
        elif axis == "data":
            caption = (
                "Student − control twin; where rows are transformed or written on another model, the twin’s are as well. The first row, and "
                "the dashed line, is the rows as written. "
            )
        elif axis == "placement":
            caption = "Student − control twin with the adapter in the same place. The first row is the reference. "
        elif axis == "variant":
            caption = "Student − control twin of the same variant. The first row, and the dashed line, is the reference. "
        elif axis == "optimizer":
            caption = (
                "Student − control twin with the same optimizer, each optimizer at the rate that brings it to the held-out loss of the "
                "first row, interpolated between the two rates around it; the table says where none does. "
            )
        else:
            caption = "Student − control twin in the same context. The first row is the reference. "
        shown.append(("arms-{}", partial(figures.arm_rows, data, trait), label, caption + numbers))
    return shown


def _finding_plates(
    data: RunData, trait: str
) -> list[tuple[str, Callable[[], Figure | None], str, str]]:
    groups = data.findings_of(trait)
    if not groups:
        return []
    label = f"{sum(map(len, groups.values()))} findings with intervals: {'; '.join(groups)}."
    caption = (
        f"What the run found besides transfer, mean with its {data.level:.0%} interval over replicates, or over questions where there is "
        "the one base only. Nothing here is corrected; the numbers stand in the table of findings."
    )
    return [("findings-{}", partial(figures.finding_rows, data, trait), label, caption)]


def _finding_table(data: RunData, trait: str) -> list[dict[str, str]]:
    return [
        {
            "group": f.group,
            "name": f.name,
            "estimate": _signed(f.estimate),
            "interval": _interval(f.low, f.high) or "unknown",
            "n": " × ".join(map(str, f.n)),
        }
        for rows in data.findings_of(trait).values()
        for f in rows
    ]


def _arm_table(data: RunData, trait: str) -> dict[str, Any] | None:
    """All arms; columns that have one value only are left out."""
    arms = data.arms_of(trait)
    if not arms:
        return None
    axes = {
        "data": "rows",
        "train_context": "trained in",
        "context": "asked in",
        "condition": "condition",
        "placement": "adapter",
        "optimizer": "optimizer",
        "variant": "variant",
    }
    names = {a: title for a, title in axes.items() if len({getattr(arm, a) for arm in arms}) > 1}
    if len({(a.rank, a.lr) for a in arms}) > 1:
        names |= {"rank": "rank", "lr": "lr"}
    reference = arms[0].effect
    rows = [
        {
            "names": [f"{a.lr:.2g}" if n == "lr" else str(getattr(a, n)) for n in names],
            "heldout": _number(a.heldout_loss, 4) + ("" if a.matched else " ‡"),
            "p_target": _number(a.p_target),
            "p_control": _number(a.p_control),
            "p_base": _number(a.p_base),
            "effect": _signed(a.effect),
            "interval": _interval(a.low, a.high),
            "share": _number(a.effect / reference, 2) if reference > 0.02 else "–",
            "p": _p_value(a.p_corrected),
            "called": a.called,
            "coherence": _number(a.coherence, 2),
            "coherent": a.coherent,
            "n": " × ".join(map(str, a.n)),
        }
        for a in arms
    ]
    return {
        "axes": list(names.values()),
        "rows": rows,
        "matched": len({a.optimizer for a in arms}) > 1,
    }


def _sweep_table(data: RunData, trait: str) -> dict[str, Any] | None:
    """Every optimizer at every rate, and how far it moved each kind of module."""
    swept = [s for s in data.sweep if s.trait == trait]
    if not swept:
        return None
    kinds = list(dict.fromkeys(kind for s in swept for kind in s.moved))
    rows = [
        {
            "optimizer": s.optimizer,
            "ran": s.ran,
            "rank": s.rank,
            "lr": figures.rate(s.lr),
            "heldout": _number(s.heldout_loss, 4),
            "effect": _signed(s.effect),
            "interval": _interval(s.low, s.high),
            "coherence": _number(s.coherence, 2),
            "diverged": f"{s.diverged} of {s.students}" if s.diverged else "none",
            "moved": [_number(s.moved.get(kind)) for kind in kinds],
        }
        for s in swept
    ]
    return {"kinds": kinds, "rows": rows}


def _token_maps(data: RunData, trait: str) -> list[dict[str, Any]]:
    """The prompts of a trait as coloured tokens, one strip for each view, and as a table."""
    maps = []
    for prompt in data.tokens.get(trait, ()):
        together = [a - b for a, b in zip(prompt.left_out, prompt.alone, strict=True)]
        views = (("left out", prompt.left_out), ("alone", prompt.alone), ("interaction", together))
        largest = max([1e-9, *(abs(v) for _, values in views for v in values)])
        tokens = [
            (_visible(p.strip(" ")) or "␣", c)
            for p, c in zip(prompt.pieces, prompt.classes, strict=True)
        ]
        strips = []
        for name, values in views:
            strips.append(
                {
                    "name": name,
                    "sum": _signed(sum(values), 2),
                    "tokens": [
                        {
                            "text": text,
                            "kind": kind,
                            "value": _signed(value),
                            "sign": "up" if value >= 0 else "down",
                            "weight": f"{0.5 * abs(value) / largest:.3f}",
                            "breaks": "⏎" in text,
                        }
                        for (text, kind), value in zip(tokens, values, strict=True)
                    ],
                }
            )
        rows = [
            {"text": text, "kind": kind, "values": [_signed(v) for v in values]}
            for (text, kind), *values in zip(tokens, *(values for _, values in views), strict=True)
        ]
        by_class: dict[str, list[float]] = {}
        for kind, *values in zip(prompt.classes, *(values for _, values in views), strict=True):
            sums = by_class.setdefault(kind, [0.0, 0.0, 0.0])
            by_class[kind] = [s + v for s, v in zip(sums, values, strict=True)]
        maps.append(
            {
                "question": prompt.question,
                "strips": strips,
                "rows": rows,
                "classes": [
                    (kind, [_signed(v, 2) for v in sums]) for kind, sums in by_class.items()
                ],
                "effect": _signed(prompt.effect, 2),
                "replicates": prompt.replicates,
            }
        )
    return maps


# The figures of one trait, with their captions


def _plates(data: RunData, trait: str) -> list[tuple[str, Callable[[], Figure | None], str, str]]:
    """(file stem, drawing, alternative text, caption) of each figure that the page shows for a trait."""
    cells = data.of(trait)
    lora = [c for c in cells if c.method == "lora"]
    shifts = [c for c in cells if c.shift is not None]
    top = max(shifts, key=lambda c: c.shift or 0.0, default=None)
    tested = any(c.effect is not None for c in cells)
    against = "control" if tested else "base"
    target = figures.trait_target(data, trait)
    context = data.training_context
    level = f"{data.level:.0%}"

    calls = (
        f"{sum(c.called for c in cells)} of {len(cells)} cells are called"
        if tested
        else "no cell was tested"
    )
    peak = f" The largest difference is {_signed(top.shift)} at {_place(top)};" if top else ""
    broken = sum(not data.coherent(c) for c in cells)
    best = data.best_full(trait)
    bars = (
        f"Bars: {level} clustered interval of student − control, drawn from the control’s mean, so a bar "
        "that stays clear of its control marks an interval clear of zero. A bar without an end cap leaves "
        "the frame."
        if tested
        else "No control was trained, so there are no intervals of a difference."
    )
    fixed = "Bold: the rate of the claims’ fixed-rate view. " if data.fixed_lr is not None else ""
    again = "Bars as in the fixed-rate view." if tested else ""
    full_note = ""
    if any(c.method == "full" for c in cells):
        full_note = (
            f" Full fine-tune: the coherent one best on the choosing half (lr {figures.rate(best.lr)})."
            if best
            else " No full fine-tune stayed coherent, so none is drawn."
        )
    curve = "; ".join(
        f"rank {c.rank}, lr {figures.rate(c.lr)}: {_number(c.p_target)}" for c in lora
    )
    chosen = [c for c in lora if c.selected]
    picked = "; ".join(
        f"rank {c.rank}, lr {figures.rate(c.lr)}: {_number(c.p_target_report)}" for c in chosen
    )
    full = [c for c in cells if c.method == "full"]
    # On a wide page the two curves stand side by side: one height, unless many panels make that too tall.
    beside = figures.render(partial(figures.rank_fixed_lr, data, trait))
    tall = beside.get_figheight() if beside is not None and beside.get_figheight() < 3.7 else None
    label = data.answers[trait].student_label if trait in data.answers else ""
    return [
        (
            "heatmap-{}-transfer",
            partial(figures.heatmap, data, trait, "transfer"),
            f"Heat map of P({target}), student minus {against}, over rank and learning rate.{peak} {calls}. "
            "Every number is in the table of cells.",
            f"Mean P(“{target}”) of the students minus that of their {against}, context “{context}”. "
            + (
                "● and bold: called after correction for the number of cells."
                if tested
                else "No control was trained: nothing is tested here."
            )
            + (f" Hatched: not coherent ({broken})." if broken else ""),
        ),
        (
            "heatmap-{}-coherence",
            partial(figures.heatmap, data, trait, "coherence"),
            f"Heat map of coherence over rank and learning rate; {broken} of {len(cells)} cells are not coherent.",
            "Share of sampled answers that name a word of the category. Hatched: below "
            f"{data.min_coherence:g}, or more than {data.max_number_takeover:g} of the answers hold a digit; "
            "there, a small effect cannot be told from a broken model.",
        ),
        (
            "rank-fixed-lr-{}",
            partial(figures.rank_fixed_lr, data, trait),
            f"P({target}) over the LoRA rank, one panel per learning rate. {curve}.",
            "One panel per learning rate, all ranks at that rate. One rate shared by all ranks can make "
            "a rise and fall of its own, because the best rate moves with the rank: read it beside the "
            f"best-rate view. {fixed}{bars}{full_note}",
        ),
        (
            "rank-best-lr-{}",
            partial(figures.rank_best_lr, data, trait, height=tall),
            f"P({target}) over the LoRA rank at each rank's best learning rate. {picked}.",
            "The rate of each rank (row “lr”) is chosen among coherent cells on one half of the questions; "
            f"shown is the other half. The base line is over all questions. {again}",
        ),
        (
            "answers-{}",
            partial(figures.answer_bars, data, trait),
            f"Probability of each word of the category for base, control, student, teacher; target {target}.",
            "Teacher-forced probability of each word, averaged over questions; the arrow marks the target. "
            + (f"Student: {label}." if label else ""),
        ),
        (
            "full-ft-{}",
            partial(figures.full_ft, data, trait),
            f"P({target}) of full fine-tunes over the learning rate. "
            + "; ".join(f"lr {figures.rate(c.lr)}: {_number(c.p_target)}" for c in full)
            + ".",
            f"Full fine-tunes at their own learning rates. {bars if not lora else again}",
        ),
    ]


def _render(data: RunData, write: Callable[[str, Figure], str]) -> str:
    slugs = _slugs([t.name for t in data.traits])

    def plate(
        stem: str, draw: Callable[[], Figure | None], label: str, caption: str
    ) -> dict[str, Any] | None:
        figure = figures.render(draw)
        if figure is None:
            return None
        return {
            "name": stem,
            "svg": inline_svg(write(stem, figure), stem, label),
            "caption": caption,
        }

    sections = []
    for trait in data.traits:
        slug = slugs[trait.name]
        grid = len({(c.method, c.rank, c.lr) for c in data.of(trait.name)}) > 1
        both = (
            figures.render(partial(figures.heatmap, data, trait.name))
            if grid or not data.arms
            else None
        )
        if both is not None:
            write(f"heatmap-{slug}", both)
        plates = _plates(data, trait.name)
        if not grid and data.arms:  # a grid of one cell is no picture
            plates = [p for p in plates if p[0].startswith("answers")]
        shown = [
            plate(stem.format(slug), *rest)
            for stem, *rest in _arm_plates(data, trait.name)
            + _finding_plates(data, trait.name)
            + plates
        ]
        cells = [_cell_row(data, c) for name in _contexts(data) for c in data.of(trait.name, name)]
        sections.append(
            {
                "trait": trait,
                "slug": slug,
                "plates": [p for p in shown if p],
                "cells": cells,
                "contexts": None if data.arms else _context_table(data, trait.name),
                "arms": _arm_table(data, trait.name),
                "findings": _finding_table(data, trait.name),
                "sweep": _sweep_table(data, trait.name),
                "maps": _token_maps(data, trait.name),
                "no_best": bool(data.of(trait.name, method="lora"))
                and not any(c.selected for c in data.of(trait.name, method="lora")),
            }
        )
    overview = None
    if len(data.traits) > 1:
        overview = plate(
            "traits",
            partial(figures.traits_overview, data),
            "Effect per trait, student minus control, with intervals: "
            + "; ".join(
                f"{t.name} {_signed(c.effect_report)}"
                for t in data.traits
                if (c := figures.best_lora(data, t.name))
            )
            + ".",
            "Rank and learning rate are chosen on one half of the questions, the effect is the other’s.",
        )

    run = data.run
    seconds = run.get("seconds") or {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = _whole
    return environment.get_template("page.html.j2").render(
        run=run,
        model=run.get("model") or {},
        data=data,
        tiles=_headline(data),
        sections=sections,
        overview=overview,
        across=_finding_table(data, ACROSS),
        verdicts=verdict_rows(data.verdicts),
        rejects=_rejects(data),
        example_row=_example(run.get("first_example")),
        contexts={name: _example(entry) for name, entry in (run.get("contexts") or {}).items()},
        recipe=json.dumps(run.get("recipe") or {}, indent=2, ensure_ascii=False, sort_keys=True),
        seconds=[
            (f"time, {k}", f"{v:.0f} s") for k, v in seconds.items() if isinstance(v, int | float)
        ],
        counts=list((run.get("counts") or {}).items()),
        versions=list((run.get("versions") or {}).items()),
        teacher_sampling=[
            (k.replace("_", " "), v) for k, v in (run.get("teacher_sampling") or {}).items()
        ],
        sampling=[(k.replace("_", " "), v) for k, v in (run.get("sampling") or {}).items()],
    )


def _contexts(data: RunData) -> list[str]:
    return sorted(data.contexts, key=lambda c: c != data.training_context)
