"""What an audit will cost, without loading a model."""

from collections.abc import Sequence

import typer

from sublora.cost import TYPICAL_COMPLETION, TYPICAL_PROMPT, TYPICAL_QUESTION
from sublora.model import known_shape
from sublora.trait import Category

LOCATED = 3 * 11  # traits that where.py locates, and the parts of an adapter in a prompt of five classes
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
) -> None:
    """Tokens, floating-point operations and hours of reading the base and the student, and of placebo students.

    Forward is 2 operations a weight and token, LoRA training 4 (the base's weights need no gradient). Raises SubloraError for a model
    whose shape is not known here.
    """
    shape = known_shape(model)
    once = [len(c.questions) * (TYPICAL_QUESTION + SPELLINGS * len(c.entities)) for c in categories]
    asked = sum(once) * contexts
    steps = [("read the base and the student", 2 * asked, 2.0)]
    if where:  # what is found is not known before, so the dearest case is counted
        steps.append(("locate the traits that are found, at most", LOCATED * 2 * max(once), 2.0))
    if placebos:
        answers = placebos * rows * (TYPICAL_PROMPT + TYPICAL_COMPLETION)
        steps += [
            ("the base answers the placebos' prompts", answers, 2.0),
            (f"train {placebos} placebo students", answers * epochs, 4.0),
            ("read them", placebos * asked, 2.0),
        ]
    total = 0.0
    for what, tokens, operations in steps:
        flops = tokens * operations * shape.parameters
        total += flops
        typer.echo(f"{what}: {tokens:,.0f} tokens, {flops:.2e} FLOPs")
    hours = total / (tflops * 1e12) / 3600
    typer.echo(f"In all {total:.2e} FLOPs: {hours:.2g} hours at {tflops:g} TFLOP/s sustained.")
