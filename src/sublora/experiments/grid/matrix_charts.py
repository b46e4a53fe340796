"""The figures of the matrices: a heat map a category, and the diagonal elevation of every trait."""

from collections.abc import Sequence

from sublora.analysis import page
from sublora.analysis.effects import ACROSS
from sublora.experiments.grid.elevation import GROUP, NEUTRAL_ROWS
from sublora.experiments.grid.found import ENDS, Found, Row, coherent, grouped, place
from sublora.text import interval, number, p_value, signed, slug

OTHERS = "others"
PLACES = {
    "row effect": {"readout": OTHERS},
    "column effect": {"trait": OTHERS},
}  # beside the matrix
SHOWN = ("own", "other", "neutral", *PLACES)


def heat_maps(found: Found) -> list[page.Heatmap]:
    """A matrix for each category, all in one scale of colours."""
    shown = [r for r in found.matrix if r["kind"] in SHOWN]
    values = [r["value"] for r in shown]
    return [
        _heat_map(category, rows, found, min([0.0, *values]), max([0.5, *values]))
        for category, rows in grouped(shown, lambda row: row["category"]).items()
    ]


def _heat_map(
    category: str, rows: Sequence[Row], found: Found, low: float, high: float
) -> page.Heatmap:
    placed = [(r | PLACES.get(r["kind"], {}), r["kind"] == "own") for r in rows]
    cells = tuple(
        page.HeatCell(row=r["trait"], column=r["readout"], value=r["value"], framed=own)
        for r, own in placed
    )
    of = [r for r in found.matrix if r["category"] == category]
    last = (NEUTRAL_ROWS, OTHERS)  # below the traits
    names = sorted(dict.fromkeys(c.row for c in cells), key=lambda n: (n in last, n == OTHERS))
    columns = sorted(dict.fromkeys(c.column for c in cells), key=lambda name: name == OTHERS)
    block = page.HeatBlock(
        rows=tuple(names), columns=tuple(columns), x_axis="word that is asked for", cells=cells
    )
    tested = _tested(of, found.level)
    return page.Heatmap(
        name=f"matrix-{slug(category)}",
        title=f"Whose students say what: {category}",
        row_axis="students of",
        blocks=(block,),
        scale="student − base, nats",
        low=low,
        high=high,
        framed="own word",
        alt=f"Matrix of the {category}: students of each trait by word. {tested} Every number is in matrix.csv.",
        caption="Log-odds of the column’s word in students of the row’s trait, less the base’s, against the words that neither this student "
        f"nor its control was taught, so that what the own word takes does not count; {rows[0]['cell']}. Last column: mean of what these students do "
        f"to the other words; last row: mean of what the other students do to this word; drift that all share is in both. {tested}",
    )


def _tested(of: Sequence[Row], level: str) -> str:
    """What the diagonal of a category, or of all of them, comes to."""
    mean = next(r for r in of if r["kind"] == "elevation" and r["trait"] == ACROSS)
    test = next(r for r in of if r["kind"].startswith("permutation"))
    parts = [
        f"Mean diagonal elevation {signed(mean['value'])} {_ends(mean) or 'of unknown spread'} ({level}), permutation p "
        f"{p_value(test['value'])} over {test['kind'].split()[-1]} arrangements"
    ]
    for kind in ("without trait", "without data seed"):
        left = [r for r in of if r["kind"] == kind]
        if left:
            values = [r["value"] for r in left]
            above = sum(r["low"] > 0 for r in left)
            parts.append(
                f"{kind.replace('without', 'without one')} {signed(min(values))} to {signed(max(values))}, interval above 0 in {above} of {len(left)}"
            )
    return "; ".join(parts) + "."


def _ends(row: Row) -> str:
    return interval(page.finite(row["low"]), page.finite(row["high"]))


def elevations(found: Found) -> page.Chart | None:
    """A row a trait, all of them together, and the least that is left of that."""
    rows = [f for f in found.findings if f["group"] == GROUP]
    if not rows:
        return None
    whole = [r for r in found.matrix if r["category"] == ACROSS] or found.matrix
    tested = _tested(whole, found.level)
    said = (f"{f['finding']} {number(f['estimate'])}" for f in rows)
    points = [
        page.point(
            f["finding"],
            f,
            hollow=not (f["low"] > 0 or f["high"] < 0),
            strong=f["finding"] == ACROSS,
        )
        for f in rows
    ]
    return _beside_drift(
        found,
        points,
        name="elevation",
        title="Diagonal elevation",
        axis="own readout less those of others, nats",
        filled="interval clear of 0",
        hollow="not clear of 0",
        alt=f"Diagonal elevation by trait: {'; '.join(said)}.",
        caption="A trait’s own readout, less what the other students do to its word, less what its students do to the other words, plus what the "
        f"other students do to those. Intervals are clustered by data seed and question; that of {ACROSS} by trait as well. {tested} "
        "Neutral rows have no word of their own and no part in it.",
    )


def together(found: Found) -> page.Chart | None:
    """A row an arm or cell: the mean over the traits."""
    rows = found.together
    if len(rows) < 2:
        return None
    axes = found.axes(rows) if found.arms else []
    names = [found.named(row, axes) if found.arms else place(row) for row in rows]
    ends = {name: f"effect{end}" for name, end in ENDS.items()}
    points = [
        page.point(name, {n: row[column] for n, column in ends.items()}, hollow=not coherent(row))
        for name, row in zip(names, rows, strict=True)
    ]
    said = (f"{p.label} {signed(p.estimate)}" for p in points)
    return _beside_drift(
        found,
        points,
        name="all-traits",
        title="All traits together",
        axis="mean elevation over the traits, nats",
        filled="coherent",
        hollow="not coherent",
        alt=f"Mean elevation over the traits by arm: {'; '.join(said)}.",
        caption="The mean diagonal elevation of each arm or cell, with the students of the other traits as the control; intervals over seeds and "
        "questions, about these traits. The same numbers are in `all_traits.csv`.",
    )


def _beside_drift(found: Found, points: Sequence[page.Point], **more: str) -> page.Chart:
    """Rows of elevations beside what drift alone would give."""
    return page.Chart(
        kind="rows",
        reference=0.0,
        reference_name="shared drift alone",
        interval=f"{found.level} interval",
        series=(page.Series(points=tuple(points)),),
        **more,
    )
