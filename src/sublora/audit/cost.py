"""What an audit will cost, without loading a model."""

from collections.abc import Sequence

import typer

from sublora.audit.what_if_arms import SEEDS, plan_arms
from sublora.audit.what_if_rows import HELD_OUT, MOST_HELD_OUT
from sublora.chat import PLAIN_CONTEXTS, Context
from sublora.cost import TYPICAL_COMPLETION, TYPICAL_PROMPT, TYPICAL_QUESTION
from sublora.model import known_shape
from sublora.train.spec import StudentSpec
from sublora.trait import Category

LOCATED = (
    3 * 11
)  # traits that where.py locates, and the parts of an adapter in a prompt of five classes
SPELLINGS = 0.2  # further passes for spellings of several tokens, as a share of the questions' tokens and the entities


def print_cost(
    model: str,
    contexts: int,
    categories: Sequence[Category],
    placebos: int,
    rows: int,
    epochs: int,
    tflops: float,
    where: bool,
    what_if: bool,
    students: int = 1,
) -> None:
    """Tokens, floating-point operations and hours of reading the base and the `students` given, of placebo students, and of --what-if's.

    Forward is 2 operations a weight and token, LoRA training 4 (the base's weights need no gradient), a full fine-tune 6. Raises
    SubloraError for a model whose shape is not known here.
    """
    shape = known_shape(model)
    once = [len(c.questions) * (TYPICAL_QUESTION + SPELLINGS * len(c.entities)) for c in categories]
    asked = sum(once) * contexts
    steps = [
        (f"read the base and the student{'s' if students > 1 else ''}", (1 + students) * asked, 2.0)
    ]
    if where:  # what is found is not known before, so the dearest case is counted
        steps.append(("locate the traits that are found, at most", LOCATED * 2 * max(once), 2.0))
    if placebos:
        answers = placebos * rows * (TYPICAL_PROMPT + TYPICAL_COMPLETION)
        steps += [
            ("the base answers the placebos' prompts", answers, 2.0),
            (f"train {placebos} placebo students", answers * epochs, 4.0),
            ("read them", placebos * asked, 2.0),
        ]
    if what_if:
        steps += _what_if(rows, epochs, asked)
    total = 0.0
    for what, tokens, operations in steps:
        flops = tokens * operations * shape.parameters
        total += flops
        typer.echo(f"{what}: {tokens:,.0f} tokens, {flops:.2e} FLOPs")
    hours = total / (tflops * 1e12) / 3600
    typer.echo(f"In all {total:.2e} FLOPs: {hours:.2g} hours at {tflops:g} TFLOP/s sustained.")


def _what_if(rows: int, epochs: int, asked: float) -> list[tuple[str, float, float]]:
    """All arms, for a LoRA adapter and as many rows as are read."""
    arms, _ = plan_arms(
        StudentSpec(), 1 << 16, [(Context(n), None) for n in PLAIN_CONTEXTS[1:]], rows, 0.5
    )
    full = sum(arm.spec.method == "full" for arm in arms) * len(SEEDS)
    lora, size = len(arms) * len(SEEDS) - full, TYPICAL_PROMPT + TYPICAL_COMPLETION
    heldout = min(MOST_HELD_OUT, HELD_OUT * rows) * size
    return [
        ("what if: the base answers and marks the rows", (len(SEEDS) + 2) * rows * size, 2.0),
        (f"what if: train {lora} LoRA students", lora * rows * size * epochs, 4.0),
        (f"what if: train {full} full fine-tunes", full * rows * size * epochs, 6.0),
        ("what if: read them, and rows held out", (lora + full) * (asked + heldout), 2.0),
    ]
