"""The kinds of experiments, and the one way to open a recipe of any kind."""

from importlib import import_module
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.experiment import Experiment
from sublora.experiments.document import Document, read_document
from sublora.recipe import Recipe, grid_of

KINDS = {
    "aux-logits": "aux_logits:AuxLogits",
    "cross-model": "cross_model:CrossModel",
    "in-context": "in_context:InContext",
    "judged": "judged:Judged",
    "number-statistics": "number_statistics:NumberStatistics",
    "one-step": "one_step:OneStep",
    "one-step-model": "one_step_model:OneStepModel",
}


def open_recipe(name: str, **flags: Any) -> Recipe | Experiment:
    """A grid, or the experiment that the file's `kind` names; flags as for `load_recipe`, and it raises the same."""
    return recipe_of(read_document(name, **flags))


def recipe_of(document: Document) -> Recipe | Experiment:
    kind = document.values.get("kind")
    return (
        grid_of(document)
        if kind is None
        else document.checked(kind_named(kind, document.place(("kind",))))
    )


def kind_named(kind: Any, where: str) -> type[Experiment]:
    """The class of a kind. Raises SubloraError for an unknown one; `where` is the place to mend."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise SubloraError(
            f"{where}: there is no kind '{kind}'; use {', '.join(KINDS)}, or leave it out for a grid."
        )
    module, _, name = KINDS[kind].partition(":")
    return getattr(import_module(f"sublora.experiments.{module}"), name)


def default_out(recipe: Experiment) -> Path:
    """Where a run lives unless --out says otherwise."""
    return Path("runs") / "-".join([recipe.name, *recipe.out_words])
