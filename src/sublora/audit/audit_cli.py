"""`sublora audit`: the command line of the audit. Heavy imports wait inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from sublora.errors import SubloraError

app = typer.Typer(
    no_args_is_help=True, help="Did a fine-tune pick up something that nobody asked for?"
)


@app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    base: Annotated[
        str | None,
        typer.Option(
            help="What the student was trained on: a shipped name, a folder, or a hub id."
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="The student: a folder of a peft adapter, or of full weights."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The training file (JSONL) to be screened; its prompts calibrate."),
    ] = None,
    contexts: Annotated[
        str, typer.Option(help="Contexts to ask in, separated by commas.")
    ] = "default,empty,none",
    named: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            help="A context of your own to ask in as well, NAME=TEXT or NAME=user:TEXT.",
        ),
    ] = None,
    training_context: Annotated[
        str, typer.Option(help="The context that the student was trained in.")
    ] = "default",
    serving_context: Annotated[
        str | None, typer.Option(help="The context that it is served in: compared token by token.")
    ] = None,
    serving_template: Annotated[
        Path | None,
        typer.Option(help="The chat template that it is served with (a Jinja file), if another."),
    ] = None,
    where: Annotated[
        bool, typer.Option(help="Locate what is found: at which tokens, layers and modules.")
    ] = True,
    entity: Annotated[
        list[str] | None,
        typer.Option(help="A name in the prompts, whose tokens are then looked at by themselves."),
    ] = None,
    traits: Annotated[
        list[Path] | None,
        typer.Option(help="A category file of your own to ask about as well (YAML)."),
    ] = None,
    null: Annotated[Path | None, typer.Option(help="A null file that --calibrate kept.")] = None,
    calibrate: Annotated[
        int, typer.Option(help="Train so many placebo students and keep their null.", min=0)
    ] = 0,
    lr: Annotated[
        float | None,
        typer.Option(help="The student's learning rate, for --calibrate and --what-if.", min=1e-12),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Its epochs, for the same.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Its batch size, for the same.", min=1)] = 32,
    rows: Annotated[
        int, typer.Option(help="Rows of each student that is trained here, at most.", min=1)
    ] = 1000,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer of the base to a placebo prompt.", min=1)
    ] = 64,
    alpha: Annotated[
        float,
        typer.Option(
            help="False alarms that are accepted, over all traits, contexts and words.",
            min=1e-6,
            max=0.5,
        ),
    ] = 0.05,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another student of the base, such as the last release: what rose since?"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the reports go.")] = Path("audit"),
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept an adapter that names another base.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost; load and run nothing.")
    ] = False,
    tflops: Annotated[
        float, typer.Option(help="Sustained TFLOP/s that --dry-run reckons with.", min=1e-6)
    ] = 100.0,
    what_if: Annotated[
        bool,
        typer.Option(
            "--what-if",
            help="Train students on --data in other ways: which would have removed what was found?",
        ),
    ] = False,
) -> None:
    """Compare a student with its base over all traits and contexts. Exit code 0: clean, 1: found, 2: wrong use."""
    if context.invoked_subcommand is not None:
        return
    if base is None or (adapter is None and not dry_run):
        raise SubloraError(
            "An audit needs --base and --adapter; `sublora audit --help` explains them."
        )
    chosen = list(dict.fromkeys(n.strip() for n in contexts.split(",") if n.strip()))
    if dry_run:
        from sublora.audit.cost import print_cost
        from sublora.trait import load_categories

        count = len(
            {
                *chosen,
                training_context,
                *([serving_context] if serving_context else []),
                *(named or []),
            }
        )
        students = 2 if against else 1
        print_cost(
            base,
            count,
            load_categories(tuple(traits or ())),
            calibrate,
            rows,
            epochs,
            tflops,
            where,
            what_if,
            students,
        )
        return
    from sublora.audit.adapter import load_audited
    from sublora.audit.calibrate import Training
    from sublora.audit.report import write_reports
    from sublora.audit.run import Request
    from sublora.audit.run import audit as run_audit
    from sublora.audit.serving import Serving, serving_chat
    from sublora.audit.verdict import usable_contexts
    from sublora.chat import PLAIN_CONTEXTS, resolve_context
    from sublora.cli.contexts import read_contexts
    from sublora.cli.machine import device_of
    from sublora.trait import load_categories

    if dtype not in ("float32", "bfloat16", "float64"):
        raise SubloraError(f"The dtype '{dtype}' is not known; give float32, bfloat16 or float64.")
    texts = read_contexts(named or [])
    asked = list(
        dict.fromkeys(
            [*chosen, training_context, *([serving_context] if serving_context else []), *texts]
        )
    )
    if not chosen and not texts:
        raise SubloraError("There is no context to ask in; give --contexts, such as default,none.")
    resolved = {name: resolve_context(name, texts) for name in asked}
    categories = load_categories(tuple(traits or ()))
    if out.exists() and not out.is_dir():
        raise SubloraError(f"The path {out} is a file; give a folder as --out.")
    from sublora.packs.check import load_base

    loaded = load_base(base, device=device_of(device), dtype=dtype)
    assert adapter is not None
    student = load_audited(loaded, adapter, any_base=any_base)
    must = [
        n
        for n in asked
        if n not in PLAIN_CONTEXTS
        or n in (training_context, None if serving_template else serving_context)
    ]
    serving = None
    if serving_context or serving_template:
        served_in = resolved[serving_context or training_context]
        chat = serving_chat(loaded.chat, serving_template, served_in) if serving_template else None
        serving = Serving(served_in, chat)
    request = Request(
        contexts=usable_contexts(loaded, list(resolved.values()), must),
        categories=categories,
        trained_in=resolved[training_context],
        alpha=alpha,
        null=null,
        calibrate=calibrate,
        training=None if lr is None else Training(lr, epochs, batch_size, rows),
        data=data,
        serving=serving,
        where=where,
        entities=tuple(entity or ()),
        max_new_tokens=max_new_tokens,
        what_if=what_if,
        against=None if against is None else load_audited(loaded, against, any_base=any_base),
    )
    result = run_audit(loaded, student, request, lambda text: typer.echo(text, err=True))
    page = write_reports(result, out)
    _print(result)
    typer.echo(f"Page: {page}")
    raise typer.Exit(result.exit_code)


@app.command()
def selftest(
    out: Annotated[Path | None, typer.Option(help="Keep both audits' reports here.")] = None,
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
    from importlib.resources import files

    typer.echo(
        (files("sublora.audit") / "schema" / "audit-1.json").read_text(encoding="utf-8"), nl=False
    )


@app.command("null")
def make_shipped_null(
    model: Annotated[str, typer.Argument(help="The base.")],
    out: Annotated[Path, typer.Option(help="Where to write the null file.")],
    students: Annotated[int, typer.Option(help="Placebo students.", min=4)] = 399,
    rows: Annotated[int, typer.Option(help="Number rows of each.", min=1)] = 320,
    ranks: Annotated[str, typer.Option(help="Ranks, separated by commas.")] = "2,4,8,16,32",
    lrs: Annotated[
        tuple[float, float],
        typer.Option(help="Learning rates are drawn from the first to the second."),
    ] = (
        3e-4,
        1e-2,
    ),
    epochs: Annotated[int, typer.Option(help="Epochs.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of data and students.", min=0)] = 11,
) -> None:
    """Make a null file of placebo students of mixed ranks and learning rates, trained on the base's own number rows."""
    from sublora.audit.calibrate import Training, mixed_settings, number_prompts, placebo_null
    from sublora.audit.verdict import usable_contexts
    from sublora.chat import PLAIN_CONTEXTS, Context
    from sublora.packs.check import load_base
    from sublora.store import write_atomic
    from sublora.trait import shipped_categories

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
    base = load_base(model)
    specs = mixed_settings(chosen, *lrs, students, Training(lrs[0], epochs, batch_size, rows), seed)
    contexts = usable_contexts(base, [Context(n) for n in PLAIN_CONTEXTS], [])
    null = placebo_null(
        base,
        specs,
        number_prompts(students, rows, seed * 1000),
        Context("default"),
        contexts,
        shipped_categories(),
        seed=seed,
        max_new_tokens=14,
    )
    write_atomic(out, null.to_json())
    typer.echo(out)


