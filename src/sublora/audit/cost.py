"""What an audit will cost, without loading a model."""

import typer

from sublora.audit.readings import fewer_questions
from sublora.audit.request import EPOCHS, Request
from sublora.audit.user_rows import HELD_OUT, MOST_HELD_OUT
from sublora.audit.what_if_arms import SEEDS, plan_arms
from sublora.models.base import known_shape
from sublora.models.chat import PLAIN_CONTEXTS, Context
from sublora.packs.spec import StudentSpec
from sublora.runner.table import print_json, records
from sublora.steps.sizes import Sizes
from sublora.traits.trait import load_categories

# Traits that where.py locates, and the parts of an adapter in a prompt of five classes.
TYPICAL = Sizes()
LOCATED = 3 * 11
# Tokens read behind a question for spellings of several tokens, of each entity: 153 for SmolLM2's 38.
SPELLINGS = 4


def print_cost(request: Request, tflops: float, as_json: bool = False) -> None:
    """Tokens, floating-point operations and hours of an audit, and of what it trains. Forward is 2
    operations a weight and token, LoRA training 4 (the base's weights need no gradient), a full
    fine-tune 6. Raises SubloraError for a model whose shape is not known here."""
    shape = known_shape(request.base or "")
    categories = fewer_questions(load_categories(tuple(request.traits)), request.questions)
    served = [request.serving_context] if request.serving_context else []
    contexts = {*request.asked_in, request.training_context, *served, *request.named}
    once = [len(c.questions) * (TYPICAL.question + SPELLINGS * len(c.entities)) for c in categories]
    asked = sum(once) * len(contexts)
    both = request.against is not None
    what = f"read the base and the student{'s' if both else ''}"
    steps = [(what, (3 if both else 2) * asked, 2.0)]
    if request.where:  # what is found is not known before, so the dearest case is counted
        steps.append(("locate the traits that are found, at most", LOCATED * 2 * max(once), 2.0))
    placebos, rows, epochs = request.calibrate, request.rows, request.epochs or EPOCHS
    if placebos:
        answers = placebos * rows * TYPICAL.row
        steps += [
            ("the base answers the placebos' prompts", answers, 2.0),
            (f"train {placebos} placebo students", answers * epochs, 4.0),
            ("read them", placebos * asked, 2.0),
        ]
    if request.what_if:
        steps += _what_if(rows, epochs, asked)
    costs = [(what, tokens, tokens * each * shape.parameters) for what, tokens, each in steps]
    total = sum(flops for _, _, flops in costs)
    hours = total / (tflops * 1e12) / 3600
    if as_json:
        columns, whole = ("what", "tokens", "flops"), {"flops": total, "hours": hours}
        return print_json({"steps": records(columns, costs), **whole, "tflops": tflops})
    for what, tokens, flops in costs:
        typer.echo(f"{what}: {tokens:,.0f} tokens, {flops:.2e} FLOPs")
    typer.echo(f"In all {total:.2e} FLOPs: {hours:.2g} hours at {tflops:g} TFLOP/s sustained.")


def _what_if(rows: int, epochs: int, asked: float) -> list[tuple[str, float, float]]:
    """All arms, for a LoRA adapter and as many rows as are read."""
    arms, _ = plan_arms(
        StudentSpec(), 1 << 16, [(Context(n), None) for n in PLAIN_CONTEXTS[1:]], rows, {}
    )
    full = sum(arm.spec.method == "full" for arm in arms) * len(SEEDS)
    lora, size = len(arms) * len(SEEDS) - full, TYPICAL.row
    heldout = min(MOST_HELD_OUT, HELD_OUT * rows) * size
    return [
        ("what if: the base answers and marks the rows", (len(SEEDS) + 2) * rows * size, 2.0),
        (f"what if: train {lora} LoRA students", lora * rows * size * epochs, 4.0),
        (f"what if: train {full} full fine-tunes", full * rows * size * epochs, 6.0),
        ("what if: read them, and rows held out", (lora + full) * (asked + heldout), 2.0),
    ]
