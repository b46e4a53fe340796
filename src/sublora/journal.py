"""run.json while a run goes on: what is done, running and failed, written at a bounded rate so that a person can look at it any time."""

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.execute import Execution, Executor
from sublora.progress import Steps
from sublora.run_folder import guard_other_recipe, old_manifest
from sublora.store import Store, write_atomic, write_json_atomic


class Journal:
    """Writes a run's manifest to `path` with the state of an execution in it; safe to call from several threads.

    `before` holds the seconds by stage of earlier processes that worked on the run; they are added to.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], before: dict[str, float], every: float = 2.0
    ) -> None:
        self.path, self.manifest, self.before, self.every = path, manifest, before, every
        self.execution: Execution | None = None
        self._lock = threading.Lock()
        self._written = float("-inf")

    def changed(self) -> None:
        """Write, unless that was done less than `every` seconds ago."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() - self._written >= self.every:
                    self._write()
            finally:
                self._lock.release()

    def write(self, status: str, **values: Any) -> None:
        """Write now. Raises SubloraError where the disk is full."""
        with self._lock:
            self.manifest |= {"status": status, **values}
            self._write()

    def _write(self) -> None:
        state: dict[str, Any] = {"updated": datetime.now(UTC).isoformat(timespec="seconds")}
        if self.execution is not None:
            spent = self.execution.spent()
            stages = dict.fromkeys((*self.before, *spent))
            state["seconds"] = {
                s: round(self.before.get(s, 0.0) + spent.get(s, 0.0), 2) for s in stages
            }
            state["progress"] = self.execution.progress()
            state["failed"] = [
                {"stage": f.stage, "what": f.what, "cells": f.cells, "why": f.sentence}
                for f in self.execution.failures
            ]
        self.manifest |= state
        write_json_atomic(self.path, self.manifest)
        self._written = time.monotonic()


@contextlib.contextmanager
def journalled(
    out: Path, manifest: dict[str, Any], runner: Executor, store: Store, steps: Steps
) -> Iterator[tuple[Journal, Execution]]:
    """The journal and the execution of a run in its folder, which is held. run.json says how it ended where it did not end well, and
    failed.txt what was raised in its units. Raises SubloraError where the folder holds a run of another recipe."""
    guard_other_recipe(out, manifest)
    old = old_manifest(out)
    manifest["started"] = old.get("started", manifest["started"])
    journal = Journal(out / "run.json", manifest, old.get("seconds", {}))
    execution = Execution(runner, store, steps, journal.changed)
    journal.execution = execution
    journal.write("running")
    try:
        yield journal, execution
    except BaseException as error:
        with contextlib.suppress(SubloraError):  # on a full disk the old run.json has to stay
            journal.write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        if any(f.trace for f in execution.failures):
            write_atomic(
                out / "failed.txt",
                "\n\n".join(f"{f.what}\n{f.trace}" for f in execution.failures if f.trace),
            )
        raise
