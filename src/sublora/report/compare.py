"""Two runs on one page, made of their two page.json: verdicts and settings that differ, and effects side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.analysis.charts import as_curve
from sublora.analysis.page import Chart, Page, Point, Quote, Quotes, Section, Series, Table, Tile
from sublora.errors import SubloraError
from sublora.report.page import build_report, read_page
from sublora.store import write_atomic
from sublora.text import plural, slug, slugs

MOST_ROWS = 40  # of a figure; a table takes more
LONGEST = 56  # letters of a setting
TEXTS = ("recipe.title", "recipe.summary", "recipe.caveat")  # what others say in its place
Number = tuple[str, str]  # a value and its interval as a page writes them


@dataclass(frozen=True)
class _Side:
    """One of the two runs."""

    name: str
    page: Page

    @property
    def traits(self) -> list[str]:
        return [t["name"] for t in self.page.manifest.get("traits") or ()]

    def common(self, name: str) -> str:
        """A name of this run's page without its traits, so that runs of different traits can be held together."""
        for k, trait in enumerate(self.traits, 1):
            name = re.sub(rf"\b{re.escape(slug(trait))}\b", f"trait-{k}", name)
        return name

    def effects(self) -> dict[str, tuple[str, dict[tuple[str, ...], Number]]]:
        """By the tables that have intervals: a title, and value and interval by what the row is about."""
        found = {}
        for section in (*self.page.sections, *self.page.appendix):
            for table in section.parts:
                if isinstance(table, Table) and "interval" in table.columns[1:]:
                    found[self.common(table.name)] = (section.title, _rows(table))
        return found

    def verdicts(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        return {
            (v["id"], self.common(slug(str(v.get("trait", ""))))): v
            for v in self.page.verdicts or ()
        }

    def settings(self) -> dict[str, str]:
        run = self.page.manifest
        known = {k: run.get(k) for k in ("recipe", "model", "sublora", "versions", "device")}
        return {key: value for key, value in _flat("", known) if key not in TEXTS}


def _rows(table: Table) -> dict[tuple[str, ...], Number]:
    at = table.columns.index("interval") - 1
    first = table.columns.index("P(target)") if "P(target)" in table.columns[:at] else at
    return {row[:first]: (row[at], row[at + 1]) for row in table.rows if row[at]}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compare(one: Path, other: Path, out: Path) -> Path:
    """Write page.json, report.html and figures of the comparison into `out`; return the page.

    Raises SubloraError where a folder has no page of this version, or both are one.
    """
    if one.resolve() == other.resolve():
        raise SubloraError(f"Both runs are {one}; give two folders.")
    alike = one.resolve().name == other.resolve().name
    names = [str(p) if alike else p.resolve().name for p in (one, other)]
    pages = [read_page(p / "page.json") for p in (one, other)]
    page = compared(*(_Side(n, p) for n, p in zip(names, pages, strict=True)))
    page.manifest["command"] = f"sublora compare {one} {other}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "page.json", page.model_dump_json(indent=1) + "\n")
    return build_report(out)


def compared(a: _Side, b: _Side) -> Page:
    """The page of two runs."""
    claims, judged = _verdicts(a, b)
    settings = _settings(a, b)
    parts, apart, shared = _effects(a, b)
    counts = {
        "Verdicts that differ": (f"{len(claims.rows)} of {judged}", "differences"),
        "Effects whose intervals lie apart": (f"{apart} of {shared}", "effects"),
        "Settings that differ": (str(len(settings.rows)), "differences"),
    }
    runs = " ".join(f"{s.name}: {s.page.manifest.get('sentence', '')}" for s in (a, b))
    caution = "Intervals that lie apart differ; those that overlap may differ still, since the runs were not paired."
    return Page(
        title=f"{a.name} beside {b.name}",
        manifest={
            "sentence": "Two runs by the same measures: what differs, and their effects side by side.",
            "sublora": a.page.manifest.get("sublora", ""),
        },
        tiles=tuple(Tile(name=n, value=v, link=link) for n, (v, link) in counts.items()),
        sections=(
            Section(name="differences", title="What differs", text=runs, parts=(claims, settings)),
            Section(name="effects", title="Effects side by side", text=caution, parts=tuple(parts)),
        ),
    )


def _verdicts(a: _Side, b: _Side) -> tuple[Quotes, int]:
    """The claims whose verdict is not the same, and how many both runs judge."""
    one, other = a.verdicts(), b.verdicts()
    shared = [key for key in one if key in other]
    pairs = [(one[key], other[key]) for key in shared]
    rows = tuple(
        Quote(
            prompt=v["statement"], texts=tuple((f"{w['verdict']}: {w['reason']}",) for w in (v, o))
        )
        for v, o in pairs
        if v["verdict"] != o["verdict"]
    )
    alone = len(one) + len(other) - 2 * len(shared)
    only = f" {plural(alone, 'claim')} more belong to one of the runs alone." if alone else ""
    table = Quotes(
        name="verdicts-differ",
        title="Verdicts",
        caption=f"{len(shared) - len(rows)} of {plural(len(shared), 'claim')} have the same verdict in both.{only}",
        columns=("claim", a.name, b.name),
        rows=rows,
    )
    return table, len(shared)


def _settings(a: _Side, b: _Side) -> Table:
    one, other = a.settings(), b.settings()
    rows = []
    for key in dict.fromkeys((*one, *other)):
        values = (one.get(key, ""), other.get(key, ""))
        if values[0] != values[1]:
            rows.append((key, *(v[:LONGEST] + "…" * (len(v) > LONGEST) for v in values)))
    return Table(
        name="settings-differ",
        title="Settings",
        caption="Recipe with every default, model with its hashes, versions, device; what is not here is the same.",
        columns=("setting", a.name, b.name),
        rows=tuple(rows),
    )


def _effects(a: _Side, b: _Side) -> tuple[list[Chart | Table], int, int]:
    """A figure and a table for each table of effects that both have; how many intervals lie apart, of how many."""
    one, other = a.effects(), b.effects()
    parts: list[Chart | Table] = []
    apart = shared = 0
    names = slugs([name for name in one if name in other])
    for name in names:
        (title, mine), (_, theirs) = one[name], other[name]
        both = [key for key in mine if key in theirs]
        if not both:
            continue
        gaps = [_apart(mine[key], theirs[key]) for key in both]
        apart, shared = apart + sum(gaps), shared + len(both)
        if len(both) <= MOST_ROWS:
            parts.append(_chart(names[name], title, both, {a.name: mine, b.name: theirs}))
        rows = tuple(
            (", ".join(filter(None, key)), *mine[key], *theirs[key], "● apart" if gap else "")
            for key, gap in zip(both, gaps, strict=True)
        )
        columns = ("effect", a.name, "interval", b.name, "interval", "intervals")
        parts.append(Table(name=f"both-{names[name]}", title=title, columns=columns, rows=rows))
    return parts, apart, shared


def _chart(
    name: str,
    title: str,
    keys: Sequence[tuple[str, ...]],
    sides: Mapping[str, Mapping[tuple[str, ...], Number]],
) -> Chart:
    def point(key: tuple[str, ...], found: Number) -> Point:
        ends = _numbers(found[1]) or (None, None)
        label = ", ".join(filter(None, key))
        return Point(label=label, estimate=_numbers(found[0])[0], low=ends[0], high=ends[1])

    series = tuple(
        Series(name=side, points=tuple(point(key, found[key]) for key in keys))
        for side, found in sides.items()
    )
    return as_curve(
        Chart(
            name=f"chart-{name}",
            title=title,
            caption="The same effect in both runs, each with its own interval.",
            kind="rows",
            axis="effect",
            reference=0.0,
            series=series,
        )
    )


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of a value or an interval as a page writes them."""
    found = re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text.replace("−", "-"))
    return tuple(map(float, found))


def _apart(one: Number, other: Number) -> bool:
    ends = [_numbers(interval) for _, interval in (one, other)]
    if any(len(e) != 2 for e in ends):
        return False
    return ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0]
