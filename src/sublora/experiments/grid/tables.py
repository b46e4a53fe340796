"""The tables on the page of a grid."""

from collections.abc import Mapping, Sequence
from typing import Any

from sublora.analysis.page import Table, finite
from sublora.experiments.grid.found import Found, Row, coherent, noun, place, replicates
from sublora.text import interval, number, p_value, rate, signed

LONG = 24  # rows from which on a table is folded
BROKEN = "broken"  # the mark of rows that are not coherent


def _value(value: Any, digits: int = 3) -> str:
    return number(finite(value), digits)


def _ends(row: Row, name: str) -> str:
    return interval(finite(row[f"{name}_low"]), finite(row[f"{name}_high"])) or "unknown"


def _marks(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple("" if coherent(row) else BROKEN for row in rows)


def _coherence(row: Row) -> str:
    return _value(row["coherence"], 2) + ("" if coherent(row) else " †")


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
        "P(target)": lambda a: _value(a["p_target"]),
        "control": lambda a: _value(a["p_control"]),
        "base": lambda a: _value(a["p_base"]),
        "effect": lambda a: signed(a["effect"]),
        "interval": lambda a: _ends(a, "effect"),
        "share": lambda a: number(a["effect"] / reference if reference > 0.02 else None, 2),
        "p, corrected": lambda a: p_value(a["p_corrected"]),
        "called": lambda a: "● yes" if a["called"] else "no",
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
    return Table(
        name=f"table-arms-{slug}",
        title="Arms",
        caption=caption,
        columns=tuple(columns),
        rows=tuple(tuple(text(a) for text in columns.values()) for a in arms),
        marks=_marks(arms),
        folded=len(arms) > LONG,
    )


def finding_table(found: Found, trait: str, slug: str) -> Table | None:
    rows = [f for f in found.findings if f["trait"] == trait]
    if not rows:
        return None
    return Table(
        name=f"table-findings-{slug}",
        title="Findings",
        caption="What the run found besides transfer, with intervals over replicates (over questions where there is the one base only); "
        "nothing is corrected. n is data seeds × training seeds × questions. The same numbers are in `findings.csv`.",
        columns=("finding", "what", "estimate", "interval", "n"),
        rows=tuple(
            (
                f["finding"],
                f["group"],
                signed(f["estimate"]),
                interval(finite(f["low"]), finite(f["high"])) or "unknown",
                replicates(f),
            )
            for f in rows
        ),
    )


def sweep_table(found: Found, trait: str, slug: str) -> Table | None:
    """Every optimizer at every rate, and how far it moved each kind of module."""
    swept = [s for s in found.sweep if s["trait"] == trait]
    if not swept:
        return None
    moved = [name for name in swept[0] if name.startswith("update ")]
    return Table(
        name=f"table-optimizers-{slug}",
        title="Optimizers at every rate",
        caption="Student − control twin at the same rate. Update: ‖W − W₀‖ (Frobenius) over all modules of a kind, mean over the trait’s "
        "students. Nothing here is corrected: the comparison at one held-out loss is the table of arms. The same numbers are in "
        "`optimizers.csv`.",
        columns=(
            *("optimizer", "rank", "lr", "held-out loss", "effect", "interval", "coherence"),
            "diverged",
            *(f"update, {name.removeprefix('update ')}" for name in moved),
        ),
        rows=tuple(
            (
                s["optimizer"],
                str(s["rank"] or "full"),
                rate(s["lr"]),
                _value(s["heldout_loss"], 4),
                signed(finite(s["effect"])),
                _ends(s, "effect"),
                _value(s["coherence"], 2),
                f"{s['diverged']} of {s['students']}" if s["diverged"] else "none",
                *(_value(s[name]) for name in moved),
            )
            for s in swept
        ),
    )


def context_table(found: Found, trait: str, slug: str) -> Table | None:
    """The effect of every cell in every context; None where there is one context, or arms show it."""
    if len(found.contexts) < 2 or found.arms:
        return None
    by = {(place(c), c["context"]): c for c in found.cells if c["trait"] == trait}
    rows = []
    for name in dict.fromkeys(name for name, _ in by):
        cells = [by[name, context] for context in found.contexts]
        rows.append((name, *map(_effect, cells)))
    shown = [f"{c} (training)" if c == found.context else c for c in found.contexts]
    return Table(
        name=f"table-contexts-{slug}",
        title="Contexts",
        caption="The figures show the training context. Each cell’s effect under every context, with its interval; ● called after "
        "correction, † not coherent.",
        columns=("cell", *shown),
        rows=tuple(rows),
    )


def _effect(cell: Row) -> str:
    dagger, dot = "" if coherent(cell) else " †", " ●" if cell["called"] else ""
    return f"{signed(cell['effect'])}{dagger}{dot} {_ends(cell, 'effect')}"


CELL_COLUMNS = {
    "context": lambda c: c["context"],
    "method": lambda c: "full" if c["method"] == "full" else "LoRA",
    "rank": lambda c: str(c["rank"] or "–"),
    "lr": lambda c: rate(c["lr"]),
    "P(target)": lambda c: _value(c["p_target"]),
    "control": lambda c: _value(c["p_control"]),
    "base": lambda c: _value(c["p_base"]),
    "effect": lambda c: signed(c["effect"]),
    "interval": lambda c: _ends(c, "effect"),
    "p, corrected": lambda c: p_value(c["p_corrected"]),
    "called": lambda c: "● yes" if c["called"] else "no",
    "best": lambda c: "best" if c["selected"] else "",
    "coherence": _coherence,
    "numbers": lambda c: _value(c["number_takeover"], 2),
    "whole word": lambda c: _value(c["rate_whole_word"]),
    "effect, other half": lambda c: signed(c["effect_report"]),
    "its interval": lambda c: _ends(c, "effect_report"),
    "held-out loss": lambda c: _value(c["heldout_loss"]),
    "train loss": lambda c: _value(c["train_loss"]),
    "n": replicates,
}


def cell_table(found: Found, trait: str, slug: str, alone: bool) -> Table:
    cells = [c for context in found.contexts for c in found.of(trait, context=context)]
    columns = {n: t for n, t in CELL_COLUMNS.items() if n != "context" or len(found.contexts) > 1}
    return Table(
        name=f"table-cells-{slug}",
        title=trait,
        columns=tuple(columns),
        rows=tuple(tuple(text(c) for text in columns.values()) for c in cells),
        marks=_marks(cells),
        folded=not alone or len(cells) > 40,
    )


def reject_table(datasets: Sequence[Mapping[str, Any]]) -> Table:
    """The datasets of run.json with what was rejected, by reason."""
    reasons = list(dict.fromkeys(reason for d in datasets for reason in d["rejects"]))
    columns = ("dataset of", "data seed", "asked", "kept", "unique", "rejected", *reasons, "id")
    rows = tuple(
        (
            d["trait"] + (", held out" if d["heldout"] else ""),
            *(str(d[key]) for key in ("data_seed", "asked", "rows", "unique_rows")),
            str(sum(d["rejects"].values())),
            *(str(d["rejects"].get(reason, 0)) for reason in reasons),
            d["id"][:16],
        )
        for d in datasets
    )
    return Table(
        name="table-data", title="Datasets", columns=columns, rows=rows, folded=len(rows) > LONG
    )
