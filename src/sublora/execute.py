"""Runs a plan: stage by stage, what the store has is taken from there, what is missing is handed to an executor and kept.

An executor decides where units run and nothing else; `InProcess` is here, `ray_executor.Ray` for more than one GPU or machine.
"""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from sublora.errors import SubloraError
from sublora.model import Base
from sublora.plan import Plan
from sublora.progress import Steps
from sublora.rates import Timing, device_name
from sublora.stages import ROWS_AT_ONCE, Maker, perform
from sublora.store import ArtifactCorrupt, Busy, NoRoom, Store
from sublora.units import (
    Unit,
    attribution_units,
    data_units,
    divergence_units,
    gradient_units,
    measure_units,
    probe_units,
    student_vector_units,
    teach_units,
    teacher_vector_units,
    train_units,
    transform_units,
)
from sublora.workers import Stopped, Workers


class UnitsFailed(SubloraError):
    """Some units could not be made; everything else was."""


class Watch(Protocol):
    """Who is told how the units go; may be called from any thread."""

    def started(self, unit: Unit) -> None: ...
    def postponed(self, unit: Unit) -> None:
        """Another process makes it; it is looked at again when nothing else is left."""

    def waiting(self, unit: Unit) -> None: ...
    def made(self, artifact: str) -> None: ...
    def finished(self, unit: Unit, seconds: float | None, device: str) -> None:
        """`seconds` of one worker on `device` for the whole unit, or None where it was not made as a whole."""

    def failed(self, unit: Unit, error: BaseException) -> None: ...


class Executor(Protocol):
    workers: int  # units that run at once

    def run(self, units: Sequence[Unit], watch: Watch) -> None:
        """Perform all units. What one unit raises goes to `watch.failed` and the others go on; NoRoom and an interrupt are raised."""


class InProcess:
    """Units side by side in this process, see `workers`."""

    def __init__(
        self, base: Base, store: Store, threads: int = 1, rows_at_once: int = ROWS_AT_ONCE
    ) -> None:
        self.pool = Workers(base, threads)
        self.workers = self.pool.count
        self.device = device_name(str(base.device), self.pool.threads_each)
        self.maker = Maker(base, store, rows_at_once, self.pool.check)

    def run(self, units: Sequence[Unit], watch: Watch) -> None:
        busy = self._round(units, watch, wait=False)
        if busy:
            self._round(busy, watch, wait=True)

    def _round(self, units: Sequence[Unit], watch: Watch, wait: bool) -> list[Unit]:
        busy: list[Unit] = []

        def one(base: Base, unit: Unit) -> None:
            watch.started(unit)
            maker = replace(self.maker, base=base, made=watch.made, waiting=watch.waiting)
            try:
                seconds = perform(unit, maker, wait=wait)
            except Busy:
                watch.postponed(unit)
                busy.append(unit)
            except (Stopped, NoRoom):
                raise
            except Exception as error:  # of this unit alone
                watch.failed(unit, error)
            else:
                watch.finished(unit, seconds, self.device)

        self.pool.each(units, one)
        return busy


@dataclass(frozen=True)
class Failure:
    """A unit that could not be made: `cells` of its stage are missing."""

    stage: str
    what: str
    cells: int
    sentence: str
    trace: str = field(default="", repr=False)


@dataclass
class Count:
    """Artifacts of a stage."""

    total: int
    done: int
    running: int = 0
    failed: int = 0


