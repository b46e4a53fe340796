"""The page of a grid: what stands at its top, a section for each trait, and the tables of all cells."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sublora.analysis.effects import ACROSS
from sublora.analysis.page import Section, Tile, finite
from sublora.analysis.variance import spread_sentence
from sublora.experiments.grid import arm_charts, charts, matrix_charts, tables
from sublora.experiments.grid.found import Found, Row, coherent, link, place
from sublora.text import interval, listed, number, signed, slugs

CELLS = (
    "● called after correction; “best” marks the best learning rate of its rank, “effect at the best rate” is the mean over seeds, each at "
    "the rate that the other seeds choose; † not coherent. Coherence and numbers are shares of sampled answers with a word of the category "
    "and with a digit. n is data seeds × training seeds × questions. The same numbers are in `cells.csv`."
)


def shown(
    found: Found, traits: Sequence[Mapping[str, Any]], datasets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The tiles, note, sections and appendix of a grid; traits and datasets as run.json has them."""
    names = [t["name"] for t in traits]
    of = slugs(names, "trait")
    cells = [tables.cell_table(found, name, of[name], len(names) == 1) for name in names]
    data = tables.reject_table(datasets)
    return {
        "tiles": (*(_arm_tiles if found.arms else _cell_tiles)(found), _control_tile(found)),
        "note": f"Effects are log-odds of the target among the words of its category but the control’s, student − control, in nats, with "
        f"{found.level} intervals clustered by data seed, training seed and question; training context “{found.context}”.",
        "sections": (*_overview(found, names), *(_trait(found, t, of[t["name"]]) for t in traits)),
        "appendix": (
            Section(name="cells", title="Cells", text=_cells_text(found), parts=tuple(cells)),
            Section(name="data", title="Data and what was rejected", nav="Data", parts=(data,)),
        ),
    }


def _cells_text(found: Found) -> str:
    spread = spread_sentence([c for c in found.cells if c["context"] == found.context])
    return CELLS if spread is None else f"{CELLS} {spread}"


def _overview(found: Found, traits: Sequence[str]) -> list[Section]:
    """The traits side by side, where there are several."""
    parts = [
        arm_charts.overview(found, traits),
        *matrix_charts.heat_maps(found),
        matrix_charts.elevations(found),
        matrix_charts.together(found),
        tables.finding_table(found, ACROSS, "all"),
    ]
    shown = tuple(part for part in parts if part is not None)
    section = Section(name="overview", title="Traits side by side", nav="Traits", parts=shown)
    return [section] if len(traits) > 1 and shown else []


def _trait(found: Found, trait: Mapping[str, Any], slug: str) -> Section:
    name = trait["name"]
    # where there are arms, a grid of one cell is no picture
    one_cell = len({(c["method"], c["rank"], c["lr"]) for c in found.of(name)}) == 1
    alone = found.arms and one_cell
    of_arms, of_findings = arm_charts.arm_charts, arm_charts.finding_charts
    grid = (charts.answers,) if alone else charts.GRID_CHARTS
    leading = (of_arms, of_findings, *grid) if alone else (of_arms, *grid, of_findings)
    makers = (
        tables.arm_table,
        tables.finding_table,
        tables.sweep_table,
        arm_charts.token_maps,
        tables.context_table,
    )
    parts = []
    for make in (*leading, *makers):
        made = make(found, name, slug)
        parts += made if isinstance(made, list) else [made]
    text = f"Category {trait['category']}, target “{trait['target']}”. {trait['teacher']} {_teachers(found, name)}"
    shown = tuple(part for part in parts if part is not None)
    return Section(name=f"trait-{slug}", title=f"Trait: {name}", nav=name, text=text, parts=shown)


def _teachers(found: Found, trait: str) -> str:
    """What the trait's teachers answer, beside the base."""
    mine = [r for r in found.results if r["trait"] == trait]
    base = next(r for r in mine if r["kind"] == "base" and r["context"] == found.context)
    said = [
        f"{r['condition'] or 'the teacher'} {number(r['p_target'])}"
        for r in mine
        if r["kind"] == "teacher"
    ]
    return f"Asked as students are, P(target): {listed([*said, 'the base ' + number(base['p_target'])])}."


