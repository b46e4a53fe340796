"""run.json while a run goes on: what is done, running and failed, written at a bounded rate so that a person can look at it any time."""

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sublora.execute import Execution
from sublora.store import write_json_atomic


class Journal:
    """Writes a run's manifest to `path` with the state of an execution in it; safe to call from several threads.

    `before` holds the seconds by stage of earlier processes that worked on the run; they are added to.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], before: dict[str, float], every: float = 2.0) -> None:
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
            state["seconds"] = {s: round(self.before.get(s, 0.0) + spent.get(s, 0.0), 2) for s in stages}
            state["progress"] = self.execution.progress()
            state["failed"] = [
                {"stage": f.stage, "what": f.what, "cells": f.cells, "why": f.sentence} for f in self.execution.failures
            ]
        self.manifest |= state
        write_json_atomic(self.path, self.manifest)
        self._written = time.monotonic()
