"""The kinds of experiments, and the one way to open a recipe of any kind."""

from difflib import get_close_matches
from importlib import import_module
from typing import Any

from sublora.errors import SubloraError
from sublora.experiments.chosen import with_choices
from sublora.experiments.document import Document, read_document
from sublora.experiments.experiment import Experiment

KINDS = {
    "grid": "grid.grid:Grid",
    "aux-logits": "aux_logits:AuxLogits",
    "cross-model": "cross_model:CrossModel",
    "in-context": "in_context:InContext",
    "judged": "judged:Judged",
    "number-statistics": "number_statistics:NumberStatistics",
    "one-step": "one_step:OneStep",
    "one-step-model": "one_step_model:OneStepModel",
}


def open_recipe(name: str, **flags: Any) -> Experiment:
    """The recipe of a file, of the kind that it names, or a grid; flags as for `read_document`."""
    return recipe_of(with_choices(read_document(name, **flags)))


def recipe_of(document: Document) -> Experiment:
    kind = document.values.get("kind", "grid")
    if near := [k for k in get_close_matches("kind", map(str, document.values), 1) if k != "kind"]:
        where = document.place(near)  # said alone: all other keys are those of another kind
        raise SubloraError(f"{where}: unknown key '{near[0]}'; did you mean 'kind'?")
    found = kind_named(kind, document.place(("kind",)))
    recipe = document.checked(found)
    recipe.check_places(document.place)
    return recipe


def kind_named(kind: Any, where: str) -> type[Experiment]:
    """The class of a kind. Raises SubloraError for an unknown one; `where` is the place to fix."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise SubloraError(
            f"{where}: there is no kind '{kind}'; use {', '.join(KINDS)}, or leave it out for a grid."
        )
    module, _, name = KINDS[kind].partition(":")
    return getattr(import_module(f"sublora.experiments.{module}"), name)
