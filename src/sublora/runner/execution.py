"""The one loop of a run: every step is handed to an executor as soon as all that it needs is there.

An executor decides where steps are made and nothing else; see `local` and `ray`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from sublora.errors import SubloraError
from sublora.runner.display import Display
from sublora.runner.queue import Queue
from sublora.runner.rates import Timing
from sublora.runner.worker import Answer
from sublora.steps.step import Inside, Step
from sublora.store import ArtifactCorrupt, NoRoom, Store
from sublora.text import listed


class StepsFailed(SubloraError):
    """Some steps could not be made; everything else was."""


class Executor(Protocol):
    workers: int  # steps that are made at once

    def room(self) -> bool:
        """Whether it takes one more step now."""

    def submit(self, step: Step, wait: bool) -> None:
        """Take a step. With `wait`, another process that makes the same one is waited for."""

    def advance(self, run: Execution) -> None:
        """Go on with the steps that were taken, until one has ended or for a moment.

        `run` is told what happens: started, waiting (for another process that makes it), made,
        ended. What a step raises ends that step alone; an interrupt is raised.
        """

    def close(self) -> None:
        """End all that still runs."""


@dataclass(frozen=True)
class Failure:
    """A step that could not be made: so many artifacts of its kind are missing."""

    kind: str
    what: str
    artifacts: int
    sentence: str
    trace: str = field(default="", repr=False)


@dataclass
class Count:
    """Artifacts of a kind."""

    total: int
    done: int
    running: int = 0
    failed: int = 0


class Clock:
    """Wall time by kind while at least one step of the kind is being made. Kinds may overlap."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._since: dict[str, float] = {}

    def set(self, kind: str, running: bool) -> None:
        if running:
            self._since.setdefault(kind, time.monotonic())
        elif kind in self._since:
            self.spent[kind] = self.read()[kind]
            del self._since[kind]

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        now = time.monotonic()
        more = {k: self.spent.get(k, 0.0) + now - since for k, since in self._since.items()}
        return {k: round(seconds, 2) for k, seconds in (self.spent | more).items()}


class Execution:
    """One pass over the steps of a plan; `changed` is called whenever counts change."""

    def __init__(
        self,
        executor: Executor,
        store: Store,
        display: Display,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.executor, self.store, self.display, self.changed = executor, store, display, changed
        self.counts: dict[str, Count] = {}
        self.failures: list[Failure] = []
        self.timings: list[Timing] = []
        self.clock = Clock()
        self._have: set[str] = set()
        self._kind: dict[str, str] = {}
        self._running: dict[str, Step] = {}
        self._told: set[str] = set()

    def run(self, steps: Sequence[Step]) -> None:
        """Make what is missing.

        Raises StepsFailed with one sentence where something could not be made; all that could be is
        in the store. Raises NoRoom where a disk is full.
        """
        self.store.sweep()
        self._look(steps)
        self._queue = Queue(steps, self._have)
        self._drop(self._queue.lost_before)
        try:
            while self._queue:
                while self.executor.room() and (taken := self._queue.take()):
                    self.executor.submit(*taken)
                self.executor.advance(self)
        finally:
            self._running.clear()
            for kind in self.counts:
                self._recount(kind)
        if self.failures:
            raise StepsFailed(self._failed_sentence())

    def _look(self, steps: Sequence[Step]) -> None:
        """What is there, and how much of each kind."""
        self._kind = {name: step.kind for step in steps for name in step.makes}
        needed = (name for step in steps for name in step.needs)
        self._have = {name for name in dict.fromkeys((*self._kind, *needed)) if self._whole(name)}
        for name, kind in self._kind.items():
            count = self.counts.setdefault(kind, Count(0, 0))
            count.total += 1
            count.done += name in self._have
        for kind, count in self.counts.items():
            self.display.begin(kind, count.total, count.done)
        self.changed()

    def _whole(self, artifact: str) -> bool:
        """Whether an artifact is there; a damaged one is moved away, so that it is made again."""
        if not self.store.has(artifact):
            return False
        try:
            self.store.read(artifact)
        except ArtifactCorrupt as error:
            if self.store.discard_corrupt(artifact):
                self.say(f"{error} It is made again.")
            return False
        return True

    def progress(self) -> dict[str, dict[str, int]]:
        """Artifacts by kind: total, done, running, failed."""
        return {kind: asdict(count) for kind, count in self.counts.items()}

    def _missing(self, step: Step) -> list[str]:
        return [name for name in step.makes if name not in self._have]

    def _recount(self, kind: str) -> None:
        count = self.counts[kind]
        mine = [step for step in self._running.values() if step.kind == kind]
        count.running = sum(len(self._missing(step)) for step in mine)
        self.clock.set(kind, bool(mine))
        if mine or count.failed or count.running:
            self.display.update(kind, count.done, count.running, count.failed)
        self.changed()

    def say(self, sentence: str) -> None:
        self.display.say(sentence)

    def started(self, step: Step) -> None:
        self._running[step.id] = step
        self._recount(step.kind)

    def waiting(self, step: Step) -> None:
        if step.id not in self._told:
            self._told.add(step.id)
            self.say(f"Waiting for another process that makes {step.label}.")

    def inside(self, step: Step, news: Inside) -> None:
        """How far a step is that is being made."""
        made = len(step.makes) - len(self._missing(step))
        ahead = max(0.0, news.share * len(step.makes) - made)
        self.display.inside(step.kind, step.id, step.label, news, ahead)

    def made(self, artifact: str) -> None:
        if artifact not in self._have:
            self._have.add(artifact)
            self.counts[self._kind[artifact]].done += 1
            self._queue.made(artifact)
            self._recount(self._kind[artifact])

    def ended(self, step: Step, answer: Answer) -> None:
        if answer.status == "no room":
            raise NoRoom(answer.sentence)
        if answer.status == "done":
            if answer.seconds is not None:
                self.timings.append(Timing(step, answer.seconds, answer.device))
            for name in self._missing(step):
                self.made(name)
        self._running.pop(step.id, None)
        self._queue.ended(step, busy=answer.status == "busy")
        if answer.status == "failed":
            self._fail(step, answer.sentence, answer.trace)
            self._drop(self._missing(step))
        self._recount(step.kind)

    def _drop(self, lost: Sequence[str]) -> None:
        """The steps that need what cannot be made cannot be made either."""
        for step, name in self._queue.lose(lost):
            self._fail(step, f"It needs {name}, which could not be made.")

    def _fail(self, step: Step, sentence: str, trace: str = "") -> None:
        missing = len(self._missing(step))
        self.counts[step.kind].failed += missing
        self.failures.append(Failure(step.kind, step.label, missing, sentence, trace))
        self.say(f"Failed: {step.label}: {sentence}")
        self._recount(step.kind)

    def _failed_sentence(self) -> str:
        first = self.failures[0]
        parts = [f"{c.failed} of {c.total} {kind}" for kind, c in self.counts.items() if c.failed]
        return (
            f"{listed(parts)} could not be made, the first one ({first.what}) because: "
            f"{first.sentence.rstrip('.')}. All others are kept; fix that and run the same command "
            "again for the rest."
        )
