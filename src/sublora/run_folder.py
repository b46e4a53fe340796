"""The folder of a run: whose it is, who works on it, and what an earlier process left there."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sublora.errors import SubloraError
from sublora.execute import UnitsFailed
from sublora.progress import Steps
from sublora.store import canonical_json


@contextlib.contextmanager
def only_one(out: Path, help_out: Callable[[], None], steps: Steps) -> Iterator[None]:
    """Hold the run's folder. While another process holds it, share its work, and then wait until it is done with the tables."""
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        steps.say(
            f"Another process works on the run {out}; this one helps with what is left of it."
        )
        # what fails here is tried again, and reported, once the folder is ours
        with contextlib.suppress(UnitsFailed):
            help_out()
        steps.say(f"Waiting for the other process on {out} to write the tables.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def old_manifest(out: Path) -> dict[str, Any]:
    """run.json as an earlier process left it; nothing where there is none that can be read."""
    try:
        old = json.loads((out / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return old if isinstance(old, dict) else {}


def guard_other_recipe(out: Path, manifest: dict[str, Any]) -> None:
    """The folder of one recipe is not overwritten by another."""
    old = old_manifest(out)
    if old and canonical_json(old.get("recipe")) != canonical_json(manifest["recipe"]):
        raise SubloraError(
            f"The folder {out} holds a run of another recipe or other settings; choose another --out, give --fresh, or remove it."
        )


def fresh_out(folder: Path) -> Path:
    """The folder itself where it is free, or else the first free one of NAME-2, NAME-3, ...; it is made, so that it is ours."""
    number = 1
    while True:
        chosen = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            chosen.mkdir(parents=True)
            return chosen
        except FileExistsError:
            number += 1


def command_line() -> str:
    import shlex

    return "sublora " + " ".join(shlex.quote(a) for a in sys.argv[1:])
