"""Steps on this machine: one after the other in this process, or side by side in processes of one thread each.

The processes are started with `subprocess` and not by `concurrent.futures.ProcessPoolExecutor`:
there a worker that dies takes the steps of all others with it, and spawning runs the main module of
the caller again, so that a script without a guard would start itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from sublora.models.base import Base
from sublora.runner.execution import Execution
from sublora.runner.worker import RETRIES, Answer, Setup, Worker, one_thread
from sublora.steps.step import Inside, Step
from sublora.store import Store

WORTH_FLOPS = 1e12  # less is done before other processes have started


class InProcess:
    """Steps one after the other in this process, on a GPU, or on all threads where the model is large."""

    workers = 1

    def __init__(self, setup: Setup, store: Store, base: Base | None = None) -> None:
        self.worker = Worker(setup, store, base)
        self._next: tuple[Step, bool] | None = None

    def room(self) -> bool:
        return self._next is None

    def submit(self, step: Step, wait: bool) -> None:
        self._next = step, wait

    def advance(self, run: Execution) -> None:
        if self._next is None:
            return
        (step, wait), self._next = self._next, None
        run.started(step)
        told = {"made": run.made, "waiting": run.waiting, "inside": partial(run.inside, step)}
        answer = self.worker.make(step, wait, **told)
        run.ended(step, answer)

    def close(self) -> None:
        pass


@dataclass
class _Process:
    process: subprocess.Popen
    connection: Connection
    step: Step | None = None
    wait: bool = False

    def send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it died, which is seen when it is read from
            self.connection.send(message)


class Processes:
    """`workers` processes, started when they are needed."""

    def __init__(self, setup: Setup, workers: int) -> None:
        self.setup, self.workers = setup, workers
        self._pool: list[_Process] = []
        self._waiting: list[tuple[Step, bool]] = []
        self._deaths: dict[str, int] = {}

    def close(self) -> None:
        for worker in self._pool:
            worker.process.kill()
        for worker in self._pool:
            worker.process.wait()
            worker.connection.close()
        self._pool.clear()

    def room(self) -> bool:
        busy = sum(worker.step is not None for worker in self._pool)
        return busy + len(self._waiting) < self.workers

    def submit(self, step: Step, wait: bool) -> None:
        self._waiting.append((step, wait))

    def advance(self, run: Execution) -> None:
        while self._waiting:
            worker = next((w for w in self._pool if w.step is None), None) or self._start()
            worker.step, worker.wait = self._waiting.pop(0)
            run.started(worker.step)
            worker.send((worker.step, worker.wait))
        at_work = {w.connection: w for w in self._pool if w.step is not None}
        for connection in wait(list(at_work), timeout=0.5):
            self._hear(at_work[connection], run)

    def _hear(self, worker: _Process, run: Execution) -> None:
        try:
            news = worker.connection.recv()
        except (EOFError, OSError):
            self._died(worker, run)
            return
        if isinstance(news, str):
            run.made(news)
        elif isinstance(news, Inside):
            run.inside(worker.step, news)
        else:
            step, worker.step = worker.step, None
            run.ended(step, news)

    def _died(self, worker: _Process, run: Execution) -> None:
        self._pool.remove(worker)
        worker.process.wait()
        worker.connection.close()
        step = worker.step
        self._deaths[step.id] = deaths = self._deaths.get(step.id, 0) + 1
        if deaths > RETRIES:
            sentence = f"Its worker died {deaths} times; it may lack memory."
            run.ended(step, Answer("failed", sentence))
        else:
            run.say(f"A worker died while it made {step.label}; that is made again.")
            self._waiting.insert(0, (step, worker.wait))

    def _start(self) -> _Process:
        here, there = Pipe()
        # a session of its own, so that Ctrl-C reaches this process alone
        process = subprocess.Popen(
            [sys.executable, "-m", "sublora.runner.worker", str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        there.close()
        worker = _Process(process, here)
        worker.send(self.setup)
        self._pool.append(worker)
        return worker


def local_executor(
    steps: Sequence[Step], setup: Setup, store: Store, base: Base | None, own: bool
) -> InProcess | Processes:
    """Processes, where one thread makes each step best and there is enough to do for more than one.

    `own`: the base came from the caller, so that no other process can load it.
    """
    missing = [s for s in steps if not all(map(store.has, s.makes))]
    workers, _ = crew(missing, setup.device, setup.threads)
    return InProcess(setup, store, base) if own or workers < 2 else Processes(setup, workers)


def crew(missing: Sequence[Step], device: str, threads: int) -> tuple[int, int]:
    """How many processes make these steps on this machine, and the threads of each."""
    alone = all(one_thread(s, device) for s in missing)
    count = min(threads, len(missing))
    worth = sum(s.cost.flops for s in missing) >= WORTH_FLOPS
    return count if alone and worth and os.name == "posix" else 1, 1 if alone else threads
