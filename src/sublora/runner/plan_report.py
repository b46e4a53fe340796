"""What `sublora plan` prints: artifacts by kind, tokens, operations, time, and what is done; no weights are loaded."""

from __future__ import annotations

from typing import Any

import typer

from sublora.experiments.experiment import Experiment
from sublora.runner.estimate import Estimate
from sublora.runner.table import print_table
from sublora.steps.step import total
from sublora.text import duration


def plan_json(recipe: Experiment, found: Estimate) -> dict[str, Any]:
    """What `found` says of the recipe, as `plan --json` prints it."""
    shape = found.known.shape
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "model": recipe.model_name,
        "parameters": shape and shape.parameters + shape.norms,
        "varies": recipe.varied() or [recipe.sentence],
        "makes": [
            {
                "kind": r.kind,
                "count": r.count,
                "done": r.done,
                "left": r.count - r.done,
                "tokens_left": r.cost.tokens,
                "flops_left": r.cost.flops,
                "seconds_left": found.pace.seconds(r.kind, r.cost),
            }
            for r in found.rows
        ],
        "steps": len(found.steps),
        "seconds_left": found.seconds,
        "pace": found.pace.said,
        "design": list(recipe.design()),
        "bill": recipe.bill(found.known, found.missing) or None,
        "counted": found.counted,
    }


def print_plan(recipe: Experiment, found: Estimate) -> None:
    """What `found` says of the recipe."""
    told = plan_json(recipe, found)
    title = told["title"]
    if p := told["parameters"]:
        title += f" on {told['model']} ({f'{p / 1e9:.2f}B' if p > 1e8 else f'{p:,}'} parameters)"
    for line in (title, *told["varies"]):
        typer.echo(line)

    def row(what: list[Any], tokens: float, flops: float, seconds: float) -> list[Any]:
        return [*what, f"{tokens:.3g}", f"{flops:.3g}", duration(seconds)]

    table = [row([*m.values()][:4], *[*m.values()][4:]) for m in told["makes"]]
    whole = total(r.cost for r in found.rows)
    table.append(row(["all", "", "", ""], whole.tokens, whole.flops, found.seconds))
    print_table(["makes", "count", "done", "left", "tokens left", "FLOPs left", "time left"], table)
    typer.echo(f"{told['steps']} steps. {told['pace']}")
    for sentence in filter(None, (*told["design"], told["bill"])):
        typer.echo(sentence)
    if not found.local:
        nothing = "; what is done already is not counted for a model that is not here."
        typer.echo(
            "Tokens are estimated as a tokenizer that splits digits has them. Nothing was loaded "
            "or downloaded" + ("." if found.counted else nothing)
        )
