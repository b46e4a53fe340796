"""What a grid can find, before anything is trained: the smallest effect, and the claims that no result could settle."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from sublora.analysis.claims import evidence_of, judged
from sublora.analysis.effects import Effect, transfer
from sublora.analysis.evidence import Grid as Cells
from sublora.analysis.power import jumps_missed, smallest_effect
from sublora.analysis.rules import MAX_JUMPS
from sublora.experiments.claims import load_claims
from sublora.experiments.grid.axes import cells_of

SEED_SD = 0.35  # nats, of students of neutral rows on micro, between data seeds (validity.py)
QUESTIONS = 4  # of a made-up result
WORLDS: Mapping[str, Callable[[float, float], float]] = {
    # transfer in nats by the places of rank and rate among those of the recipe, from 0 to 1
    "none": lambda rank, rate: 0.0,
    "all": lambda rank, rate: 2.0,
    "hill": lambda rank, rate: 2.0 - 8 * (rank - 0.5) ** 2,
    "fall": lambda rank, rate: 2.0 - 1.8 * rank,
    "best rates fall": lambda rank, rate: 2.0 - 8 * (rate - 0.75 + 0.5 * rank) ** 2,
}


def design_of(recipe) -> list[str]:
    """What `sublora plan` says of a grid's design, a sentence each."""
    clusters, kind = len(recipe.seeds), "data seed"
    if clusters < 2:
        clusters, kind = len(set(recipe.train.seeds)), "training seed"
    if clusters < 2:
        return ["With one replicate no claim can be settled; give two data seeds or more."]
    differ = recipe.seed_sd or SEED_SD
    least = smallest_effect(differ / clusters**0.5, clusters - 1, recipe.level)
    as_where = "" if recipe.seed_sd else " as students of neutral rows on micro do"
    said = [
        f"With {clusters} {kind}s a cell finds an effect of {least:+.2f} nats with a power of 80%, where seeds differ by {differ:g} nats"
        f"{as_where}; corrections over many cells ask for more."
    ]
    if len(recipe.traits) > 1:
        mean = least / len(recipe.traits) ** 0.5
        said.append(
            f"The mean of the {len(recipe.traits)} traits is found from {mean:+.2f} nats where their errors are independent."
        )
    missed = jumps_missed(len(recipe.seeds))
    if missed > MAX_JUMPS:
        said.append(
            f"No trait can be called absent: {len(recipe.seeds)} data seeds would miss it where up to {missed:.0%} of seeds show it, and eight "
            "rule out a third."
        )
    return said + [f"This design cannot settle {name}: {why}" for name, why in unsettled(recipe)]


def unsettled(recipe) -> list[tuple[str, str]]:
    """Claims on transfer that are neither supported nor refuted in any made-up world, with the reason of the world in which all cells
    transfer."""
    mine = [c for c in load_claims() if recipe.name in c.recipes]
    few = [c for c in mine if c.unique_rows and c.unique_rows > recipe.data.rows]
    claims = [c for c in mine if c not in few and not c.of.keys() & {"name", "quantity"}]
    settled, why = (
        set(),
        {c.id: f"It speaks of {c.unique_rows:,} unique rows or more." for c in few},
    )
    for world in WORLDS:
        effects = list(_made_up(recipe, WORLDS[world]))
        cells = [e for e in effects if not e.labels["condition"] and not e.labels["data"]]
        cells = [e for e in cells if e.labels["context"] == recipe.judged_context]
        grid = Cells(cells, recipe.fixed_lr, recipe.level)
        for verdict in judged(claims, effects, evidence_of(grid), recipe.level):
            if verdict.verdict in ("supported", "refuted"):
                settled.add(verdict.claim.id)
            elif world == "all":
                why[verdict.claim.id] = verdict.reason
    return [(name, reason) for name, reason in why.items() if name not in settled]


def _made_up(recipe, world: Callable[[float, float], float]) -> Iterator[Effect]:
    """The transfers of a world in which seeds and questions hardly differ."""
    ranks, rates = (sorted({c.labels[n] or 0 for c in cells_of(recipe)}) for n in ("rank", "lr"))
    asked = product(recipe.measure.contexts, ("", *recipe.measure.conditions))
    places = list(product(recipe.traits, cells_of(recipe), asked))
    facts = {"coherence": 1.0, "number_takeover": 0.0, "heldout_loss": 1.0, "learned": 1.0}
    shape = len(recipe.replicates), QUESTIONS
    for number, (trait, cell, (context, condition)) in enumerate(places):
        at = [
            listed.index(cell.labels[name] or 0) / max(1, len(listed) - 1)
            for name, listed in (("rank", ranks), ("lr", rates))
        ]
        gap = world(*at) + 1e-3 * np.random.default_rng(number).standard_normal(shape)
        p = np.full(shape, 0.1)
        parts = {"student": p, "control": p, "base": p[0], "rise": gap}
        labels = {"trait": trait, "context": context, "condition": condition, **cell.labels}
        yield transfer(labels, gap, parts, recipe.replicates, facts)


def found_by(cells: Sequence[Effect], level: float) -> float | None:
    """The median over cells of the smallest effect that each would have shown with a power of 80%, in nats; None with one replicate."""
    intervals = [c.interval(1 - level) for c in cells]
    able = [i for i in intervals if not i.seeds_unknown and i.se > 0]
    return float(np.median([smallest_effect(i.se, i.df, level) for i in able])) if able else None
