"""Plans in tests: on a model with this identity, and packs filled with so many tokens a row."""

from sublora.errors import SubloraError
from sublora.experiments.grid.plan import Plan
from sublora.experiments.grid.plan import make_plan as plan_of
from sublora.experiments.grid.recipe import Recipe
from sublora.models.base import known_shape
from sublora.models.known import Known
from sublora.steps.sizes import Sizes
from sublora.steps.step import Step


def make_plan(recipe: Recipe, identity: dict, tokens: float = 60.0, device: str = "cpu") -> Plan:
    try:
        shape = known_shape(recipe.model)
    except SubloraError:
        shape = None
    known = Known(recipe.model, identity, shape, device=device)
    return plan_of(recipe, known, Sizes(shape, prompt=tokens, completion=0.0))


def steps_of(plan: Plan, *kinds: str) -> list[Step]:
    return [step for step in plan.steps if step.kind in kinds]
