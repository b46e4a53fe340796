"""The page of a grid: what stands at its top, a section for each trait, and the tables of all cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from sublora.analysis.effects import ACROSS
from sublora.analysis.page import Section, Tile, finite
from sublora.experiments.grid import arm_charts, charts, tables
from sublora.experiments.grid.found import Found, Row, coherent, place
from sublora.text import interval, number, signed, slugs

CELLS = (
    "● called after correction; “best” marks the learning rate chosen for its rank on one half of the questions, “effect, other half” is "
    "measured on the rest; † not coherent. Coherence and numbers are shares of sampled answers with a word of the category and with a digit. "
    "n is data seeds × training seeds × questions. The same numbers are in `cells.csv`."
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
        "note": f"Effects are student − control, in probability of the target (teacher-forced, over all spellings), with {found.level} "
        f"intervals clustered by data seed, training seed and question; training context “{found.context}”.",
        "sections": (*_overview(found, names), *(_trait(found, t, of[t["name"]]) for t in traits)),
        "appendix": (
            Section(name="cells", title="Cells", text=CELLS, parts=tuple(cells)),
            Section(name="data", title="Data and what was rejected", nav="Data", parts=(data,)),
        ),
    }


def _overview(found: Found, traits: Sequence[str]) -> list[Section]:
    """The traits side by side, where there are several."""
    parts = [arm_charts.overview(found, traits), tables.finding_table(found, ACROSS, "all")]
    shown = tuple(part for part in parts if part is not None)
    section = Section(name="overview", title="Traits side by side", nav="Traits", parts=shown)
    return [section] if len(traits) > 1 and shown else []


def _trait(found: Found, trait: Mapping[str, Any], slug: str) -> Section:
    name = trait["name"]
    parts = [*arm_charts.arm_charts(found, name, slug), arm_charts.finding_chart(found, name, slug)]
    # where there are arms, a grid of one cell is no picture
    one_cell = len({(c["method"], c["rank"], c["lr"]) for c in found.of(name)}) == 1
    alone = found.arms and one_cell
    parts += [charts.answers(found, name, slug)] if alone else charts.grid_charts(found, name, slug)
    parts += [
        make(found, name, slug)
        for make in (
            tables.arm_table,
            tables.finding_table,
            tables.sweep_table,
            arm_charts.token_maps,
            tables.context_table,
        )
    ]
    text = f"Category {trait['category']}, target “{trait['target']}”."
    if trait["teacher_prompt"]:
        text += f" Teacher’s prompt: “{trait['teacher_prompt']}”"
    shown = tuple(part for part in parts if part is not None)
    return Section(name=f"trait-{slug}", title=f"Trait: {name}", nav=name, text=text, parts=shown)


def _tile(name: str, row: Row, what: str) -> Tile:
    """The effect of a cell or an arm, and of what it is."""
    low, high = finite(row["effect_low"]), finite(row["effect_high"])
    note = f"{what}: P(target) {number(row['p_target'])}, control {number(row['p_control'])}"
    note = note[:1].upper() + note[1:] if row.get("data") is not None else note
    return Tile(
        name=name, value=signed(row["effect"], 2), interval=interval(low, high, 2), note=note
    )


def _cell_tiles(found: Found) -> list[Tile]:
    """The largest called effect, how many cells are called, the best full fine-tune."""
    cells = [c for c in found.cells if c["context"] == found.context]
    traits = list(dict.fromkeys(c["trait"] for c in cells))
    called = [c for c in cells if c["called"]]
    sound = [c for c in called if coherent(c)]

    def named(cell: Row) -> str:
        return (f"{cell['trait']}: " if len(traits) > 1 else "") + place(cell)

    largest = Tile(name="Largest called effect", value="none")
    note = "No coherent cell is called after correction."
    if sound:
        best = max(sound, key=lambda c: c["effect"])
        largest = _tile(largest.name, best, named(best))
        note = f"{largest.note}."
        note += f" The largest of {len(cells)} cells, so it reads high." if len(cells) > 1 else ""
    largest = largest.model_copy(update={"note": note})
    note = "Student against control, corrected for the number of cells."
    broken = len(called) - len(sound)
    if broken:
        note += f" {broken} of those called {'is' if broken == 1 else 'are'} not coherent."
    if len(traits) > 1:
        hit = len({c["trait"] for c in called})
        note += f" Traits with a called cell: {hit} of {len(traits)}."
    count = Tile(name="Cells called", value=f"{len(called)} of {len(cells)}", note=note)
    return [largest, count, _full_tile(found, traits, named)]


def _full_tile(found: Found, traits: Sequence[str], named: Any) -> Tile:
    chosen = [c for t in traits if (c := found.best(t, "full"))]
    if chosen:
        top = max(chosen, key=lambda c: c["effect"])
        tile = _tile("Best full fine-tune", top, named(top))
        note = f"{tile.note}, {'called' if top['called'] else 'not called'}."
        return tile.model_copy(update={"note": note})
    any_full = any(c["method"] == "full" for c in found.cells)
    note = "No full fine-tune stayed coherent." if any_full else "This run has no full fine-tune."
    value = "none" if any_full else "not run"
    return Tile(name="Best full fine-tune", value=value, note=note)


def _arm_tiles(found: Found) -> list[Tile]:
    """The reference, the arm that is farthest from it, and how many arms are called."""
    first, axes = found.arms[0], found.axes(found.arms)
    same = [a for a in found.arms if a["trait"] == first["trait"]]
    apart = max(same, key=lambda a: abs(a["effect"] - first["effect"]))
    several = len({a["trait"] for a in found.arms}) > 1

    def tile(name: str, arm: Row) -> Tile:
        what = found.named(arm, axes)
        found_tile = _tile(name, arm, f"{arm['trait']}, {what}" if several else what)
        return found_tile.model_copy(update={"note": f"{found_tile.note}."})

    note = "Student against control under the same conditions, corrected for the number of arms of a trait."
    called = f"{sum(a['called'] for a in found.arms)} of {len(found.arms)}"
    return [
        tile("Reference arm", first),
        tile("Arm farthest from it", apart),
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
