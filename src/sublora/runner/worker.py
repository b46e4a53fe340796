"""One step, made here, in another process or on another machine: what its worker must know, and what it answers.

A step is idempotent, so one whose worker died is simply made again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
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
from sublora.models.base import Base, known_shape
from sublora.packs.check import load_base
from sublora.packs.packed_model import SMALL_MODEL
from sublora.runner.rates import device_name
from sublora.steps.step import ROWS_AT_ONCE, Inside, Step, Workshop, perform
from sublora.store import Busy, NoRoom, Store, write_atomic

RETRIES = 5  # of a step whose worker died
VISIBLE_SECONDS = 60.0  # a network disk may take so long to show what another machine wrote


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


@cache
def _parameters(model: str) -> float:
    try:
        return known_shape(model).parameters
    except SubloraError:  # it may be large
        return float("inf")


def one_thread(step: Step, device: str) -> bool:
    """Whether one thread makes it best: with a small model on a CPU, or none, products are too short to be split."""
    return step.model is None or (device == "cpu" and _parameters(step.model) <= SMALL_MODEL)


class Worker:
    """Makes steps, with models that are loaded once and what steps read again and again."""

    def __init__(self, setup: Setup, store: Store, base: Base | None = None) -> None:
        self.setup = setup
        self.loaded = {setup.model: base} if base else {}
        self.workshop = Workshop(store, self.base_of, setup.rows_at_once)

    def base_of(self, name: str) -> Base:
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

    def make(self, step: Step, wait: bool, **told: Callable[..., None]) -> Answer:
        """Make what is missing of a step. Errors become texts; an interrupt is raised.

        `told`: the functions `made` and `waiting` of its workshop.
        """
        import torch

        try:
            threads = 1 if one_thread(step, self.setup.device) else self.setup.threads
            torch.set_num_threads(threads)
            seconds = perform(step, replace(self.workshop, **told), wait=wait)
            return Answer("done", seconds=seconds, device=device_name(self.setup.device, threads))
        except Busy:
            return Answer("busy")
        except NoRoom as error:
            return Answer("no room", str(error))
        except SubloraError as error:
            return Answer("failed", str(error))
        except Exception as error:  # of this step alone
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Answer("failed", text, traceback.format_exc())


@cache
def worker_of(setup: Setup) -> Worker:
    """This process's worker, kept from step to step."""
    return Worker(setup, Store(_root(setup)))


def work_on(
    setup: Setup, step: Step, inputs: Mapping[str, list[Any]], wait: bool, **told: Any
) -> Answer:
    """A step in another process or on another machine.

    Where the run's folder is not seen, its needs are taken from `inputs`, and what it made is sent.
    """
    worker = worker_of(setup)
    store = worker.workshop.store
    shared = store.root == Path(setup.root)
    if shared:
        until_visible(store, step.needs)
    else:
        lacks = [n for n in step.needs if not store.has(n) and n not in inputs]
        if lacks:
            return Answer("lacks", lacks=tuple(lacks))
        try:
            receive(store, step, inputs)
        except SubloraError as error:
            return Answer("no room" if isinstance(error, NoRoom) else "failed", str(error))
    answer = worker.make(step, wait, **told)
    if answer.status == "no room":
        return replace(answer, sentence=f"{answer.sentence} (on {platform.node()})")
    if answer.status != "done" or shared:
        return answer
    return replace(answer, sent={name: store.export(name) for name in step.makes})


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
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                messages.put(connection.recv())
        except (EOFError, OSError):  # the run has ended
            os._exit(0)
        except Exception:  # a step that this process cannot read
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    setup: Setup = messages.get()
    while True:
        step, wait = messages.get()
        told = {"made": connection.send, "inside": now_and_then(connection.send)}
        connection.send(work_on(setup, step, {}, wait, **told))


def now_and_then(tell: Callable[[Inside], None]) -> Callable[[Inside], None]:
    """`tell` at most once a second: a small model takes thousands of steps in that time."""
    told = time.monotonic()

    def inside(news: Inside) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            tell(news)

    return inside


if __name__ == "__main__":
    from sublora.runner import worker  # pickle knows the classes by this name, not as __main__

    worker.serve(Connection(int(sys.argv[1])))
