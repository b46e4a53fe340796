"""The folder of a run: whose it is, who works on it, and run.json while it goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from sublora.errors import SubloraError
from sublora.experiments.experiment import Experiment
from sublora.runner.display import Display
from sublora.runner.execution import Execution, StepsFailed
from sublora.runner.manifest import now
from sublora.store import write_atomic, write_json_atomic


def old_manifest(out: Path) -> dict[str, Any]:
    """run.json as an earlier process left it; nothing where there is none that can be read."""
    try:
        old = json.loads((out / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return old if isinstance(old, dict) else {}


def guard_other_recipe(out: Path, recipe: Experiment) -> None:
    """The folder of one recipe is not overwritten by another. What an older version did not say has its default."""
    old = old_manifest(out)
    if not old:
        return
    before = {"kind": "grid"} | (old.get("recipe") or {})  # runs of 0.1 name no kind for a grid
    with contextlib.suppress(ValidationError):
        if recipe.goes_on(type(recipe).model_validate(before)):
            return
    raise SubloraError(
        f"The folder {out} holds a run of another recipe, other settings or another version of "
        "sublora; choose another --out, give --fresh, or remove it."
    )


def hashes(out: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a run's folder, as run.json keeps them; "" for one that cannot be read."""
    found = dict.fromkeys(names, "")
    for name in found:
        with contextlib.suppress(OSError), (out / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_files(out: Path) -> None:
    """Raises SubloraError where a file of a finished run is not as the run wrote it (runs of 0.1 do not say how that was)."""
    wrote = old_manifest(out).get("files") or {}
    if changed := [name for name, now in hashes(out, wrote).items() if now != wrote[name]]:
        raise SubloraError(
            f"{', '.join(changed)} in {out} {'is' if len(changed) == 1 else 'are'} gone, cut short or changed since the run was finished, "
            "so a page would not show what the run came to; run the same command again, which writes all of it anew from the store."
        )


def fresh_out(folder: Path) -> Path:
    """The folder, or the first free one of NAME-2, NAME-3, ...; it is made, so that it is ours."""
    number = 1
    while True:
        chosen = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            chosen.mkdir(parents=True)
            return chosen
        except FileExistsError:
            number += 1


@contextlib.contextmanager
def only_one(out: Path, help_out: Callable[[], None], display: Display) -> Iterator[None]:
    """Hold the run's folder. While another process holds it, share its work, then wait for its tables."""
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        display.say(
            f"Another process works on the run {out}; this one helps with what is left of it."
        )
        # what fails here is tried again, and reported, once the folder is ours
        with contextlib.suppress(StepsFailed):
            help_out()
        display.say(f"Waiting for the other process on {out} to write the tables.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class RunRecord:
    """run.json with the state of an execution in it.

    While the run goes on it is written at most once in `every` seconds, so that a person can look at
    it any time. Seconds by kind are added to those of earlier processes (`before`).
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], before: dict[str, float], every: float = 2.0
    ) -> None:
        self.path, self.manifest, self.before, self.every = path, manifest, before, every
        self.execution: Execution | None = None
        self._written = float("-inf")

    def changed(self) -> None:
        """Write, unless that was done less than `every` seconds ago."""
        if time.monotonic() - self._written >= self.every:
            self.write(self.manifest.get("status", "running"))

    def write(self, status: str) -> None:
        """Write now. Raises SubloraError where the disk is full."""
        self.manifest |= {"status": status, "updated": now()}
        if self.execution is not None:
            spent = self.execution.clock.read()
            self.manifest["seconds"] = {
                kind: round(self.before.get(kind, 0.0) + spent.get(kind, 0.0), 2)
                for kind in dict.fromkeys((*self.before, *spent))
            }
            self.manifest["progress"] = self.execution.progress()
            self.manifest["failed"] = [
                {"kind": f.kind, "what": f.what, "artifacts": f.artifacts, "why": f.sentence}
                for f in self.execution.failures
            ]
        write_json_atomic(self.path, self.manifest)
        self._written = time.monotonic()


@contextlib.contextmanager
def recorded(
    out: Path,
    recipe: Experiment,
    manifest: dict[str, Any],
    execution: Callable[[Callable[[], None]], Execution],
) -> Iterator[tuple[RunRecord, Execution]]:
    """The record and the execution of a run whose folder is held.

    run.json says how it ended where it did not end well, and failed.txt what its steps raised.
    Raises SubloraError where the folder holds a run of another recipe.
    """
    guard_other_recipe(out, recipe)
    old = old_manifest(out)
    manifest["started"] = old.get("started", manifest["started"])
    record = RunRecord(out / "run.json", manifest, old.get("seconds", {}))
    record.execution = current = execution(record.changed)
    record.write("running")
    try:
        yield record, current
    except BaseException as error:
        with contextlib.suppress(SubloraError):  # on a full disk the old run.json has to stay
            record.write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        traces = [f"{f.what}\n{f.trace}" for f in current.failures if f.trace]
        if traces:
            write_atomic(out / "failed.txt", "\n\n".join(traces))
        raise
