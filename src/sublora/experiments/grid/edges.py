"""Which best learning rates of a grid lie at its edge, and the rates that would show whether they are the best."""

from __future__ import annotations

from collections.abc import Sequence

from sublora.analysis.best_rate import best_rates, edge_sentence, rates_to_add
from sublora.analysis.effects import Effect
from sublora.experiments.grid.recipe import Recipe
from sublora.text import listed, rate


def at_the_edge(recipe: Recipe, cells: Sequence[Effect]) -> tuple[list[str], list[float]]:
    """A sentence for each trait, and the rates to add for all of them; nothing where optimizers have rates of their own."""
    sentences, added = [], set()
    for trait in dict.fromkeys(c.trait for c in cells):
        lora = [c for c in cells if c.trait == trait and c.labels["method"] == "lora"]
        edges = [b.edge for b in best_rates(lora).values() if b.edge is not None]
        more = rates_to_add(edges, recipe.train.lora.lrs) if edges else []
        if more and not recipe.train.optimizers:
            added |= set(more)
            what = edge_sentence(edges)
            sentences.append(
                f"For {trait}, {what}, so more may pass beyond it; add {listed(map(rate, more))} with --extend-lrs."
            )
    return sentences, sorted(added)


def added_sentence(recipe: Recipe) -> list[str]:
    """Which rates were added after a first look; nothing where none was."""
    if not recipe.added_lrs:
        return []
    return [
        f"The learning rates {listed(map(rate, recipe.added_lrs))} were added by --extend-lrs after a first look at the results of the others."
    ]
