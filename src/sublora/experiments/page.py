"""The page of a run, from what its experiment found: figures, verdicts, and a table for each group of estimates."""

from collections.abc import Mapping, Sequence
from typing import Any

from sublora.analysis.page import Page, Section, Table
from sublora.experiments.experiment import Findings
from sublora.text import p_value, slugs


def page_of(
    findings: Findings,
    rows: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]],
) -> Page:
    """All that the page of a run shows; `rows` are those of its estimates, `manifest` is run.json."""
    recipe = manifest["recipe"]
    figures = Section(name="figures", title="Figures", text=findings.how, parts=findings.charts)
    return Page(
        title=recipe["title"],
        manifest=dict(manifest),
        registration=manifest.get("prereg"),
        first_line=findings.first_line,
        tiles=findings.tiles,
        note=findings.note,
        sections=findings.sections or (figures,),
        verdicts=tuple(map(dict, verdicts)),
        appendix=findings.appendix + _estimates(rows, recipe["level"]),
        facts=dict(findings.facts),
    )


def _estimates(rows: Sequence[Mapping[str, Any]], level: float) -> tuple[Section, ...]:
    if not rows:
        return ()
    text = (
        f"Intervals are {1 - level:.0%}, each on its own; p values are corrected (Holm) over the tested estimates of a subject and group, and "
        f"● marks those below {level}. The same numbers are in `results.csv`."
    )
    return (Section(name="estimates", title="Estimates", text=text, parts=tuple(_tables(rows))),)


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['subject']}: {row['group']}", []).append(row)
    names = slugs(list(groups))
    return [
        Table(
            name=f"table-{names[title]}",
            title=title,
            columns=("estimate of", "value", "interval", "p, corrected", "called", "n"),
            rows=tuple(map(_cells, members)),
        )
        for title, members in groups.items()
    ]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high, called = row["low"], row["high"], row["called"]
    sizes = ((k.removeprefix("n_").replace("_", " "), v) for k, v in row.items() if k[:2] == "n_")
    return (
        row["name"],
        _number(row["estimate"]),
        "" if low is None or high is None else f"[{_number(low)}, {_number(high)}]",
        "" if row["p_corrected"] is None else p_value(row["p_corrected"]),
        "" if called is None else "● yes" if called else "no",
        " × ".join(f"{v} {name}" for name, v in sizes if v is not None),
    )


def _number(value: float) -> str:
    """Three decimals, or three digits of what is very small or large."""
    text = f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.3g}"
    return text.replace("-", "−")
