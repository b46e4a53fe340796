"""The figures of what a grid finds beside its cells: arms, findings, traits side by side, values of tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence

from sublora.analysis import page
from sublora.analysis.charts import as_curve, first_upper, titled_over
from sublora.experiments.grid.charts import BOUNDS
from sublora.experiments.grid.found import ENDS, Found, Row, grouped, heat_cell, link, noun
from sublora.text import listed, number, signed

TRAINED, ASKED = "train_context", "context"
MATCHED = (
    "Each stands at the rate that brings it to the held-out loss of the first row, interpolated between the two rates around it; the table "
    "says where none does. "
)


def arm_charts(found: Found, trait: str, slug: str) -> list[page.Chart | page.Heatmap]:
    """A matrix where there are several training contexts, and rows of what differs besides."""
    arms = [a for a in found.arms if a["trait"] == trait]
    axes = found.axes(arms)
    if not axes:
        return []
    numbers = f"Intervals: {found.level}, clustered by data seed, training seed and question; the numbers stand in the table of arms."
    called = f"{sum(a['called'] for a in arms)} of {len(arms)} arms are called"
    charts: list[page.Chart | page.Heatmap] = []
    matrix = TRAINED in axes
    if matrix:
        charts.append(_matrix(found, trait, slug, arms, axes, numbers))
    axis = next(name for name in axes if name != TRAINED or len(axes) == 1)
    if matrix and axis in (TRAINED, ASKED):
        return charts
    others = [name for name in axes if name != axis]
    panels = grouped(arms, lambda arm: found.named(arm, others))
    caption = f"Student − control twin, alike in all else. The broken line is the reference, {arms[0][axis]}. "
    chart = page.Chart(
        kind="rows",
        name=f"arms-{slug}",
        title=f"Effect by {noun(axis)}" + (" at one held-out loss" if found.matched else ""),
        axis="log-odds of the target, student − control, nats",
        reference=arms[0]["effect"],
        reference_name="reference",
        bounds=BOUNDS,
        least=0.5,
        interval=f"{found.level} interval",
        filled="called",
        hollow="not called",
        series=tuple(
            page.Series(points=tuple(_arm_point(arm, axis) for arm in rows), panel=title)
            for title, rows in panels.items()
        ),
        alt=f"Transfer of {trait} by {noun(axis)}, with intervals; {called}.",
        caption=caption + (MATCHED if found.matched else "") + numbers,
    )
    return [*charts, titled_over(as_curve(chart), "Effect")]


def _arm_point(arm: Row, axis: str) -> page.Point:
    ends = {name: arm[f"effect{end}"] for name, end in ENDS.items()}
    return page.point(str(arm[axis]), ends, hollow=not arm["called"], link=link(arm))


def _matrix(
    found: Found, trait: str, slug: str, arms: Sequence[Row], axes: Sequence[str], numbers: str
) -> page.Heatmap:
    """Training context by context asked, a block for whatever differs besides; of the first condition alone."""
    if "condition" in axes:
        arms = [a for a in arms if a["condition"] == arms[0]["condition"]]
    others = [name for name in axes if name not in (TRAINED, ASKED, "condition")]
    blocks = grouped(arms, lambda arm: found.named(arm, others))
    effects, bases = [a["effect"] for a in arms], {a[ASKED]: a["p_base"] for a in arms}
    return page.Heatmap(
        name=f"contexts-{slug}",
        title="Training context by context asked",
        row_axis="trained in",
        scale="student − control, nats",
        low=min([0.0, *effects]),
        high=max([0.5, *effects]),
        marked="called after correction",
        hatched="not coherent",
        framed="trained and asked alike",
        blocks=tuple(
            page.HeatBlock(
                title=title,
                rows=tuple(dict.fromkeys(a[TRAINED] for a in rows)),
                columns=tuple(dict.fromkeys(a[ASKED] for a in rows)),
                x_axis="asked in",
                cells=tuple(
                    heat_cell(a, a[TRAINED], a[ASKED], framed=a[TRAINED] == a[ASKED]) for a in rows
                ),
            )
            for title, rows in blocks.items()
        ),
        alt=f"Matrix of the transfer of {trait} by training context and context asked; {sum(a['called'] for a in arms)} of {len(arms)} are called.",
        caption="Student − control twin, both trained in the row’s context and asked in the column’s. ● called after correction over all "
        f"arms. P(target) of the base: {listed(f'{name} {number(p)}' for name, p in bases.items())}. {numbers}",
    )


def finding_charts(found: Found, trait: str, slug: str) -> list[page.Chart]:
    """A curve for each group of findings over steps, layers or rows; of the others a panel a group, a row a finding."""
    mine = [f for f in found.findings if f["trait"] == trait]
    panels = _panels(grouped(mine, lambda f: f["group"]))

    def chart(name: str, title: str, shown: Mapping[str, Sequence[tuple[str, Row]]]) -> page.Chart:
        return page.Chart(
            kind="rows",
            name=f"{name}-{slug}",
            title=title,
            axis="",
            interval=f"{found.level} interval",
            filled="interval clear of 0",
            hollow="not clear of 0",
            series=tuple(
                page.Series(
                    panel="" if title == panel else panel, points=tuple(_point(*r) for r in rows)
                )
                for panel, rows in shown.items()
            ),
            alt=f"{sum(map(len, shown.values()))} findings with intervals: {'; '.join(shown)}.",
            caption=f"What the run found besides transfer, mean with its {found.level} interval over replicates, or over questions where "
            "there is the one base only. Nothing here is corrected; the numbers stand in the table of findings.",
        )

    made = {
        t: as_curve(chart(f"over-{k}", t, {t: rows}))
        for k, (t, rows) in enumerate(panels.items(), 1)
    }
    curves = [titled_over(c, f"{first_upper(t)},") for t, c in made.items() if c.kind == "lines"]
    others = {t: rows for t, rows in panels.items() if made[t].kind != "lines"}
    return [*curves, *([chart("findings", "Findings", others)] if others else [])]


def _point(name: str, finding: Row) -> page.Point:
    return page.point(name, finding, hollow=not (finding["low"] > 0 or finding["high"] < 0))


def _panels(groups: Mapping[str, Sequence[Row]]) -> dict[str, list[tuple[str, Row]]]:
    """Title -> (name, finding): a group, or each of the words before a colon that several names of a group share."""
    out: dict[str, list[tuple[str, Row]]] = {}
    for group, rows in groups.items():
        heads = Counter(f["finding"].partition(": ")[0] for f in rows if ": " in f["finding"])
        split = len(heads) > 1 and heads.total() == len(rows) and min(heads.values()) > 1
        for f in rows:
            head, _, rest = f["finding"].partition(": ")
            name = rest if heads[head] > 1 and (split or len(heads) == 1) else f["finding"]
            out.setdefault(f"{group}: {head}" if split else group, []).append((name, f))
    return out


def overview(found: Found, traits: Sequence[str]) -> page.Chart | None:
    """A row a trait: the best LoRA cell and the best full fine-tune, each seed at the rate that the others choose."""
    series = []
    for method, name, look in (
        ("lora", "best LoRA", "student"),
        ("full", "best full fine-tune", "full"),
    ):
        best = {t: c for t in traits if (c := found.best(t, method))}
        points = tuple(
            page.point(trait, {n: c[f"effect_report{end}"] for n, end in ENDS.items()})
            for trait, c in best.items()
        )
        series += [page.Series(name=name, look=look, points=points)] if points else []
    if not series:
        return None
    texts = [f"{p.label} {signed(p.estimate)}" for p in series[0].points]
    return page.Chart(
        kind="rows",
        name="traits",
        title="Effect per trait",
        axis="log-odds of the target, student − control, nats",
        bounds=BOUNDS,
        least=0.5,
        interval=f"{found.level} interval",
        series=tuple(series),
        alt=f"Effect per trait, student minus control, with intervals: {'; '.join(texts)}.",
        caption="The best rank, each seed at the learning rate that the other seeds choose. The best of several ranks reads high.",
    )


def token_maps(found: Found, trait: str, slug: str) -> page.TokenMaps | None:
    """The adapter's part at every token of a few prompts."""
    prompts = found.tokens.get(trait, ())
    if not prompts:
        return None
    return page.TokenMaps(
        name=f"tokens-{slug}",
        title="Token by token",
        unit="nats",
        caption="The adapter’s part at every token of a prompt, in nats of the target’s log-probability, student − control twin, mean over "
        f"{prompts[0]['replicates']} replicates. Left out: what is lost when the adapter is off at this token alone. Alone: what is gained "
        "when it is on at this token alone. Interaction: left out − alone; above zero, the token works with others, below zero, others can "
        "stand in for it. Neither view needs to add up to the whole effect. Blue raises the target, dashed orange lowers it; the value is "
        "shown on hover and in the table.",
        prompts=tuple(
            page.TokenPrompt(
                question=p["question"],
                pieces=tuple(p["pieces"]),
                classes=tuple(p["classes"]),
                views={
                    "left out": tuple(p["left_out"]),
                    "alone": tuple(p["alone"]),
                    "interaction": tuple(
                        a - b for a, b in zip(p["left_out"], p["alone"], strict=True)
                    ),
                },
                whole=p["effect"],
            )
            for p in prompts
        ),
    )
