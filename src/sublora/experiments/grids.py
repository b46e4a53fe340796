"""Experiments with a grid of students of one cell, and steps of their own beside them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import model_validator

from sublora.experiments.grid.axes import cells_of
from sublora.experiments.grid.recipe import Recipe
from sublora.experiments.grid.sources import contexts_of
from sublora.experiments.schema import misfit
from sublora.models.chat import Context


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

    def grid_on(self, model: str, **data: Any) -> Recipe:
        """The grid with another model as the students' base, and with changes of `data`."""
        own = {name: getattr(self, name) for name in Recipe.model_fields}
        changed = {"kind": "grid", "model": model, "data": self.data.model_copy(update=data)}
        return Recipe(**own | changed)
