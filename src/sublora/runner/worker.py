"""One step, made here, in another process or on another machine: what its worker must know, and what it answers.

A step is idempotent, so one whose worker died is simply made again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from sublora.errors import SubloraError
from sublora.model import Base
from sublora.packs.check import load_base
from sublora.runner.rates import device_name
from sublora.steps.step import ROWS_AT_ONCE, Step, Workshop, perform
from sublora.store import Busy, NoRoom, Store, write_atomic

RETRIES = 5  # of a step whose worker died
VISIBLE_SECONDS = (
    60.0  # how long a network disk may take to show one machine what another one wrote
)
SMALL_MODEL = 20_000_000  # parameters up to which one thread computes a model best on a CPU


@dataclass(frozen=True)
class Answer:
    """How a step ended.

    `lacks` names the artifacts that a worker without the shared folder needs first; `sent` holds
    what it made. `seconds` of one worker for the whole step, None where some of it was there.
    """

    status: Literal["done", "busy", "lacks", "failed", "no room"]
    sentence: str = ""
    trace: str = ""
    lacks: tuple[str, ...] = ()
    sent: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict, repr=False)
    seconds: float | None = None
    device: str = ""


@dataclass(frozen=True)
class Setup:
    """What a worker must know besides its step, alike for all steps of a run.

    `model` is the main one (its folder as an absolute path), `identity` what it must be. Others are
    loaded with the same `dtype`. `root` is the store as the run sees it, `token` the text of a file
    in it, by which a worker knows that it sees the same folder.
    """

    model: str | None
    path: str | None
    identity: tuple[tuple[str, str], ...]
    dtype: str
    revision: str | None
    device: str
    threads: int
    root: str
    token: str = ""
    rows_at_once: int = ROWS_AT_ONCE


def is_small(base: Base) -> bool:
    """Whether one thread computes it best: its products are too short to be split over several."""
    return base.device.type == "cpu" and base.model.num_parameters() <= SMALL_MODEL


class Models:
    """The models of a run by name, each loaded once."""

    def __init__(self, setup: Setup, base: Base | None = None) -> None:
        self.setup = setup
        self.loaded = {setup.model: base} if base else {}

    def __call__(self, name: str) -> Base:
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def _load(self, name: str) -> Base:
        s = self.setup
        if name != s.model:
            return load_base(name, device=s.device, dtype=s.dtype)
        base = load_base(s.path or name, device=s.device, dtype=s.dtype, revision=s.revision)
        if tuple(sorted(base.identity.items())) != s.identity:
            raise SubloraError(
                f"The model {name} on {platform.node()} is not the one that the run was started "
                "with; give all machines the same folder, or the same revision of a hub id."
            )
        return base

    def threads(self, step: Step) -> int:
        """Threads of a step: one for a small model, or for none, whatever the machine has."""
        small = step.model is None or (self.setup.device == "cpu" and is_small(self(step.model)))
        return 1 if small else self.setup.threads


def attempt(step: Step, workshop: Workshop, models: Models, wait: bool) -> Answer:
    """Make what is missing of a step. Errors become texts; an interrupt is raised."""
    import torch

    try:
        threads = models.threads(step)
        torch.set_num_threads(threads)
        seconds = perform(step, workshop, wait=wait)
        return Answer("done", seconds=seconds, device=device_name(models.setup.device, threads))
    except Busy:
        return Answer("busy")
    except NoRoom as error:
        return Answer("no room", str(error))
    except SubloraError as error:
        return Answer("failed", str(error))
    except Exception as error:  # of this step alone
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Answer("failed", text, traceback.format_exc())


@dataclass(frozen=True)
class Bench:
    """A worker's models and store, kept from step to step."""

    setup: Setup
    models: Models
    workshop: Workshop

    @property
    def shared(self) -> bool:
        """Whether its store is that of the run."""
        return self.workshop.store.root == Path(self.setup.root)

    def work(
        self,
        step: Step,
        inputs: Mapping[str, list[Any]],
        wait: bool,
        made: Callable[[str], None] | None = None,
    ) -> Answer:
        """Make a step. Without the run's folder its needs are taken from `inputs`, and what it made is sent."""
        store = self.workshop.store
        try:
            if self.shared:
                until_visible(store, step.needs)
            else:
                lacks = [n for n in step.needs if not store.has(n) and n not in inputs]
                if lacks:
                    return Answer("lacks", lacks=tuple(lacks))
                receive(store, step, inputs)
        except NoRoom as error:
            return Answer("no room", f"{error} (on {platform.node()})")
        workshop = replace(self.workshop, made=made) if made else self.workshop
        answer = attempt(step, workshop, self.models, wait)
        if answer.status == "no room":
            return replace(answer, sentence=f"{answer.sentence} (on {platform.node()})")
        if answer.status != "done" or self.shared:
            return answer
        return replace(answer, sent={name: store.export(name) for name in step.makes})


@cache
def bench(setup: Setup) -> Bench:
    models = Models(setup)
    return Bench(setup, models, Workshop(Store(_root(setup)), models, setup.rows_at_once))


def work_on(setup: Setup, step: Step, inputs: Mapping[str, list[Any]], wait: bool) -> Answer:
    """A task of Ray: one step."""
    return bench(setup).work(step, inputs, wait)


def receive(store: Store, step: Step, inputs: Mapping[str, list[Any]]) -> None:
    import ray

    for name in step.needs:
        if not store.has(name):
            store.adopt(name, ray.get(inputs[name][0]))


def _root(setup: Setup) -> Path:
    """The store's folder, if this machine sees it; else one of its own."""
    with contextlib.suppress(OSError):
        if (Path(setup.root) / "token").read_text("utf-8") == setup.token:
            return Path(setup.root)
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"sublora-{user}-{setup.token[:12]}"


def until_visible(store: Store, names: Sequence[str]) -> list[str]:
    """The artifacts that do not show up in the store within VISIBLE_SECONDS."""
    until = time.monotonic() + VISIBLE_SECONDS
    while (late := [name for name in names if not store.has(name)]) and time.monotonic() < until:
        time.sleep(0.5)
    return late


def token_of(store: Store) -> str:
    """The text of the file `token` in the store's root."""
    file = store.root / "token"
    if not file.exists():
        write_atomic(file, uuid.uuid4().hex)
    return file.read_text("utf-8")


def serve(connection: Connection) -> None:
    """A worker process: steps come through the connection, and when that closes the process ends, whatever it does."""
    import queue

    steps: queue.SimpleQueue[tuple[Step, bool]] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                steps.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)

    try:
        setup: Setup = connection.recv()
    except (EOFError, OSError):  # the run was killed before it could say anything
        os._exit(1)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        step, wait = steps.get()
        connection.send(bench(setup).work(step, {}, wait, connection.send))


if __name__ == "__main__":
    from sublora.runner import worker  # pickle knows the classes by this name, not as __main__

    worker.serve(Connection(int(sys.argv[1])))
