"""Experiments with a grid of students of one cell, and steps of their own beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import model_validator

from sublora.chat import Context
from sublora.experiments.grid.axes import cells_of
from sublora.experiments.grid.plan import Plan, make_plan, sizes_of
from sublora.experiments.grid.recipe import Recipe
from sublora.experiments.grid.sources import contexts_of
from sublora.experiments.schema import misfit
from sublora.model import known_shape, model_source
from sublora.models.known import Known, known_model
from sublora.steps.sizes import Sizes
from sublora.steps.step import Step


class GridExperiment(Recipe):
    """A recipe with the sections of a grid, with one rank, rate and so on."""

    @model_validator(mode="after")
    def _one_cell(self) -> GridExperiment:
        if len({tuple(c.labels.values())[1:] for c in cells_of(self)}) != 1:
            raise misfit("train", "has several cells, keep one rank and one learning rate")
        return self

    @cached_property
    def asked_in(self) -> Context:
        """The context that students are judged in."""
        return contexts_of(self)[self.judged_context]

    @property
    def grid(self) -> GridExperiment:
        return self

    def grid_on(self, model: str, **data: Any) -> Recipe:
        """The grid with another model as the students' base, and with changes of `data`."""
        own = {name: getattr(self, name) for name in Recipe.model_fields}
        changed = {"kind": "grid", "model": model, "data": self.data.model_copy(update=data)}
        return Recipe(**own | changed)


def plan_of(grid: Recipe, identity: Mapping[str, str]) -> Plan:
    return make_plan(grid, _known(grid, identity))


def _known(grid: Recipe, identity: Mapping[str, str]) -> Known:
    if Path(model_source(grid.model)).is_dir():
        return replace(known_model(grid.model, grid.dtype), identity=dict(identity))
    return Known(grid.model, identity, known_shape(grid.model), device="cuda")


def grid_sizes(grid: Recipe, identity: Mapping[str, str]) -> Sizes:
    return sizes_of(grid, _known(grid, identity))


def grid_steps(plans: Sequence[Plan]) -> list[Step]:
    """The steps of several grids, each on its own model, with what they share made once."""
    steps: dict[str, Step] = {}
    kinds = dict.fromkeys(step.kind for plan in plans for step in plan.steps)
    for kind in kinds:
        for plan in plans:
            steps |= {s.id: s for s in plan.steps if s.kind == kind and s.id not in steps}
    return list(steps.values())
