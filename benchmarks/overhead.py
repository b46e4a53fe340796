"""What store and executor cost beside the work itself.

    python benchmarks/overhead.py                          10,000 trivial cells; the sweep of `make demo`
    python benchmarks/overhead.py --cells 200 --no-sweep

How long a large plan takes is measured by `scale.py`. A trivial cell is an artifact of two
small files, made under its lock, flushed and counted, with no work in it. Overhead of the sweep is the time spent in planning, in the
store (locks, looking up, hashing, flushing, renaming) and in keeping run.json, over all time. The sweep runs in one thread, as each
process of `make demo` does: beside a second thread, the time of a short call is mostly its wait for Python's lock.
"""

import argparse
import functools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sublora.experiments.grid.grid import Grid
from sublora.experiments.kinds import open_recipe
from sublora.packs.check import load_base
from sublora.runner import run
from sublora.runner.display import Display
from sublora.runner.execution import Execution
from sublora.runner.folder import RunRecord
from sublora.runner.local import InProcess
from sublora.runner.worker import Setup
from sublora.steps.step import Cost, Workshop
from sublora.store import Store, artifact_id


class Trivial:
    """A step with one artifact and no work."""

    needs, kind, model, cost = (), "trivial cells", None, Cost()

    def __init__(self, number: int) -> None:
        self.spec = {"number": number}
        self.id = artifact_id("trivial", self.spec)
        self.makes, self.label = (self.id,), f"trivial cell {number}"

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        with workshop.store.create(self.id, self.spec) as folder:
            (folder / "scores.json").write_text("{}\n")
            (folder / "samples.jsonl").write_text("{}\n")
        workshop.made(self.id)


def cell_seconds(cells: int, folder: Path) -> float:
    """Seconds for so many trivial cells in this process, run.json included."""
    store = Store(folder / "store")
    record = RunRecord(folder / "run.json", {}, {})
    setup = Setup(None, None, (), "float32", None, "cpu", 1, str(store.root))
    with Display(every=1e9) as display:
        execution = Execution(InProcess(setup, store), store, display, record.changed)
        record.execution = execution
        started = time.perf_counter()
        execution.run([Trivial(n) for n in range(cells)])
        seconds = time.perf_counter() - started
    assert execution.counts["trivial cells"].done == cells and not execution.failures
    return seconds


class Clock:
    """Seconds during which any of the functions that it wraps runs, by the one that began; what runs inside or beside it counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running, self._began, self._first = 0, 0.0, ""
        self._lock = threading.Lock()

    def _enter(self, name: str) -> None:
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._first, self._began = name, time.perf_counter()

    def _exit(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self.seconds[self._first] = (
                    self.seconds.get(self._first, 0.0) + time.perf_counter() - self._began
                )

    def call(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._enter(name)
            try:
                return function(*arguments, **options)
            finally:
                self._exit()

        return timed

    def ends(
        self, name: str, function: Callable[..., AbstractContextManager[Any]]
    ) -> Callable[..., "_Ends"]:
        """A context manager's way in and out, without what happens inside it."""
        return lambda *arguments, **options: _Ends(self, name, function(*arguments, **options))


class _Ends:
    def __init__(self, clock: Clock, name: str, inner: AbstractContextManager[Any]) -> None:
        self.enter, self.exit = clock.call(name, inner.__enter__), clock.call(name, inner.__exit__)

    def __enter__(self) -> Any:
        return self.enter()

    def __exit__(self, *error: Any) -> Any:
        return self.exit(*error)


def sweep_overhead(folder: Path, sets: list[str]) -> dict[str, Any]:
    """The recipe of `make demo` from an empty store, with the clock in the places that are not work."""
    clock = Clock()
    for name in ("has", "read", "sweep"):
        setattr(Store, name, clock.call(f"store.{name}", getattr(Store, name)))
    for name in ("lock", "create"):
        setattr(Store, name, clock.ends(f"store.{name}", getattr(Store, name)))
    for name in ("changed", "write"):
        setattr(RunRecord, name, clock.call("run.json", getattr(RunRecord, name)))
    Grid.plan = clock.call("plan", Grid.plan)
    for name in ("note_run", "keep_rates"):
        setattr(run, name, clock.call(name, getattr(run, name)))
    recipe = open_recipe("rank-lr", traits=["otter"], sets=sets)
    # with a base of its own the run stays in this process, where the clock sees it
    result = run.run(
        recipe,
        folder / "run",
        run.RunOptions(threads=1),
        store=Store(folder / "store"),
        base=load_base(recipe.model),
    )
    busy = sum(s for kind, s in result.seconds.items() if kind not in ("statistics", "report"))
    spent = sum(clock.seconds.values())
    return {"fraction": spent / busy, "overhead": spent, "busy": busy, "parts": clock.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=10_000, help="trivial cells")
    parser.add_argument(
        "--sweep-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="make the sweep smaller",
    )
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        seconds = cell_seconds(options.cells, folder / "cells")
        print(
            f"{options.cells} trivial cells in this process: {1000 * seconds / options.cells:.2f} ms a cell"
        )
        figures |= {"cells": options.cells, "ms_per_cell": round(1000 * seconds / options.cells, 3)}
        if not options.no_sweep:
            sweep = sweep_overhead(folder, options.sweep_set)
            parts = ", ".join(
                f"{k} {v:.2f} s" for k, v in sorted(sweep["parts"].items(), key=lambda kv: -kv[1])
            )
            print(
                f"sweep of make demo: {sweep['overhead']:.2f} s of {sweep['busy']:.0f} s, {100 * sweep['fraction']:.2f}% ({parts})"
            )
            figures |= {
                "overhead_fraction": round(sweep["fraction"], 5),
                "overhead_s": round(sweep["overhead"], 2),
            }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