def _tile(name: str, row: Row, what: str, more: str = ".") -> Tile:
    """The effect of a cell or an arm, and of what it is."""
    rise = finite(row.get("rise"))
    base = "" if rise is None else f", over the base {signed(rise, 2)}"
    note = f"{what}: P(target) {number(row['p_target'])}, control {number(row['p_control'])}{base}{more}"
    note = note[:1].upper() + note[1:] if row.get("data") is not None else note
    span = interval(finite(row["effect_low"]), finite(row["effect_high"]), 2)
    return Tile(name=name, value=signed(row["effect"], 2), interval=span, note=note, link=link(row))


def _cell_tiles(found: Found) -> list[Tile]:
    """The largest called effect, how many cells are called, the best full fine-tune."""
    cells = [c for c in found.cells if c["context"] == found.context]
    traits = list(dict.fromkeys(c["trait"] for c in cells))
    called = [c for c in cells if c["called"]]
    sound = [c for c in called if coherent(c)]

    def largest(name: str, cells: Sequence[Row], more: Callable[[Row], str]) -> Tile:
        best = max(cells, key=lambda c: c["effect"])
        of = f"{best['trait']}: " if len(traits) > 1 else ""
        return _tile(name, best, of + place(best), more(best))

    high = f". The largest of {len(cells)} cells, so it reads high." if len(cells) > 1 else "."
    note = "No coherent cell is called after correction."
    top = Tile(name="Largest called effect", value="none", note=note)
    top = largest(top.name, sound, lambda _: high) if sound else top
    broken = len(called) - len(sound)
    note = "Student against control, corrected for the number of cells."
    if broken:
        note += f" {broken} of those called {'is' if broken == 1 else 'are'} not coherent."
    if len(traits) > 1:
        hit = len({c["trait"] for c in called})
        note += f" Traits with a called cell: {hit} of {len(traits)}."
    count = Tile(name="Cells called", value=f"{len(called)} of {len(cells)}", note=note)
    if chosen := [c for t in traits if (c := found.best(t, "full"))]:
        return [top, count, largest("Best full fine-tune", chosen, _whether_called)]
    any_full = any(c["method"] == "full" for c in found.cells)
    note = "No full fine-tune stayed coherent." if any_full else "This run has no full fine-tune."
    value = "none" if any_full else "not run"
    return [top, count, Tile(name="Best full fine-tune", value=value, note=note)]


def _whether_called(cell: Row) -> str:
    return f", {'called' if cell['called'] else 'not called'}."


def _arm_tiles(found: Found) -> list[Tile]:
    """The reference, the arm that is farthest from it, and how many arms are called."""
    first, axes = found.arms[0], found.axes(found.arms)
    same = [a for a in found.arms if a["trait"] == first["trait"]]
    apart = max(same, key=lambda a: abs(a["effect"] - first["effect"]))
    of = f"{first['trait']}, " if len(same) < len(found.arms) else ""
    note = "Student against control under the same conditions, corrected for the number of arms of a trait."
    called = f"{sum(a['called'] for a in found.arms)} of {len(found.arms)}"
    return [
        _tile("Reference arm", first, of + found.named(first, axes)),
        _tile("Arm farthest from it", apart, of + found.named(apart, axes)),
        Tile(name="Arms called", value=called, note=note),
    ]


def _control_tile(found: Found) -> Tile:
    """Mean over the control students with their range, and the base with its own interval."""
    here = [r for r in found.results if r["context"] == found.context]
    controls = [r["p_target"] for r in here if r["kind"] == "control"]
    base = next(r for r in here if r["kind"] == "base")
    several = len({c["trait"] for c in found.cells}) > 1
    means = [c["p_control"] for c in found.cells if c["context"] == found.context]
    span = f"[{number(base['p_target_low'])}, {number(base['p_target_high'])}]"
    of = f"{base['trait']} " if several else ""
    return Tile(
        name="Control, mean P(target)",
        value=number(sum(means) / len(means)),
        interval=f"range {number(min(controls))} to {number(max(controls))}" if controls else "",
        note=f"{len(controls)} control measurements. Base: {of}P(target) {number(base['p_target'])} {span}.",
    )