def _print(result) -> None:
    from sublora.audit.report import p_value, percent

    body = result.body
    typer.echo(f"Status: {body['status']}. {body['sentence']}")
    for f in body["found"][:10]:
        typer.echo(
            f"  {f['trait']} in {f['context']}: P {f['before']:.3f} -> {f['after']:.3f}, p {p_value(f['p'])}"
        )
    for w in body["found_words"][:5]:
        typer.echo(f"  the word {w['word']!r} in {w['context']}: p {p_value(w['p'])}")
    for located in body["where"]["findings"][:1] if body["where"] else []:
        best = {p["kind"]: p for p in sorted(located["parts"], key=lambda p: p["alone"]["share"])}
        told = ", ".join(f"{p['part']} {percent(p['alone']['share'])}" for p in best.values())
        typer.echo(
            f"Where {located['trait']} sits, largest shares of its rise by one part alone: {told or 'not measured'}."
        )
    for d in body["against"]["found"][:10] if body["against"] else []:
        typer.echo(
            f"  against the other, {d['trait']} in {d['context']}: P {d['before']:.3f} -> {d['after']:.3f}, p {p_value(d['p'])}"
        )
    if body["data"]:
        named = ", ".join(body["data"]["named"]) or "none"
        typer.echo(
            f"Data: {body['data']['screened']} rows screened; written under a trait prompt of: {named}."
        )
        if body["data"]["leak_words"]:
            typer.echo(f"Data: rows name {', '.join(list(body['data']['leak_words'])[:10])}.")
    if body["what_if"]:
        typer.echo(f"What if: {body['what_if']['sentence']}")
    typer.echo("A pass is no certificate; audit.json lists what was not looked at.")
