"""`sublora parity`: whether a model behind an endpoint is the one that is here."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from sublora.errors import SubloraError, plain


def parity(
    url: Annotated[str, Argument(help="The endpoint, such as http://localhost:8000/v1.")],
    served: Annotated[str, Option(help="The model's name there, or an adapter's.")],
    model: Annotated[
        str, Option("--model", "-m", help="The base that is here: a name of `sublora ls models`.")
    ],
    adapter: Annotated[
        Path | None, Option(help="The student that is here: a folder of a peft adapter.")
    ] = None,
    prompts: Annotated[int, Option(help="How many number prompts are asked.", min=1)] = 20,
    key_env: Annotated[str | None, Option(help="Environment variable with the key.")] = None,
) -> None:
    """Ask an endpoint and a model that is here for the same greedy answers; exit code 1 if another model answers there."""
    from pydantic import ValidationError

    from sublora.audit.adapter import load_audited
    from sublora.carriers.numbers import NumbersSpec
    from sublora.models.chat import Context
    from sublora.models.endpoint import Endpoint, EndpointSpec
    from sublora.packs.check import load_base
    from sublora.packs.parity import parity as compare
    from sublora.packs.stack import stack_weights

    try:
        spec = EndpointSpec(url=url, model=served, key_env=key_env, tries=2)
    except ValidationError as error:
        why = plain(error.errors()[0])
        raise SubloraError(f"The endpoint {url!r}: {why}.") from None
    base, student = load_base(model), None
    if adapter is not None:
        own = load_audited(base, adapter, any_base=True)
        student = stack_weights(base.model, [own.weights], [own.spec])
    asked = [NumbersSpec().prompt(0, i) for i in range(prompts)]
    found = compare(base, Endpoint(spec), asked, Context("default"), student)
    here = model if adapter is None else f"{adapter} on {model}"
    typer.echo(f"{served} at {spec.url} beside {here}: {found}.")
    if not found.one_model:
        typer.echo(f"{served} at {spec.url} is another model than {here}.")
        raise typer.Exit(1)
