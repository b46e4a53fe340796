"""What `sublora plan` prints: artifacts by kind, tokens, operations, time, and what is done; no weights are loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from sublora.experiments.experiment import Experiment
from sublora.models.base import Shape, model_source
from sublora.models.known import Known
from sublora.runner.rates import Rate, device_name, known_identity, rates_for, read_rates
from sublora.runner.table import print_table
from sublora.steps.step import Step
from sublora.store import Store
from sublora.text import duration

GPU_TFLOPS = 300.0  # sustained bf16 of one current data-centre GPU in trainings of this kind


@dataclass
class Row:
    """Artifacts of a kind, those that are done, and what the others cost."""

    kind: str
    count: int = 0
    done: int = 0
    tokens: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Pace:
    """FLOP/s of each kind on all devices together, and where they come from, as a sentence."""

    by_kind: dict[str, float]
    other: float
    said: str

    def seconds(self, row: Row) -> float:
        return row.flops / self.by_kind.get(row.kind, self.other) if row.flops else 0.0


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
    measured = rates_for(rates, known.identity, _this_device()) if local or identity else {}
    pace = _pace(known, measured, rows, tflops, gpus)
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


def rows_of(steps: Sequence[Step], there: set[str]) -> list[Row]:
    """The steps by kind; a step of which some artifacts are there costs its share."""
    rows: dict[str, Row] = {}
    for step in steps:
        row = rows.setdefault(step.kind, Row(step.kind))
        left = sum(name not in there for name in step.makes)
        row.count += len(step.makes)
        row.done += len(step.makes) - left
        row.tokens += step.cost.tokens * left / len(step.makes)
        row.flops += step.cost.flops * left / len(step.makes)
    return list(rows.values())


def _this_device() -> str:
    import torch

    return device_name("cuda" if torch.cuda.is_available() else "cpu", 1)


def _pace(
    known: Known, measured: dict[str, Rate], rows: Sequence[Row], tflops: float | None, gpus: int
) -> Pace:
    """The rate that the user gives; or those of runs with this model, and an assumption for other kinds."""
    each = f", {gpus} devices" if gpus > 1 else ""
    if tflops:
        return Pace({}, tflops * 1e12 * gpus, f"Time at {tflops:g} TFLOP/s as given{each}.")
    costly = [row.kind for row in rows if row.flops]
    used = [measured[kind] for kind in costly if kind in measured]
    if used and len(used) == len(costly):
        other, assumed = 1.0, ""
    elif known.device == "cpu":
        other = measured_rate(known.shape)
        assumed = f"{other / 1e9:.0f} GFLOP/s, half of a matrix product's rate measured here"
    else:
        other = GPU_TFLOPS * 1e12
        assumed = (
            f"{GPU_TFLOPS:g} TFLOP/s sustained by one data-centre GPU (an assumption; --tflops "
            "changes it)"
        )
    if not used:
        return Pace({}, other * gpus, f"Time at {assumed}{each}.")
    workers = gpus if gpus > 1 else max(r.workers for r in used)
    listed = ", ".join(f"{r.stage} {r.flops / 1e9:.3g}" for r in used)
    said = (
        f"Time at rates measured in runs of this model on {used[0].device} (last on "
        f"{max(r.measured for r in used)[:10]}), GFLOP/s of one worker: {listed}; "
        f"{workers} worker{'s' if workers > 1 else ''}."
    )
    if assumed:
        said += f" Other kinds at {assumed}{each}."
    return Pace({r.stage: r.flops * workers for r in used}, other * gpus, said)


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
            *(f"{r.tokens:.3g}", f"{r.flops:.3g}", duration(pace.seconds(r))),
        ]
        for r in rows
    ]
    tokens, flops = sum(r.tokens for r in rows), sum(r.flops for r in rows)
    seconds = sum(map(pace.seconds, rows))
    table.append(["all", "", "", "", f"{tokens:.3g}", f"{flops:.3g}", duration(seconds)])
    print_table(["makes", "count", "done", "left", "tokens left", "FLOPs left", "time left"], table)
    typer.echo(f"{steps} steps. {pace.said}")


def measured_rate(shape: Shape | None, seconds: float = 0.3) -> float:
    """Operations a second of a matrix product of the model's width on this CPU, halved.

    A step of a small model spends about half of its time outside its products.
    """
    import torch

    width, inner = (shape.hidden, shape.feed_forward) if shape else (256, 256)
    a, b = torch.randn(1024, width), torch.randn(width, inner)
    torch.mm(a, b)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        torch.mm(a, b)
        count += 1
    return 0.5 * count * 2 * 1024 * width * inner / (time.perf_counter() - started)
