"""What `sublora plan` prints: stages, students, tokens, operations, hours, and what is done, without loading any weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from sublora.chat import Chat, load_tokenizer
from sublora.cost import Cost, RowSizes, measured_rate, plan_cost, row_sizes
from sublora.listing import _table
from sublora.model import Shape, known_shape, local_identity, model_source
from sublora.plan import Plan, make_plan
from sublora.rates import Rate, device_name, known_identity, rates_for, read_rates
from sublora.recipe import Recipe
from sublora.store import Store

GPU_TFLOPS = 300.0  # sustained bf16 of one current data-centre GPU in trainings of this kind; --tflops says otherwise


@dataclass(frozen=True)
class Pace:
    """FLOP/s of each stage on all devices together, and where they come from, as a sentence."""

    by_stage: dict[str, float]
    other: float
    said: str

    def seconds(self, cost: Cost) -> float:
        return cost.flops / self.by_stage.get(cost.stage, self.other)


def print_plan(recipe: Recipe, tflops: float | None, gpus: int) -> None:
    """Raises SubloraError where the model's shape is not known."""
    shape = known_shape(recipe.model)
    source = model_source(recipe.model)
    local = Path(source).is_dir()
    store = Store()
    rates = read_rates(store)
    sizes, identity = RowSizes(), known_identity(rates, recipe.model, recipe.dtype)
    if local:
        sizes = row_sizes(Chat(load_tokenizer(source)), recipe)
        identity = local_identity(source, recipe.dtype)
    plan = make_plan(
        recipe,
        identity or {"weights": f"{recipe.model}@plan"},
        sizes.prompt + sizes.completion,
        "cpu" if local else "cuda",
    )
    done = {s.id for s in plan.stages if store.has(s.id)} if identity else set()
    costs = plan_cost(plan, shape, sizes, done)
    measured = rates_for(rates, identity, _this_device()) if identity else {}
    _print(recipe, plan, shape, costs, _pace(shape, measured, costs, tflops, gpus, local))
    if said := _requests(plan, sizes, done):
        typer.echo(said)
    if not local:
        typer.echo(
            f"Tokens are reckoned with {sizes.prompt + sizes.completion:.0f} a row, {sizes.completion:.0f} of them with loss, typical of a "
            "tokenizer that splits digits. Nothing was loaded or downloaded"
            + (
                "."
                if identity
                else "; what is done already is not counted for a model that is not here."
            )
        )


def _requests(plan: Plan, sizes: RowSizes, done: set[str]) -> str | None:
    """What a teacher behind an endpoint will be asked, and what that costs."""
    left = [
        d
        for d in plan.datasets
        if d.endpoint is not None and d.transform is None and d.id not in done
    ]
    if not left:
        return None
    spec = left[0].endpoint
    asked = round(sum(d.rows for d in left) * 1.4)  # the papers' filters reject about three in ten
    price = spec.price(asked * sizes.prompt, asked * sizes.completion)
    cost = "" if price is None else f", {price:.2f} at the given prices"
    return (
        f"The teacher {spec.model} at {spec.url}: about {asked:,} requests, {asked * sizes.prompt:.3g} tokens read and "
        f"{asked * sizes.completion:.3g} written{cost}."
    )


def _this_device() -> str:
    import torch

    return device_name("cuda" if torch.cuda.is_available() else "cpu", 1)


def _pace(
    shape: Shape,
    measured: dict[str, Rate],
    costs: Sequence[Cost],
    tflops: float | None,
    gpus: int,
    local: bool,
) -> Pace:
    """The rate that the user gives; or those measured in runs of this model, and an assumption for stages without one."""
    if tflops:
        return Pace({}, tflops * 1e12 * gpus, f"Time at {tflops:g} TFLOP/s as given{_each(gpus)}.")
    used = [measured[c.stage] for c in costs if c.stage in measured]
    if len(used) == len(costs):
        other, assumed = 0.0, ""
    elif local:
        other = measured_rate(shape)
        assumed = f"{other / 1e9:.0f} GFLOP/s, half of a matrix product's rate measured here"
    else:
        other = GPU_TFLOPS * 1e12
        assumed = f"{GPU_TFLOPS:g} TFLOP/s sustained by one data-centre GPU (an assumption; --tflops changes it)"
    if not used:
        return Pace({}, other * gpus, f"Time at {assumed}{_each(gpus)}.")
    workers = gpus if gpus > 1 else max(r.workers for r in used)
    listed = ", ".join(f"{r.stage} {r.flops / 1e9:.3g}" for r in used)
    said = (
        f"Time at rates measured in runs of this model on {used[0].device} (last on {max(r.measured for r in used)[:10]}), "
        f"GFLOP/s of one worker: {listed}; {workers} worker{'s' if workers > 1 else ''}."
    )
    if assumed:
        said += f" Other stages at {assumed}{_each(gpus)}."
    return Pace({r.stage: r.flops * workers for r in used}, other * gpus, said)


def _each(gpus: int) -> str:
    return f", {gpus} devices" if gpus > 1 else ""


def _print(recipe: Recipe, plan: Plan, shape: Shape, costs: list[Cost], pace: Pace) -> None:
    size = f"{shape.parameters / 1e9:.2f}B" if shape.parameters > 1e8 else f"{shape.parameters:,}"
    typer.echo(f"{recipe.title} on {recipe.model} ({size} parameters)")
    lora, full = recipe.train.lora, recipe.train.full
    if lora:
        typer.echo(f"LoRA ranks {listed(lora.ranks)} x learning rates {listed(lora.lrs)}")
    for what, names in (
        ("variants of the rows besides those as written", recipe.data.variants),
        ("training contexts", recipe.train.contexts),
        ("optimizers, each at its own rates", recipe.train.optimizers),
        ("variants of the students", recipe.variants),
        ("teachers that are asked besides", recipe.measure.teachers),
        ("placements of the adapter", lora.placements if lora else ()),
        (
            "measured in contexts",
            recipe.measure.contexts if len(recipe.measure.contexts) > 1 else (),
        ),
        ("conditions besides the plain adapter", recipe.measure.conditions),
    ):
        if names:
            typer.echo(f"{what}: {', '.join(names)}")
    if full:
        typer.echo(f"full fine-tune at learning rates {listed(full.lrs)}")
    typer.echo(
        f"traits {', '.join(recipe.traits)}; {len(recipe.replicates)} replicates of data and training seed, control twins included"
    )
    rows = [
        [
            c.stage,
            str(c.count),
            str(c.done),
            str(c.count - c.done),
            f"{c.tokens:.3g}",
            f"{c.flops:.3g}",
            _time(pace.seconds(c)),
        ]
        for c in costs
    ]
    total = [
        sum(c.tokens for c in costs),
        sum(c.flops for c in costs),
        sum(map(pace.seconds, costs)),
    ]
    rows.append(["all", "", "", "", f"{total[0]:.3g}", f"{total[1]:.3g}", _time(total[2])])
    _table(["stage", "count", "done", "left", "tokens left", "FLOPs left", "time left"], rows)
    typer.echo(f"{len(plan.packs)} packs. {pace.said}")


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
