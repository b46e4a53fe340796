"""Experiments that hold grids of students: the same stages, datasets and students as a grid's recipe, and tasks of their own beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from sublora.chat import UserText
from sublora.cost import Costs, RowSizes
from sublora.experiments.experiment import Experiment
from sublora.experiments.units import unit_task
from sublora.model import known_shape
from sublora.plan import Plan, make_plan, student_grid
from sublora.recipe import Absent, DataSpec, MeasureSpec, Recipe, TrainSpec, misfit
from sublora.steps.step import Step
from sublora.units import data_units, measure_units, teach_units, train_units, transform_units

TOKENS_PER_ROW = 40.0  # what a row is reckoned with where packs are filled: a matter of speed alone


class GridExperiment(Experiment):
    """A recipe with the sections of a grid; `grid` is that grid."""

    model: str = "micro"
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    traits: tuple[str, ...] = Field(min_length=1)
    trait_files: tuple[str, ...] = ()
    contexts: Annotated[dict[str, str | UserText], Absent] = Field(default_factory=dict)
    data: DataSpec
    train: TrainSpec
    measure: MeasureSpec = MeasureSpec()

    @model_validator(mode="after")
    def _fits(self) -> GridExperiment:
        try:
            grid = self.grid
        except ValidationError as error:
            first = error.errors()[0]
            where = first.get("ctx", {}).get("where") or ".".join(map(str, first["loc"]))
            raise misfit(where, first["msg"]) from None
        if len(student_grid(grid)) != 1:
            raise misfit("train", "has several cells, keep one rank and one learning rate")
        return self

    @cached_property
    def grid(self) -> Recipe:
        return self.grid_on(self.model)

    def grid_on(self, model: str, **data: Any) -> Recipe:
        """The grid with another model as the students' base, and with changes of `data`."""
        return Recipe(
            name=self.name,
            title=self.title,
            summary=self.summary,
            model=model,
            dtype=self.dtype,
            traits=self.traits,
            trait_files=self.trait_files,
            contexts=self.contexts,
            data=self.data.model_copy(update=data),
            train=self.train,
            measure=self.measure,
            level=self.level,
        )

    @property
    def model_name(self) -> str | None:
        return self.model

    def loading(self) -> dict[str, str | None]:
        return {"dtype": self.dtype, "revision": None}

    @property
    def out_words(self) -> list[str]:
        return [self.model.rstrip("/").split("/")[-1], *(t.lower() for t in self.traits[:3])]


def plan_of(grid: Recipe, identity: Mapping[str, str]) -> Plan:
    return make_plan(grid, dict(identity), TOKENS_PER_ROW)


def grid_costs(grid: Recipe) -> Costs:
    return Costs(
        known_shape(grid.model),
        RowSizes(prompt=TOKENS_PER_ROW - 12, completion=12),
        grid.data.rows,
        grid.measure.samples,
    )


def grid_steps(plans: Sequence[Plan]) -> list[Step]:
    """The steps of several grids, each on its own model, with what they share made once."""
    steps: dict[str, Step] = {}
    for units_of in (teach_units, data_units, transform_units, train_units, measure_units):
        for plan in plans:
            costs = grid_costs(plan.recipe)
            for unit in units_of(plan):
                steps.setdefault(unit.id, unit_task(unit, costs, plan.recipe.model))
    return list(steps.values())
