"""What every step is: one kind of artifact, with its spec, what it needs, what it costs, how it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sublora.models.base import Base
from sublora.store import Store

CHECKPOINTS = ("safetensors", "jsonl")  # what a long step keeps: states, or rows
ROWS_AT_ONCE = 2048  # rows of a scoring batch over all students; a matter of speed alone


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Cost:
    """Tokens read or written, and floating-point operations, of which `written` are those of tokens that are written one by one."""

    tokens: float = 0.0
    flops: float = 0.0
    written: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        written = self.written + other.written
        return Cost(self.tokens + other.tokens, self.flops + other.flops, written)

    def share(self, of: float) -> Cost:
        return Cost(self.tokens * of, self.flops * of, self.written * of)


Rows = Sequence[tuple[str, str]]
"""Texts (prompt, completion)."""
Tick = Callable[[Cost], None]
"""Told what each piece of a trial would cost on the step's own model; raises where it was enough."""


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


@dataclass(frozen=True)
class Inside:
    """How far a step is inside: `done` of `total` of a `unit` such as rows, by so many tokens; `share` of its work, 0 to 1."""

    done: int
    total: int
    unit: str
    tokens: int
    share: float


@dataclass(frozen=True)
class Workshop:
    """What a step is made with, wherever that is. `base_of` gives a model by its name, loaded once. `check` is called often and raises
    where the work has to stop. `made` is told each finished artifact, `inside` how far a step is. `kept` holds what steps read again and
    again, such as the token rows of a dataset, by a key of their own."""

    store: Store
    base_of: Callable[[str], Base]
    rows_at_once: int = ROWS_AT_ONCE
    check: Callable[[], None] = _nothing
    made: Callable[[str], None] = _nothing
    waiting: Callable[[Step], None] = _nothing
    inside: Callable[[Inside], None] = _nothing
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def progress(
        self, done: int, total: int, unit: str, tokens: int = 0, share: float | None = None
    ) -> None:
        """Say how far a step is, between two short pieces of work. Raises where the work has to stop, as `check`."""
        self.check()
        self.inside(Inside(done, total, unit, tokens, done / total if share is None else share))

    def counter(self, total: int, unit: str, tokens: float) -> Callable[[int], None]:
        """To be told how many tokens were read or written, pass by pass, of about so many in all: it says how far the step is."""
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            share = min(1.0, done / tokens)
            self.progress(int(share * total), total, unit, done, share)

        return more

    def checkpoint(self, step: Step, suffix: str = "safetensors") -> Path:
        """Where a long step keeps what it has so far."""
        return self.store.root / "checkpoints" / f"{step.id}.{suffix}"


class Step(Protocol):
    """A unit of work: it makes the artifacts `makes`, in one go, from the artifacts `needs`. It holds all that the work takes, so that it
    can be pickled and made on another machine. Steps depend on the recipe alone and not on what is done: a resumed run repeats the same
    passes, and so makes the same bytes. A kind that takes most of a run's time may have `trial(base, rows, tick)`, which does pieces of
    such work, alike, on any base and rows, so that a plan can time them; or `own_trial`, on the step's own base only."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str:
        """What it makes, in the plural: the row of a plan, the name of a progress bar."""

    @property
    def makes(self) -> tuple[str, ...]: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def label(self) -> str:
        """What it makes, in a few words, for a message."""

    @property
    def model(self) -> str | None:
        """The language model that it takes, by the name that `Workshop.base_of` knows."""

    @property
    def cost(self) -> Cost:
        """The cost of all that it makes."""

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        """Make the artifacts `wanted`, some of `makes`."""


def perform(step: Step, workshop: Workshop, *, wait: bool = True) -> float | None:
    """Make what is missing of a step. Raises what the work raises; finished artifacts are kept. Returns the seconds that it took to make
    the whole step, or None where some of it was there, be it as a checkpoint. Raises store.Busy where another process makes the same step
    and `wait` is false."""

    def waiting() -> None:
        workshop.check()
        workshop.waiting(step)

    with workshop.store.lock(step.id, waiting, wait=wait):
        wanted = {name for name in step.makes if not workshop.store.has(name)}
        if not wanted:
            return None
        begun = any(workshop.checkpoint(step, kind).exists() for kind in CHECKPOINTS)
        whole = len(wanted) == len(step.makes) and not begun
        started = time.monotonic()
        step.make(workshop, wanted)
        return time.monotonic() - started if whole else None
