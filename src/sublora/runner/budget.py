"""A grid cut down to what fits a time, by the plan's own pace: always in the same order, and never below what can be judged."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sublora.errors import SubloraError
from sublora.experiments.experiment import Experiment
from sublora.runner.folder import old_manifest
from sublora.text import duration, listed

UNITS = {"s": 1, "m": 60, "h": 3600}
Values = dict[str, Any]


@dataclass(frozen=True)
class Fitted:
    """A recipe that was cut so many times to fit a budget, and what was left out, as a sentence that its caveat has too."""

    recipe: Experiment
    asked: str
    cuts: int
    said: str

    @property
    def entry(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {"asked": self.asked, "cuts": self.cuts, "left_out": self.said}


def seconds_of(budget: str) -> float:
    """Raises SubloraError for what is no time."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if not found or not float(found[1]):
        why = f"The budget {budget} is no time; give seconds, minutes or hours, such as --budget 45s, 90m or 2h."
        raise SubloraError(why)
    return float(found[1]) * UNITS[found[2]]


def within(
    recipe: Experiment, budget: str, out: Path | None, seconds: Callable[[Experiment], float]
) -> Fitted:
    """The recipe after the fewest cuts after which it takes no longer than the budget, in `seconds` of a recipe. A run in the folder `out`
    that was cut to this budget keeps its cuts, however fast the machine is by now.

    Raises SubloraError where the budget is no time, or the smallest recipe takes longer.
    """
    allowed, ladder = seconds_of(budget), [recipe, *_smaller(recipe)]
    before = (old_manifest(out).get("budget") if out else None) or {}
    if before.get("asked") == budget and before["cuts"] < len(ladder):
        cuts = before["cuts"]
    else:
        # each takes no longer than the one before
        cuts = bisect_left(ladder, True, key=lambda smaller: seconds(smaller) <= allowed)
    if cuts == len(ladder):
        least = duration(seconds(ladder[-1]))
        which = (
            "the smallest part of it that can be judged"
            if cuts > 1
            else "it has no part that could be left out, and"
        )
        raise SubloraError(
            f"The recipe {recipe.name} does not fit --budget {budget}: {which} takes about {least}."
        )
    if not cuts:
        return Fitted(recipe, budget, 0, "")
    said = f"Left out to fit {budget}: {_left_out(recipe, ladder[cuts])}."
    caveat = f"{recipe.caveat} {said}" if recipe.caveat else said
    return Fitted(ladder[cuts].model_copy(update={"caveat": caveat}), budget, cuts, said)


def _smaller(recipe: Experiment) -> Iterator[Experiment]:
    """Recipes that are each a notch smaller than the one before. What leaves the remaining students as they are comes first."""
    values = recipe.model_dump(mode="json")
    for way, least in (
        *((_samples, 4), (_seeds, 3), (_rates, 2), (_ranks, 3), (_traits, 4), (_rows, 256)),
        *((_rates, 1), (_ranks, 2), (_traits, 2), (_rows, 128), (_arms, 0), (_seeds, 2)),
    ):
        while way(changed := deepcopy(values), least):
            try:
                smaller = type(recipe).model_validate(changed)
            except ValidationError:  # the recipe's question needs what would be cut
                break
            values = changed
            yield smaller


def _section(values: Values, *path: str) -> Values:
    """What stands there, or an empty section."""
    for key in path:
        inner = values.get(key)
        values = inner if isinstance(inner, dict) else {}
    return values


# Each takes one notch away, in place, and says whether there was one.


def _samples(values: Values, least: int) -> bool:
    asked = _section(values, "measure")
    if asked.get("samples", 0) <= least:
        return False
    asked["samples"] = max(least, asked["samples"] // 2)
    return True


def _seeds(values: Values, least: int) -> bool:
    """Of crossed ones a training seed down to two, then of both."""
    data, train = (_section(values, name) for name in ("data", "train"))
    longer = [s for s in (data, train) if len(s.get("seeds", ())) > least]
    if train.get("pairing") == "crossed" and len(train["seeds"]) > 2:
        longer = [train]
    for section in longer:
        section["seeds"].pop()
    return bool(longer)


def _rates(values: Values, least: int) -> bool:
    """Of every grid, the rate farthest from the middle: of LoRA the lower of two, of full fine-tunes the higher; those that something is
    said about stay."""
    train = _section(values, "train")
    full, adapters = _section(train, "full"), [_section(train, "lora")]
    adapters += _section(train, "optimizers").values()
    kept = (values.get("fixed_lr"), train.get("match_lr"))
    cut = False
    for grid in (full, *adapters):
        rates = sorted(grid.get("lrs", ()), reverse=grid is full)
        free = [r for r in rates if grid is full or r not in kept]
        if len(rates) > least and free:
            middle = (len(rates) - 1) / 2
            grid["lrs"].remove(max(free, key=lambda r: abs(rates.index(r) - middle)))
            cut = True
    return cut


def _ranks(values: Values, least: int) -> bool:
    """Evenly spread ones stay, with the lowest and the highest; of two, the lowest goes."""
    lora = _section(values, "train", "lora")
    ranks = sorted(lora.get("ranks", ()))
    if len(ranks) <= least:
        return False
    few = len(ranks) - 1
    lora["ranks"] = [ranks[-1 - round(i * few / max(1, few - 1))] for i in reversed(range(few))]
    return True


def _traits(values: Values, least: int) -> bool:
    if len(values.get("traits", ())) <= least:
        return False
    values["traits"].pop()
    return True


def _rows(values: Values, least: int) -> bool:
    data = _section(values, "data")
    if data.get("rows", 0) <= least:
        return False
    data["rows"] = max(least, data["rows"] // 2)
    return True


def _arms(values: Values, least: int) -> bool:
    """The last of the arms that differ in their rows; those as written stay."""
    arms = _section(values, "data", "variants")
    if len(arms) <= least:
        return False
    arms.popitem()
    return True


def _left_out(whole: Experiment, part: Experiment) -> str:
    """What a cut recipe lacks of the whole one."""
    before, after = (r.model_dump(mode="json") for r in (whole, part))
    optimizers = _section(before, "train", "optimizers")
    lists = {
        ("data", "seeds"): "data seeds",
        ("train", "seeds"): "training seeds",
        ("train", "lora", "lrs"): "learning rates",
        ("train", "full", "lrs"): "learning rates of full fine-tunes",
        **{("train", "optimizers", o, "lrs"): f"learning rates of {o}" for o in optimizers},
        ("train", "lora", "ranks"): "ranks",
        ("traits",): "traits",
        ("data", "variants"): "arms",
    }
    said = []
    for (*path, key), what in lists.items():
        old, new = (_section(values, *path).get(key) or [] for values in (before, after))
        if lost := [x for x in old if x not in new]:
            said.append(f"{what} {listed(lost)}")
    for section, key, what in (
        ("data", "rows", "rows of each dataset"),
        ("measure", "samples", "sampled answers to each question"),
    ):
        old, new = (_section(values, section).get(key, 0) for values in (before, after))
        if old > new:
            said.append(f"{old - new} of {old} {what}")
    return "; ".join(said)
