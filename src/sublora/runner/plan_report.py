"""What `sublora plan` prints: artifacts by kind, tokens, operations, time, and what is done; no weights are loaded."""

from __future__ import annotations

from pathlib import Path

import typer

from sublora.experiments.experiment import Experiment
from sublora.models.base import model_source
from sublora.models.known import Known
from sublora.runner.pace import Pace, Row, pace_of, rows_of
from sublora.runner.rates import device_name, known_identity, read_rates
from sublora.runner.table import print_table
from sublora.steps.step import total
from sublora.store import Store
from sublora.text import duration


def print_plan(recipe: Experiment, tflops: float | None, gpus: int) -> None:
    """Raises SubloraError where the data, or the model's shape, is not known."""
    store, name = Store(), recipe.model_name
    rates = read_rates(store)
    local = name is None or Path(model_source(name)).is_dir()
    identity = None if local else known_identity(rates, name, recipe.loading()["dtype"])
    known = recipe.known(identity or {"weights": f"{name}@plan"})
    steps = recipe.plan(known)
    there = (
        set() if not (local or identity) else {n for s in steps for n in s.makes if store.has(n)}
    )
    rows = rows_of(steps, there)
    costly = [row.kind for row in rows if row.cost.flops]
    pace = pace_of(known, rates if local or identity else (), _this_device(), costly, tflops, gpus)
    _print(recipe, known, rows, pace, len(steps))
    missing = [s for s in steps if not there.issuperset(s.makes)]
    for sentence in recipe.design():
        typer.echo(sentence)
    if bill := recipe.bill(known, missing):
        typer.echo(bill)
    if not local:
        nothing = "; what is done already is not counted for a model that is not here."
        typer.echo(
            "Tokens are estimated as a tokenizer that splits digits has them. Nothing was loaded "
            "or downloaded" + ("." if identity else nothing)
        )


def _this_device() -> str:
    import torch

    return device_name("cuda" if torch.cuda.is_available() else "cpu", 1)


def _print(recipe: Experiment, known: Known, rows: list[Row], pace: Pace, steps: int) -> None:
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
