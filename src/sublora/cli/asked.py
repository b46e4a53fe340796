"""The recipe that the words of a command ask for, and the folder of its run. Heavy imports wait inside."""

from pathlib import Path
from typing import Any

import typer

from sublora.errors import SubloraError


def asked_for(
    recipe: str | None,
    model: str | None,
    trait: list[str] | None,
    preset: str | None,
    sets: list[str] | None,
) -> dict[str, Any]:
    """The words of a command as `open_recipe` takes them."""
    flags = {"preset": preset, "sets": sets or [], "model": model, "traits": trait or []}
    return {"name": recipe, **flags}


def sized(asked: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The words of a command with the preset that its model takes where they do not say it, and what is said of that."""
    from sublora.experiments.chosen import for_small_models

    small = for_small_models(asked)
    return (asked | {"preset": small[0]}, small[1]) if small else (asked, None)


def opened(asked: dict[str, Any], file: Path | None):
    """The recipe that a command asks for, or that of a prereg file, which is given too."""
    from sublora.experiments.kinds import open_recipe
    from sublora.runner.prereg import read_prereg, registered_recipe

    if file is None and asked["name"] is None:
        raise SubloraError("Give a recipe (`sublora ls recipes` lists them), or --prereg FILE.")
    registered = None if file is None else read_prereg(file)
    asked, said = (asked, None) if registered else sized(asked)
    recipe = registered_recipe(registered, asked) if registered else open_recipe(**asked)
    for note in filter(None, (said, recipe.caveat)):
        typer.echo(f"Note: {note}", err=True)
    return recipe, registered


def cut_to_fit(
    recipe: Any, budget: str, folder: Path | None, device: str, threads: int, **rate: Any
):
    """The recipe as it fits the budget, and what run.json says of that; `rate` as for `estimate`."""
    from sublora.runner.budget import within
    from sublora.runner.estimate import seconds_of
    from sublora.store import Store

    take = seconds_of(recipe, Store(), device, threads, **rate)
    fitted = within(recipe, budget, folder, take)
    if fitted.said:
        typer.echo(f"Note: {fitted.said}", err=True)
    return fitted.recipe, fitted.entry


def with_added_rates(recipe: Any, folder: Path, more: bool, fixed: bool):
    """The recipe with the learning rates that were added to its run, and with `more` those that the run asks for; a `fixed` one as it is."""
    from sublora.runner.extend import continued, extended

    if more and fixed:
        raise SubloraError("--extend-lrs changes a finished run; leave out --fresh and --prereg.")
    if not more:
        return recipe if fixed else continued(recipe, folder)
    recipe, said = extended(recipe, folder)
    typer.echo(said, err=True)
    return recipe


def fresh_folder(asked: Path) -> Path:
    """The folder of a new run beside another."""
    from sublora.runner.folder import fresh_out

    folder = fresh_out(asked)
    stays = f" {asked} stays as it is." if folder != asked else ""
    typer.echo(
        f"A new run in {folder}.{stays} What the store has is shared and not made again. To go on with this run later, give "
        f"--out {folder} in place of --fresh.",
        err=True,
    )
    return folder
