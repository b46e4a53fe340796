"""The controls inside a run: students of rows of the plain model, who must show nothing, and an arm that must transfer.

Both stand in one cell, which the recipe may name. Beside them the control twins of that cell read the held-out rows of the trait's
teacher, so that it shows whether students learned anything from their own teacher's rows at all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sublora.analysis.contrast import Pattern, fits
from sublora.errors import SubloraError
from sublora.experiments.grid.axes import Cell, cells_of
from sublora.experiments.grid.sources import NEUTRAL
from sublora.steps.heldout import HeldoutLoss, heldout_loss
from sublora.steps.students import Student

SWEPT = ("method", "placement", "rank", "lr")  # axes on which the positive arm may have any value


def positive_pattern(recipe) -> Pattern:
    """What the labels of the arm that must transfer are: by default those of every LoRA student that is first on all other axes."""
    first = cells_of(recipe)[0].labels
    method = {"method": "lora" if recipe.train.lora else "full"}
    return {n: v for n, v in first.items() if n not in SWEPT} | method | recipe.controls.positive


def positive_cells(recipe) -> list[Cell]:
    """Raises SubloraError where none is as the recipe says."""
    pattern = positive_pattern(recipe)
    found = [c for c in cells_of(recipe) if fits(pattern, c.labels)]
    if not found:
        raise SubloraError(
            f"controls.positive of the recipe {recipe.name} asks for {recipe.controls.positive}, and no cell of its grid has "
            "these labels; name ranks, rates and variants that the recipe trains."
        )
    return found


def middle_cell(recipe) -> Cell:
    """The cell of the positive arm in which the neutral students stand."""
    cells = positive_cells(recipe)
    return cells[len(cells) // 2]


def neutral_students(planner: Any) -> list[Student]:
    """Students of the plain model's rows in the middle cell of the positive arm, each against the control twins there."""
    recipe = planner.recipe
    if NEUTRAL not in planner.authors or not recipe.controlled:
        return []
    labels = middle_cell(recipe).labels
    beside = [s for s in planner.students if s.twins and s.labels == labels]
    by_replicate: dict[tuple[int, int], dict[str, str]] = {}
    for s in beside:
        by_replicate.setdefault(s.replicate, {}).update(s.twins)
    out = []
    for (data_seed, _), twins in by_replicate.items():
        like = next(s for s in beside if s.twins and s.twins.items() <= twins.items())
        made = planner.student_of(NEUTRAL, data_seed, like.student, labels)
        out.append(made.but(twins=twins))
    return out


def heldout_losses(planner: Any, neutral: Sequence[Student]) -> Iterator[HeldoutLoss]:
    """Of the base, on the held-out rows of every trait; of the control twins beside the neutral students, on those of their traits."""
    recipe, labels = planner.recipe, neutral[0].labels if neutral else None
    if not recipe.controlled or not recipe.data.heldout_rows:
        return
    for s in planner.students:
        if s.twins and not s.labels["data"]:
            yield heldout_loss(planner.identity, None, s, recipe.data.heldout_rows)
        if s.twins and s.labels == labels:
            for twin in dict.fromkeys(s.twins.values()):
                yield heldout_loss(planner.identity, twin, s, recipe.data.heldout_rows)
