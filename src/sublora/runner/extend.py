"""The learning rates that a finished run asks for, added to its recipe: what was made is used again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sublora.errors import SubloraError
from sublora.experiments.experiment import Experiment
from sublora.runner.folder import guard_other_recipe, old_manifest
from sublora.text import listed, rate


def with_rates(recipe: Experiment, added: Sequence[float]) -> Experiment:
    """The recipe with further LoRA rates, which it calls added."""
    values = recipe.model_dump(mode="json")
    values["train"]["lora"]["lrs"] += added
    values["added_lrs"] += added
    return type(recipe).model_validate(values)


def continued(recipe: Experiment, out: Path) -> Experiment:
    """The recipe with the rates that were added to the run in this folder, where it is a run of it."""
    before = old_manifest(out).get("recipe") or {}
    added = before.get("added_lrs")
    if not added or recipe.model_dump(mode="json").get("added_lrs") != []:
        return recipe
    whole = with_rates(recipe, added)
    return whole if whole.model_dump(mode="json") == before else recipe


def extended(recipe: Experiment, out: Path) -> tuple[Experiment, str]:
    """The recipe with the rates that the run in this folder proposes, and what was done; where an extended run is not finished, it goes on.

    Raises SubloraError where there is no finished run of the recipe, or nothing that could be extended.
    """
    values, old = recipe.model_dump(mode="json"), old_manifest(out)
    if "added_lrs" not in values or not values["train"]["lora"]:
        raise SubloraError(
            f"The recipe {recipe.name} has no grid of LoRA learning rates; leave out --extend-lrs."
        )
    if not old:
        raise SubloraError(
            f"There is no run in {out} whose learning rates could be extended; run the recipe without --extend-lrs first."
        )
    recipe = continued(recipe, out)
    guard_other_recipe(out, recipe)
    if old.get("status") != "done":
        if recipe.added_lrs:
            return recipe, "The extended run goes on."
        raise SubloraError(
            f"The run in {out} is not finished; run it to its end without --extend-lrs, then extend it."
        )
    more = old.get("rates_to_add") or []
    if not more:
        return recipe, f"No best rate of the run in {out} lies at an edge, so none is added."
    return with_rates(recipe, more), f"Added learning rates: {listed(map(rate, more))}."
