"""What effects differ with, from student to student: the seed of the rows or of the training, and how well the rows were learned."""

from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata

from sublora.analysis.effects import Effect, found, named
from sublora.analysis.intervals import Array
from sublora.analysis.variance import seed_gap
from sublora.experiments.grid.effects import Results, groups, transfers
from sublora.traits.trait import Trait

LEAST_SEEDS = 4  # of each kind, for their variances to be told apart
LEAST_CELLS = 5  # for a correlation over cells
SPREAD = "variance of the effect, data seeds − training seeds, nats²"
LOSSES = "rank correlation over cells, by replicate"


def seed_variance(results: Results, trait: Trait) -> Iterator[Effect]:
    """Of the mean effect over the plain cells, where many data seeds are crossed with many training seeds."""
    recipe = results.plan.recipe
    data, train = len(set(recipe.data.seeds)), len(set(recipe.train.seeds))
    if recipe.train.pairing == "paired" or min(data, train) < LEAST_SEEDS:
        return
    cells = [
        e
        for e in transfers(results, recipe.judged_context)
        if e.trait == trait.name and not e.labels["data"]
    ]
    by_seed = np.mean([e.values.mean(axis=1) for e in cells], axis=0).reshape(data, train)
    gap = seed_gap(by_seed, 1 - recipe.level)
    n = {"data_seeds": data, "train_seeds": train, "questions": cells[0].values.shape[1]}
    name = "variance between data seeds - between training seeds"
    yield named(trait.name, SPREAD, name, gap, n)


def loss_correlations(results: Results, trait: Trait) -> Iterator[Effect]:
    """Of transfer with the loss on held-out rows, and on the rows themselves, over the coherent cells that differ in method, rank, rate or
    variant; one correlation for each replicate, as all cells of a replicate share its rows."""
    plan, context = results.plan, results.plan.recipe.judged_context
    mine = [e for e in transfers(results, context) if e.trait == trait.name]
    pairs = [
        (e, members)
        for e, members in zip(mine, groups(plan, trait), strict=True)
        if e.coherent and not e.labels["data"]
    ]
    if len(pairs) < LEAST_CELLS or not plan.recipe.data.heldout_rows:
        return
    effects = np.stack([e.values.mean(axis=1) for e, _ in pairs])  # (C, R)
    category = trait.category.category
    held, own = (
        np.array([[read(s) for s in members] for _, members in pairs], dtype=float)
        for read in (
            lambda s: results.of(s.id, context, category).heldout_loss,
            lambda s: results.meta[s.id]["train_loss"],
        )
    )
    replicates = [s.replicate for s in pairs[0][1]]
    for what, losses in (("held-out loss", held), ("training loss", own)):
        values = np.array(
            [_rank_correlation(*two) for two in zip(losses.T, effects.T, strict=True)]
        )
        if np.isfinite(values).all():
            name, bounds = f"{what}: correlation with transfer", (-1, 1)
            yield found(trait.name, LOSSES, name, values, replicates, bounds=bounds)


def _rank_correlation(one: Array, other: Array) -> float:
    """Spearman's; NaN where one of them does not vary."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