@dataclass
class Execution:
    """One pass over a plan. `seconds` and `counts` by stage; `changed` is called whenever they change, from any thread."""

    executor: Executor
    store: Store
    steps: Steps
    changed: Callable[[], None] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, Count] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    _have: set[str] = field(default_factory=set, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _stage: str = ""
    _timing: tuple[str, float] | None = None
    _told: set[str] = field(default_factory=set, repr=False)

    def run(self, plan: Plan) -> None:
        """Raises UnitsFailed with one sentence where something could not be made; all that could be is in the store."""
        stages = [
            ("teach", "teachers", teach_units(plan)),
            ("teacher vectors", "teacher vectors", teacher_vector_units(plan)),
            ("data", "datasets", data_units(plan)),
            ("transform", "transformed datasets", transform_units(plan)),
            ("divergence", "divergent tokens", divergence_units(plan)),
            ("train", "students", train_units(plan)),
            ("student vectors", "student vectors", student_vector_units(plan)),
            ("measure", "measurements", measure_units(plan)),
            ("attribute", "attributions", attribution_units(plan)),
            ("rows", "row probes", probe_units(plan)),
            ("gradients", "gradients", gradient_units(plan)),
        ]
        always = ("datasets", "students", "measurements")
        stages = [stage for stage in stages if stage[2] or stage[1] in always]
        self.run_stages(stages)

    def run_stages(self, stages: Sequence[tuple[str, str, Sequence[Unit]]]) -> None:
        """Stages as (name, what they make, units), one after the other. Raises as `run`."""
        self.store.sweep()
        try:
            for name, label, units in stages:
                with self._timed(name):
                    self._run_stage(label, units)
        finally:
            for count in self.counts.values():
                count.running = 0
        if self.failures:
            raise UnitsFailed(self._failed_sentence())

    @contextlib.contextmanager
    def _timed(self, stage: str):
        self._timing = (stage, time.monotonic())
        try:
            yield
        finally:
            self.seconds = self.spent()
            self._timing = None

    def spent(self) -> dict[str, float]:
        """Seconds by stage so far."""
        if self._timing is None:
            return dict(self.seconds)
        stage, since = self._timing
        return self.seconds | {stage: round(time.monotonic() - since, 2)}

    def progress(self) -> dict[str, dict[str, int]]:
        """Artifacts by stage: total, done, running, failed."""
        with self._lock:
            return {stage: asdict(count) for stage, count in self.counts.items()}

    def _run_stage(self, label: str, units: Sequence[Unit]) -> None:
        names = dict.fromkeys(name for unit in units for name in unit.makes)
        done = {name for name in names if self.done(name)}
        self._have |= done
        self._stage = label
        self.counts[label] = Count(len(names), len(done))
        self.steps.begin(label, len(names), len(done))
        self.changed()
        todo = []
        for unit in units:
            if all(name in done for name in unit.makes):
                continue
            lost = [name for name in unit.needs if name not in self._have]
            if lost:
                error = SubloraError(f"It needs {lost[0]}, which could not be made.")
                self.started(unit)
                self.failed(unit, error)
            else:
                todo.append(unit)
        if todo:
            self.executor.run(todo, self)

    def done(self, artifact: str) -> bool:
        """Whether an artifact is there and whole; a damaged one is moved away, so that it is made again."""
        if not self.store.has(artifact):
            return False
        try:
            self.store.read(artifact)
        except ArtifactCorrupt as error:
            if self.store.discard_corrupt(artifact):
                self.steps.say(f"{error} It is made again.")
            return False
        return True

    def _missing(self, unit: Unit) -> list[str]:
        return [name for name in unit.makes if name not in self._have]

    def started(self, unit: Unit) -> None:
        with self._lock:
            self._run_count(len(self._missing(unit)))
        self.changed()

    def postponed(self, unit: Unit) -> None:
        with self._lock:
            self._run_count(-len(self._missing(unit)))
        self.changed()

    def waiting(self, unit: Unit) -> None:
        with self._lock:
            if unit.id not in self._told:
                self._told.add(unit.id)
                self.steps.say(f"Waiting for another process that makes {unit.label}.")

    def made(self, artifact: str) -> None:
        with self._lock:
            if artifact in self._have:
                return
            self._have.add(artifact)
            count = self.counts[self._stage]
            count.done += 1
            count.running -= 1
            self.steps.running = count.running
            self.steps.advance()
        self.changed()

    def finished(self, unit: Unit, seconds: float | None, device: str) -> None:
        if seconds is not None:
            self.timings.append(Timing(unit, seconds, device))
        for name in self._missing(unit):
            self.made(name)

    def failed(self, unit: Unit, error: BaseException) -> None:
        with self._lock:
            missing = len(self._missing(unit))
            self._run_count(-missing)
            self.counts[self._stage].failed += missing
            known = isinstance(error, SubloraError)
            sentence = (
                str(error)
                if known
                else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
            trace = "" if known else "".join(traceback.format_exception(error))
            self.failures.append(Failure(self._stage, unit.label, missing, sentence, trace))
            self.steps.failed = self.counts[self._stage].failed
            self.steps.say(f"Failed: {unit.label}: {sentence}")
        self.changed()

    def _run_count(self, change: int) -> None:
        count = self.counts[self._stage]
        count.running += change
        self.steps.running = count.running

    def _failed_sentence(self) -> str:
        first = self.failures[0]
        parts = [f"{c.failed} of {c.total} {stage}" for stage, c in self.counts.items() if c.failed]
        return (
            f"{_and(parts)} could not be made, the first one ({first.what}) because: {first.sentence.rstrip('.')}. "
            "All others are kept; mend that and run the same command again for the rest."
        )


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
