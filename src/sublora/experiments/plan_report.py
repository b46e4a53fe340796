"""What `sublora plan` prints of an experiment: stages, operations, time, and what is done; runs nothing."""

import time

import typer

from sublora.experiment import Experiment, Stage
from sublora.listing import _table
from sublora.plan_report import _time
from sublora.store import Store


def print_plan(recipe: Experiment, tflops: float | None) -> None:
    """Raises SubloraError where the data or the model cannot be read."""
    store = Store()
    stages = recipe.stages(recipe.identity())
    typer.echo(f"{recipe.title}: {recipe.sentence}")
    rate = tflops * 1e12 if tflops else _rate_here()
    rows, total = [], 0.0
    for stage in stages:
        made, done, flops = _left(stage, store)
        total += flops
        rows.append(
            [
                stage.label,
                str(made),
                str(done),
                str(made - done),
                f"{flops:.3g}",
                _time(flops / rate),
            ]
        )
    if len(stages) > 1:
        rows.append(["all", "", "", "", f"{total:.3g}", _time(total / rate)])
    _table(["stage", "count", "done", "left", "FLOPs left", "time left"], rows)
    said = "as given" if tflops else "half of a matrix product's rate measured here"
    if bill := recipe.bill(store, stages):
        typer.echo(bill)
    typer.echo(f"Time at {rate / 1e9:.0f} GFLOP/s, {said}.")


def _left(stage: Stage, store: Store) -> tuple[int, int, float]:
    """Artifacts, those done, and the operations of what is left, in proportion."""
    made = done = 0
    flops = 0.0
    for task in stage.tasks:
        here = sum(store.has(name) for name in task.makes)
        made, done = made + len(task.makes), done + here
        flops += task.flops * (1 - here / len(task.makes))
    return made, done, flops


def _rate_here(seconds: float = 0.3) -> float:
    """Operations a second of a product of small matrices on this machine's CPU, halved for all that is no product."""
    import torch

    a, b = torch.randn(40, 128, 256), torch.randn(40, 256, 256)
    torch.bmm(a, b)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        torch.bmm(a, b)
        count += 1
    return 0.5 * count * 2 * 40 * 128 * 256 * 256 / (time.perf_counter() - started)
