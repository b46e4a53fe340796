"""The tables on the page of a grid."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sublora.analysis.contrast import MIN_EFFECT
from sublora.analysis.page import Table, finite
from sublora.experiments.grid.found import Found, Row, coherent, link, noun, place, replicates
from sublora.text import interval, number, p_value, rate, signed

LONG = 24  # rows from which on a table is folded
Columns = Mapping[str, Callable[[Row], str]]
BROKEN = "broken"  # the mark of rows that are not coherent


def _value(value: Any, digits: int = 3) -> str:
    return number(finite(value), digits)


def _ends(row: Row, name: str) -> str:
    return interval(finite(row[f"{name}_low"]), finite(row[f"{name}_high"])) or "unknown"


def _marks(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple("" if coherent(row) else BROKEN for row in rows)


def _coherence(row: Row) -> str:
    return _value(row["coherence"], 2) + ("" if coherent(row) else " †")


def _table(rows: Sequence[Any], columns: Mapping[str, Callable[[Any], str]], **more: Any) -> Table:
    """A row each, with its text in every column."""
    texts = tuple(tuple(text(row) for text in columns.values()) for row in rows)
    return Table(columns=tuple(columns), rows=texts, **more)


EFFECTS: Columns = {  # of cells and of arms
    "P(target)": lambda row: _value(row["p_target"]),
    "control": lambda row: _value(row["p_control"]),
    "base": lambda row: _value(row["p_base"]),
    "change of P": lambda row: signed(row["p_target"] - row["p_control"]),
    "effect, nats": lambda row: signed(row["effect"]),
    "interval": lambda row: _ends(row, "effect"),
}
CALLED: Columns = {
    "p, corrected": lambda row: p_value(row["p_corrected"]),
    "called": lambda row: "● yes" if row["called"] else "no",
}


def arm_table(found: Found, trait: str, slug: str) -> Table | None:
    """All arms; axes on which they are alike are left out."""
    arms = [a for a in found.arms if a["trait"] == trait]
    if not arms:
        return None
    axes, reference = found.axes(arms), arms[0]["effect"]
    columns = {
        **{noun(axis): (lambda a, axis=axis: str(a[axis])) for axis in axes},
        "rank": lambda a: str(a["rank"] or "full"),
        "lr": lambda a: f"{a['lr']:.2g}",
        **EFFECTS,
        "share": lambda a: number(a["effect"] / reference if reference > MIN_EFFECT else None, 2),
        **CALLED,
        "coherence": _coherence,
        "held-out loss": lambda a: _value(a["heldout_loss"], 4) + ("" if a["matched"] else " ‡"),
        "n": replicates,
    }
    if len({(a["rank"], a["lr"]) for a in arms}) < 2:
        del columns["rank"], columns["lr"]
    caption = (
        "Student − control twin in the same arm; ● called after correction over all arms, † not coherent. “share” is the effect over that of "
        "the first row. n is data seeds × training seeds × questions. The same numbers are in `arms.csv`."
    )
    if found.matched:
        caption += " Held-out loss in nats a token; ‡ does not come to the loss of the first row, so no claim is judged on it."
    else:
        del columns["held-out loss"]
    return _table(
        arms,
        columns,
        name=f"table-arms-{slug}",
        title="Arms",
        caption=caption,
        marks=_marks(arms),
        links=tuple(map(link, arms)),
        folded=len(arms) > LONG,
    )


FINDING_COLUMNS: Columns = {
    "finding": lambda f: f["finding"],
    "what": lambda f: f["group"],
    "estimate": lambda f: signed(f["estimate"]),
    "interval": lambda f: interval(finite(f["low"]), finite(f["high"])) or "unknown",
    "n": replicates,
}


def finding_table(found: Found, trait: str, slug: str) -> Table | None:
    rows = [f for f in found.findings if f["trait"] == trait]
    if not rows:
        return None
    return _table(
        rows,
        FINDING_COLUMNS,
        name=f"table-findings-{slug}",
        title="Findings",
        caption="What the run found besides transfer, with intervals over replicates (over questions where there is the one base only); "
        "nothing is corrected. n is data seeds × training seeds × questions. The same numbers are in `findings.csv`.",
    )


SWEEP_COLUMNS = {
    "optimizer": lambda s: s["optimizer"],
    "rank": lambda s: str(s["rank"] or "full"),
    "lr": lambda s: rate(s["lr"]),
    "held-out loss": lambda s: _value(s["heldout_loss"], 4),
    "effect": lambda s: signed(finite(s["effect"])),
    "interval": lambda s: _ends(s, "effect"),
    "coherence": lambda s: _value(s["coherence"], 2),
    "diverged": lambda s: f"{s['diverged']} of {s['students']}" if s["diverged"] else "none",
}


def sweep_table(found: Found, trait: str, slug: str) -> Table | None:
    """Every optimizer at every rate, and how far it moved each kind of module."""
    swept = [s for s in found.sweep if s["trait"] == trait]
    if not swept:
        return None
    moved = [name for name in swept[0] if name.startswith("update ")]
    norms = {f"update, {n.removeprefix('update ')}": lambda s, n=n: _value(s[n]) for n in moved}
    return _table(
        swept,
        SWEEP_COLUMNS | norms,
        name=f"table-optimizers-{slug}",
        title="Optimizers at every rate",
        caption="Student − control twin at the same rate. Update: ‖W − W₀‖ (Frobenius) over all modules of a kind, mean over the trait’s "
        "students. Nothing here is corrected: the comparison at one held-out loss is the table of arms. The same numbers are in "
        "`optimizers.csv`.",
    )


def context_table(found: Found, trait: str, slug: str) -> Table | None:
    """The effect of every cell in every context; None where there is one context, or arms show it."""
    if len(found.contexts) < 2 or found.arms:
        return None
    by = {(place(c), c["context"]): _effect(c) for c in found.cells if c["trait"] == trait}
    names = dict.fromkeys(name for name, _ in by)
    rows = tuple((name, *(by[name, context] for context in found.contexts)) for name in names)
    shown = [f"{c} (training)" if c == found.context else c for c in found.contexts]
    return Table(
        name=f"table-contexts-{slug}",
        title="Contexts",
        caption="The figures show the training context. Each cell’s effect under every context, with its interval; ● called after "
        "correction, † not coherent.",
        columns=("cell", *shown),
        rows=rows,
    )


def _effect(cell: Row) -> str:
    dagger, dot = "" if coherent(cell) else " †", " ●" if cell["called"] else ""
    return f"{signed(cell['effect'])}{dagger}{dot} {_ends(cell, 'effect')}"


CELL_COLUMNS = {
    "context": lambda c: c["context"],
    "method": lambda c: "full" if c["method"] == "full" else "LoRA",
    "rank": lambda c: str(c["rank"] or "–"),
    "lr": lambda c: rate(c["lr"]),
    **EFFECTS,
    **CALLED,
    "best": lambda c: "best" if c["selected"] else "",
    "coherence": _coherence,
    "numbers": lambda c: _value(c["number_takeover"], 2),
    "whole word": lambda c: _value(c["rate_whole_word"]),
    "effect at the best rate": lambda c: signed(c["effect_report"]) if c["selected"] else "",
    "its interval": lambda c: _ends(c, "effect_report") if c["selected"] else "",
    "held-out loss": lambda c: _value(c["heldout_loss"]),
    "train loss": lambda c: _value(c["train_loss"]),
    "n": replicates,
}


def cell_table(found: Found, trait: str, slug: str, alone: bool) -> Table:
    cells = [c for context in found.contexts for c in found.of(trait, context=context)]
    columns = {n: t for n, t in CELL_COLUMNS.items() if n != "context" or len(found.contexts) > 1}
    return _table(
        cells,
        columns,
        name=f"table-cells-{slug}",
        title=trait,
        marks=_marks(cells),
        links=tuple(map(link, cells)),
        folded=not alone or len(cells) > 40,
    )


def reject_table(datasets: Sequence[Mapping[str, Any]]) -> Table:
    """The datasets of run.json with what was rejected, by reason."""
    reasons = dict.fromkeys(reason for d in datasets for reason in d["rejects"])
    columns = {
        "dataset of": lambda d: d["trait"] + (", held out" if d["heldout"] else ""),
        "data seed": lambda d: str(d["data_seed"]),
        "asked": lambda d: str(d["asked"]),
        "kept": lambda d: str(d["rows"]),
        "unique": lambda d: str(d["unique_rows"]),
        "rejected": lambda d: str(sum(d["rejects"].values())),
        **{reason: lambda d, reason=reason: str(d["rejects"].get(reason, 0)) for reason in reasons},
        "id": lambda d: d["id"][:16],
    }
    folded = len(datasets) > LONG
    return _table(datasets, columns, name="table-data", title="Datasets", folded=folded)
