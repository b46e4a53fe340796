"""`sublora export` and `sublora push`: a finished run where others work. Heavy imports wait inside."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from sublora.cli.options import folder_option
from sublora.errors import SubloraError

Target = Literal["parquet", "inspect", "hub", "vectors", "wandb", "trackio"]


def export(
    run_folder: Annotated[Path, Argument(metavar="RUN", help="A finished run's folder.")],
    to: Annotated[Target, Option("--to", help="What to write.")],
    out: Annotated[
        Path | None, folder_option(help="Where it goes; exports/RUN-TO by default.")
    ] = None,
    student: Annotated[
        str | None,
        Option(help="For hub: an id of results.csv; one of the largest effect by default."),
    ] = None,
    audit: Annotated[
        Path | None, Option(help="For hub: the folder of an audit, whose section the card takes.")
    ] = None,
) -> None:
    """Write a run as Parquet, as logs of Inspect, as a folder for a hub, as vectors, or log it to wandb or trackio."""
    from sublora.report.exports import hub, inspect_log, parquet, tracker, vectors
    from sublora.report.loaded import load_run
    from sublora.runner.folder import check_files
    from sublora.store import Store

    if to != "hub" and (student or audit):
        raise SubloraError("--student and --audit are for --to hub; leave them out.")
    check_files(run_folder)
    run, store = load_run(run_folder), Store()
    if to in ("wandb", "trackio"):
        return typer.echo(tracker.log_run(run, to))
    folder = out or Path("exports") / f"{run_folder.resolve().name}-{to}"
    if to == "hub":
        written = hub.export_hub(run, store, folder, student, audit)
    else:
        kinds = {
            "parquet": parquet.export_parquet,
            "inspect": inspect_log.export_inspect,
            "vectors": vectors.export_vectors,
        }
        written = kinds[to](run, store, folder)
    for path in written[:20]:
        typer.echo(path)
    if len(written) > 20:
        typer.echo(f"and {len(written) - 20} more in {folder}")


def push(
    folder: Annotated[Path, Argument(help="What `sublora export RUN --to hub` wrote.")],
    repo: Annotated[str, Argument(help="OWNER/NAME on the hub.")],
    private: Annotated[bool, Option("--private", help="Only its owner sees it.")] = False,
    endpoint: Annotated[str | None, Option(help="Another hub than huggingface.co.")] = None,
) -> None:
    """Upload the folder of a student to a hub."""
    from sublora.report.exports.hub import push as upload

    typer.echo(upload(folder, repo, private, endpoint))
