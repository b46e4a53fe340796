"""`sublora store`: look after the artifacts that all runs share."""

from dataclasses import asdict
from typing import Annotated

import typer
from typer import Option

from sublora.cli.options import JsonOpt
from sublora.runner.table import print_json, print_table

app = typer.Typer(
    no_args_is_help=True,
    help="The artifacts that all runs share: verify, remove what is unused, sizes.",
)


@app.command()
def verify(
    move: Annotated[
        bool,
        Option("--move", help="Move damaged artifacts away, so that they are made again."),
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Hash every file of every artifact again; exit code 1 if any is damaged."""
    from sublora.store import Store
    from sublora.store.usage import damaged

    store, count, wrongs = Store(), 0, []
    for folder, wrong in damaged(store):
        count += 1
        if wrong is None:
            continue
        moved = str(store.move_away(folder)) if move else None
        wrongs.append({"artifact": folder.name, "wrong": wrong, "moved_to": moved})
        typer.echo(f"Moved to {moved}: {wrong}" if move else wrong, err=as_json)
    bad = len(wrongs)
    if as_json:
        print_json({"store": str(store.root), "artifacts": count, "damaged": wrongs})
        raise typer.Exit(1 if bad else 0)
    typer.echo(f"{count} artifacts in {store.root}: {bad} damaged.")
    if bad and not move:
        typer.echo(
            "A run that needs one makes it again; `sublora store verify --move` moves them all away now."
        )
    elif bad:
        typer.echo(
            "They are made again when a run needs them; `sublora store gc` deletes what was moved away."
        )
    if bad:
        raise typer.Exit(1)


@app.command()
def gc(
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be removed.")] = False,
    min_age: Annotated[
        float, Option(help="Hours for which an artifact is kept even so.", min=0)
    ] = 1.0,
    forget: Annotated[
        list[str] | None,
        Option(help="A machine that is no more, whose runs need not be kept."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Remove artifacts that no run refers to, damaged ones that were moved away, and leftovers of processes that died."""
    from sublora.store import Store
    from sublora.store.usage import collect

    store = Store()
    removed = collect(store, dry_run=dry_run, min_age=min_age * 3600, forget=forget or ())
    if as_json:
        print_json({"store": str(store.root), "dry_run": dry_run, **asdict(removed)})
        return
    verb = "Would remove" if dry_run else "Removed"
    typer.echo(
        f"{verb} {removed.artifacts} artifacts that no run refers to, {removed.checkpoints} checkpoints, "
        f"{removed.corrupt} damaged ones and {removed.leftovers} leftovers: {_bytes(removed.bytes)}."
    )
    if removed.young:
        typer.echo(
            f"{removed.young} more are younger than {min_age:g} h, or held, and stay; --min-age 0 removes them too."
        )
    if removed.notes:
        typer.echo(f"{removed.notes} runs whose folder is gone no longer count.")
    if removed.kept_hosts:
        typer.echo(
            f"Runs of {', '.join(removed.kept_hosts)} are kept: their folders cannot be seen from here; --forget HOST is for "
            "a machine that is no more."
        )


@app.command()
def du(as_json: JsonOpt = False) -> None:
    """Sizes by kind of artifact and by run."""
    from sublora.store import Store
    from sublora.store.usage import disk_usage

    store = Store()
    disk = disk_usage(store)
    if as_json:
        print_json({"store": str(store.root), **asdict(disk)})
        return
    typer.echo(f"The store {store.root}:")
    print_table(
        ["kind", "count", "size"],
        [[k, str(u.artifacts), _bytes(u.bytes)] for k, u in disk.kinds.items()],
    )
    rows = [
        [run, str(u.artifacts), str(u.missing), _bytes(u.bytes), _bytes(u.alone)]
        for run, u in disk.runs.items()
    ]
    if disk.unused.artifacts:
        size = _bytes(disk.unused.bytes)
        rows.append(["no run", str(disk.unused.artifacts), "", size, size])
    print_table(["run", "artifacts", "not made", "size", "used by no other"], rows)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
