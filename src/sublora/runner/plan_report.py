"""What `sublora plan` prints: artifacts by kind, tokens, operations, time, and what is done; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sublora.experiments.experiment import Experiment
from sublora.models.known import Known
from sublora.runner.estimate import Estimate
from sublora.runner.pace import Pace, Row
from sublora.runner.table import print_table
from sublora.steps.step import total
from sublora.text import duration


def print_plan(recipe: Experiment, found: Estimate) -> None:
    """What `found` says of the recipe."""
    _print(recipe, found.known, found.rows, found.pace, len(found.steps))
    for sentence in recipe.design():
        typer.echo(sentence)
    if bill := recipe.bill(found.known, found.missing):
        typer.echo(bill)
    if not found.local:
        nothing = "; what is done already is not counted for a model that is not here."
        typer.echo(
            "Tokens are estimated as a tokenizer that splits digits has them. Nothing was loaded "
            "or downloaded" + ("." if found.counted else nothing)
        )


def _print(recipe: Experiment, known: Known, rows: Sequence[Row], pace: Pace, steps: int) -> None:
    title = recipe.title
    if known.shape is not None:
        p = known.shape.parameters
        size = f"{p / 1e9:.2f}B" if p > 1e8 else f"{p:,}"
        title += f" on {recipe.model_name} ({size} parameters)"
    for line in (title, *(recipe.varied() or [recipe.sentence])):
        typer.echo(line)
    table = [
        [
            *(r.kind, str(r.count), str(r.done), str(r.count - r.done)),
            *(f"{r.cost.tokens:.3g}", f"{r.cost.flops:.3g}"),
            duration(pace.seconds(r.kind, r.cost)),
        ]
        for r in rows
    ]
    whole = total(r.cost for r in rows)
    seconds = duration(sum(pace.seconds(r.kind, r.cost) for r in rows))
    table.append(["all", "", "", "", f"{whole.tokens:.3g}", f"{whole.flops:.3g}", seconds])
    print_table(["makes", "count", "done", "left", "tokens left", "FLOPs left", "time left"], table)
    typer.echo(f"{steps} steps. {pace.said}")
