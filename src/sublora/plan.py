"""Old names of `experiments.grid.plan`, until all look for them there."""

from sublora.errors import SubloraError
from sublora.experiments.grid import plan as _plan
from sublora.experiments.grid.plan import PACK_STUDENTS, PACK_TOKENS, Plan
from sublora.experiments.grid.sources import (
    CONTROL,
    contexts_of,
    control_source,
    source_of,
    teacher_context,
    traits_of,
    twin_of,
)
from sublora.model import known_shape
from sublora.models.known import Known
from sublora.steps.measurement import Measurement as MeasureStage
from sublora.steps.sizes import Sizes
from sublora.steps.students import Student as StudentStage

__all__ = [
    "CONTROL",
    "PACK_STUDENTS",
    "PACK_TOKENS",
    "MeasureStage",
    "Plan",
    "StudentStage",
    "contexts_of",
    "control_source",
    "make_plan",
    "source_of",
    "teacher_context",
    "traits_of",
    "twin_of",
]


def make_plan(recipe, identity, tokens_per_row, device="cpu"):
    try:
        shape = known_shape(recipe.model)
    except SubloraError:
        shape = None
    sizes = Sizes(shape, tokens_per_row * 0.7, tokens_per_row * 0.3)
    return _plan.make_plan(recipe, Known(recipe.model, identity, shape, device=device), sizes)
