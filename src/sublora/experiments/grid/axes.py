"""The axes of a grid: each is one entry here, with its name and how its values change a student's training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sublora.analysis.effects import Label
from sublora.experiments.grid.sources import variants_of
from sublora.experiments.schema import StudentVariant
from sublora.packs.spec import StudentSpec

Labels = Mapping[str, Label]
Changes = Mapping[Label, Mapping[str, Any]]
"""By the value of an axis: what it sets of a `StudentSpec`."""


@dataclass(frozen=True)
class Axis:
    """`values` of a recipe, given a student's labels on the axes before this one."""

    name: str
    values: Callable[[Any, Labels], Changes]


def _variants(recipe, labels: Labels) -> Changes:
    variants = student_variants(recipe).items()
    return {name: {} if v.epochs is None else {"epochs": v.epochs} for name, v in variants}


def _methods(recipe, labels: Labels) -> Changes:
    return {m: {"method": m} for m in ("lora", "full") if getattr(recipe.train, m) is not None}


def _placements(recipe, labels: Labels) -> Changes:
    if labels["method"] == "full":
        return {"": {}}
    lora = recipe.train.lora
    places = {name: p.targets for name, p in lora.placements.items()} or {"": lora.targets}
    return {name: {"targets": targets} for name, targets in places.items()}


def _ranks(recipe, labels: Labels) -> Changes:
    if labels["method"] == "full":
        return {None: {"rank": None}}
    return {r: {"rank": r, "alpha": recipe.train.lora.alpha} for r in recipe.train.lora.ranks}


def _optimizers(recipe, labels: Labels) -> Changes:
    found = recipe.train.optimizers if labels["method"] == "lora" else {}
    return {name: o.model_dump(exclude={"lrs"}) for name, o in found.items()} or {"": {}}


def _rates(recipe, labels: Labels) -> Changes:
    own = recipe.train.optimizers.get(labels["optimizer"])
    rates = own.lrs if own and own.lrs else getattr(recipe.train, labels["method"]).lrs
    return {lr: {"lr": lr} for lr in rates}


AXES = (
    Axis("data", lambda recipe, _: {name: {} for name in variants_of(recipe)}),
    Axis("train_context", lambda r, _: {name: {"context": name} for name in r.train_contexts}),
    Axis("variant", _variants),
    Axis("method", _methods),
    Axis("placement", _placements),
    Axis("rank", _ranks),
    Axis("optimizer", _optimizers),
    Axis("lr", _rates),
)


def axes_of(recipe) -> tuple[Axis, ...]:
    """The axes of a recipe: those of all grids, and one for each entry of `train.vary`."""

    def varied(name: str) -> Axis:
        return Axis(name, lambda recipe, _: {v: {name: v} for v in recipe.train.vary[name]})

    return (*AXES, *map(varied, recipe.train.vary))


@dataclass(frozen=True)
class Cell:
    """One place of the grid: `labels` by axis, and what these set of a `StudentSpec`."""

    labels: Labels = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def cells_of(recipe) -> list[Cell]:
    """All places of the grid, the first axis changing slowest."""
    cells = [Cell()]
    for axis in axes_of(recipe):
        cells = [
            Cell({**cell.labels, axis.name: value}, {**cell.values, **changes})
            for cell in cells
            for value, changes in axis.values(recipe, cell.labels).items()
        ]
    return cells


SHARED = ("schedule", "warmup_steps", "epochs", "batch_size", "optimizer", "momentum")
SHARED += ("weight_decay", "clip")


def student_spec(recipe, cell: Cell, seed: int = 0) -> StudentSpec:
    """The training of a cell's student. Raises ValueError where values do not fit."""
    shared = {name: getattr(recipe.train, name) for name in SHARED}
    return StudentSpec(**shared | dict(cell.values), seed=seed)


def student_variants(recipe) -> dict[str, StudentVariant]:
    """The variants of the students, or the one called ""."""
    return recipe.variants or {"": StudentVariant()}
