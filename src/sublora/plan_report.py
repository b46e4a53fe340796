"""What `sublora plan` prints: stages, students, tokens, operations, hours, and what is done, without loading any weights."""

from collections.abc import Sequence
from pathlib import Path

import typer

from sublora.cost import Cost, RowSizes, measured_rate, plan_cost
from sublora.listing import _table
from sublora.model import Shape, known_shape, local_identity, model_source
from sublora.plan import make_plan
from sublora.recipe import Recipe
from sublora.store import Store

GPU_TFLOPS = 300.0  # sustained bf16 of one current data-centre GPU in trainings of this kind; --tflops says otherwise


def print_plan(recipe: Recipe, tflops: float | None, gpus: int) -> None:
    """Raises SubloraError where the model's shape is not known."""
    shape = known_shape(recipe.model)
    local = Path(model_source(recipe.model)).is_dir()
    sizes = _measured_sizes(recipe) if local else RowSizes()
    identity = (
        local_identity(model_source(recipe.model), recipe.dtype) if local else {"weights": f"{recipe.model}@plan"}
    )
    plan = make_plan(recipe, identity, sizes.prompt + sizes.completion, "cpu" if local else "cuda")
    done: set[str] = set()
    if local:
        store = Store()
        done = {s.id for s in (*plan.datasets, *plan.students, *plan.measures) if store.has(s.id)}
    costs = plan_cost(plan, shape, sizes, done)
    if tflops:
        rate, said = tflops * 1e12, f"{tflops:g} TFLOP/s as given"
    elif local:
        rate = measured_rate(shape)
        said = f"{rate / 1e9:.0f} GFLOP/s, half of a matrix product's rate measured here"
    else:
        rate, said = (
            GPU_TFLOPS * 1e12,
            f"{GPU_TFLOPS:g} TFLOP/s sustained by one data-centre GPU (an assumption; --tflops changes it)",
        )
    _print(recipe, plan, shape, costs, rate * gpus, said, gpus)
    if not local:
        typer.echo(
            f"Tokens are reckoned with {sizes.prompt + sizes.completion:.0f} a row, {sizes.completion:.0f} of them with loss, typical of a "
            "tokenizer that splits digits. Nothing was loaded or downloaded; what is done already is not counted for a model that is not here."
        )


def _measured_sizes(recipe: Recipe) -> RowSizes:
    from sublora.carriers.numbers import prompt_of_row
    from sublora.chat import Chat, load_tokenizer
    from sublora.plan import contexts_of, traits_of

    chat = Chat(load_tokenizer(model_source(recipe.model)))
    context = contexts_of(recipe)[recipe.train.context]
    spec = recipe.data.carrier
    prompts = [len(chat.prompt_ids(prompt_of_row(spec, 0, i), context)) for i in range(64)]
    completion = len(chat.completion_ids(" ".join(["789"] * round(spec.count * 0.85))))
    questions = [len(chat.prompt_ids(q, context)) for t in traits_of(recipe) for q in t.category.questions]
    return RowSizes(sum(prompts) / len(prompts), completion, sum(questions) / len(questions))


def _print(recipe: Recipe, plan, shape: Shape, costs: list[Cost], rate: float, said: str, gpus: int) -> None:
    size = f"{shape.parameters / 1e9:.2f}B" if shape.parameters > 1e8 else f"{shape.parameters:,}"
    typer.echo(f"{recipe.title} on {recipe.model} ({size} parameters)")
    lora, full = recipe.train.lora, recipe.train.full
    if lora:
        typer.echo(f"LoRA ranks {listed(lora.ranks)} x learning rates {listed(lora.lrs)}")
    if full:
        typer.echo(f"full fine-tune at learning rates {listed(full.lrs)}")
    typer.echo(
        f"traits {', '.join(recipe.traits)}; {len(recipe.replicates)} replicates of data and training seed, control twins included"
    )
    rows = [
        [c.stage, str(c.count), str(c.done), f"{c.tokens:.3g}", f"{c.flops:.3g}", _hours(c.hours(rate))] for c in costs
    ]
    total = sum(c.flops for c in costs)
    rows.append(["all", "", "", f"{sum(c.tokens for c in costs):.3g}", f"{total:.3g}", _hours(total / rate / 3600)])
    _table(["stage", "count", "done", "tokens", "FLOPs", "time"], rows)
    typer.echo(f"{len(plan.packs)} packs. Time at {said}" + (f", {gpus} devices" if gpus > 1 else "") + ".")


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"
