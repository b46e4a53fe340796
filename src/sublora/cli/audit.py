"""`sublora audit`: the command line of the audit. Heavy imports wait inside the commands."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from sublora.audit.request import Request, Training, options
from sublora.cli.options import JsonOpt, file_option, folder_option
from sublora.errors import SubloraError
from sublora.runner.table import print_json

app = typer.Typer(
    no_args_is_help=True, help="Did a fine-tune pick up something that nobody asked for?"
)


@app.callback(invoke_without_command=True)
@options
def audit(
    context: typer.Context,
    request: Request,
    out: Annotated[Path, folder_option(help="Where the reports go.")] = Path("audit"),
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what it would cost; load and run nothing.")
    ] = False,
    tflops: Annotated[
        float, Option(help="Sustained TFLOP/s that --dry-run estimates with.", min=1e-6)
    ] = 100.0,
    as_json: JsonOpt = False,
) -> None:
    """Compare a student with its base over all traits and contexts. Exit code 0: clean, 1: found, 2: wrong use, 4: found in the
    training file alone."""
    if context.invoked_subcommand is not None:
        return
    if request.base is None or (request.adapter is None and not dry_run):
        raise SubloraError(
            "An audit needs --base and --adapter; `sublora audit --help` explains them."
        )
    if dry_run:
        from sublora.audit.cost import print_cost

        return print_cost(request, tflops, as_json)
    from sublora.audit.report import told, write_reports
    from sublora.audit.run import audit_request

    result = audit_request(request, lambda text: typer.echo(text, err=True))
    page = write_reports(result, out)
    if as_json:
        print_json(result.report.model_dump(mode="json", by_alias=True))
    else:
        typer.echo("\n".join([*told(result.report), f"Page: {page}"]))
    raise typer.Exit(result.report.exit_code)


@app.command()
def selftest(
    out: Annotated[Path | None, folder_option(help="Keep both audits' reports here.")] = None,
) -> None:
    """Plant a trait in a student, find it, and clear a clean twin. Exit code 0 where both come out so, 1 otherwise."""
    from sublora.audit.selftest import selftest as run_selftest

    result = run_selftest(out)
    for line in result.lines:
        typer.echo(line)
    raise typer.Exit(0 if result.passed else 1)


@app.command()
def schema() -> None:
    """Print the JSON Schema (2020-12) of audit.json."""
    import json

    from sublora.audit.result import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))


@app.command("null")
def make_shipped_null(
    model: Annotated[str, Argument(help="The base.")],
    out: Annotated[Path, file_option(help="Where to write the null file.")],
    students: Annotated[int, Option(help="Placebo students.", min=4)] = 99,
    rows: Annotated[int, Option(help="Number rows of each.", min=1)] = 320,
    ranks: Annotated[str, Option(help="Ranks, separated by commas.")] = "2,4,8,16,32",
    lrs: Annotated[
        tuple[float, float], Option(help="Learning rates are drawn from the first to the second.")
    ] = (3e-4, 1e-2),
    epochs: Annotated[int, Option(help="Most epochs; students have one to so many.", min=1)] = 3,
    batch_size: Annotated[int, Option(help="Rows of a step.", min=1)] = 8,
    seed: Annotated[int, Option(help="Of data and students.", min=0)] = 11,
    questions: Annotated[int | None, Option(help="Of each category, at most.", min=1)] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Option()] = "float32",
) -> None:
    """Make a null file of placebo students of mixed ranks and learning rates, trained on the base's own number rows."""
    from sublora.audit.calibrate import mixed_settings, number_prompts, placebo_null
    from sublora.audit.readings import Asked, fewer_questions
    from sublora.audit.verdict import usable_contexts
    from sublora.models.chat import PLAIN_CONTEXTS, Context
    from sublora.packs.check import load_base
    from sublora.store import write_atomic
    from sublora.traits.trait import shipped_categories

    try:
        chosen = [int(r) for r in ranks.split(",")]
    except ValueError:
        raise SubloraError(
            f"The ranks '{ranks}' are no whole numbers separated by commas, such as 1,8,32."
        ) from None
    if min(chosen) < 1 or not 0 < lrs[0] <= lrs[1]:
        raise SubloraError(
            "Ranks are 1 or more, and the first learning rate is above 0 and not above the second."
        )
    base = load_base(model, dtype=dtype)
    specs = mixed_settings(chosen, *lrs, students, Training(lrs[0], epochs, batch_size, rows), seed)
    contexts = usable_contexts(base, [Context(n) for n in PLAIN_CONTEXTS], [])
    prompts = number_prompts(students, rows, seed * 1000)
    asked = Asked(contexts, fewer_questions(shipped_categories(), questions))
    null = placebo_null(
        base, specs, prompts, Context("default"), asked, seed=seed, max_new_tokens=14
    )
    write_atomic(out, null.to_json())
    typer.echo(out)
