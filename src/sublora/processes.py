"""Units in processes of this machine, one thread each: how a long run of a small model uses all cores of a CPU.

Threads would do the same work (`execute.InProcess`), but a small model's operations are so short that they wait for each other's turn at
Python's lock. What a unit computes is the same to the byte either way. A worker ends with this process, however that ends.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from sublora.errors import SubloraError
from sublora.execute import Watch
from sublora.model import Base
from sublora.plan import Plan
from sublora.remote import RETRIES, Answer, Work, work_on
from sublora.store import NoRoom
from sublora.units import Unit
from sublora.workers import is_small

WORTH_TOKENS = 1_000_000  # of training; less is done before processes have started


def worth_processes(plan: Plan, base: Base, threads: int) -> bool:
    """Whether a run is long enough, and its model small enough, that processes of one thread are faster than threads of this one."""
    rows = sum(s.student.epochs for s in plan.students) * plan.recipe.data.rows
    return is_small(base) and threads > 1 and len(plan.packs) > 1 and rows * 32 > WORTH_TOKENS


@dataclass
class _Worker:
    process: subprocess.Popen
    unit: Unit | None = None
    wait: bool = False


class Processes:
    """`count` processes, started at the first unit; see `execute.Executor`. A context manager: on exit all have ended."""

    def __init__(self, work: Work, count: int) -> None:
        self.work, self.workers = work, count
        self._pool: list[_Worker] = []
        self._news: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.process.kill()
        for worker in self._pool:
            worker.process.wait()
        self._pool.clear()

    def run(self, units: Sequence[Unit], watch: Watch) -> None:
        waiting = deque((unit, False) for unit in units)
        deaths: dict[str, int] = {}
        while len(self._pool) < min(self.workers, len(units)):
            self._pool.append(self._start())
        while waiting or any(w.unit for w in self._pool):
            for worker in self._pool:
                # what another process makes is looked at again when nothing else is left
                if (
                    worker.unit is None
                    and waiting
                    and not (waiting[0][1] and any(w.unit for w in self._pool))
                ):
                    worker.unit, worker.wait = waiting.popleft()
                    watch.started(worker.unit)
                    _send(worker.process.stdin, (worker.unit, worker.wait))
            worker, news = self._news.get()
            if worker not in self._pool or worker.unit is None:
                continue
            if isinstance(news, str):
                watch.made(news)
                continue
            unit, worker.unit = worker.unit, None
            if news is None:
                deaths[unit.id] = deaths.get(unit.id, 0) + 1
                self._pool[self._pool.index(worker)] = self._start()
                watch.postponed(unit)
                if deaths[unit.id] <= RETRIES:
                    waiting.appendleft((unit, worker.wait))
                else:
                    watch.started(unit)
                    watch.failed(
                        unit,
                        SubloraError(f"Its worker died {RETRIES + 1} times; it may lack memory."),
                    )
            else:
                again = _land(unit, news, watch)
                if again:
                    waiting.append((unit, True))

    def _start(self) -> _Worker:
        # a session of its own, so that Ctrl-C reaches this process alone
        process = subprocess.Popen(
            [sys.executable, "-m", "sublora.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        worker = _Worker(process)
        _send(process.stdin, self.work)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        """Everything that a worker says, and at last None."""
        try:
            while True:
                self._news.put((worker, pickle.load(worker.process.stdout)))
        except (EOFError, OSError, pickle.UnpicklingError):
            self._news.put((worker, None))


def _land(unit: Unit, answer: Answer, watch: Watch) -> bool:
    """Pass on how a unit ended; True where another process makes it."""
    if answer.status == "no room":
        raise NoRoom(answer.sentence)
    if answer.status == "failed":
        watch.failed(unit, answer.error())
    elif answer.status == "busy":
        watch.postponed(unit)
        return True
    else:
        watch.finished(unit, answer.seconds, answer.device)
    return False


def _send(pipe: BinaryIO | None, message: Any) -> None:
    assert pipe is not None
    try:
        pickle.dump(message, pipe)
        pipe.flush()
    except BrokenPipeError:
        pass  # the worker died, which its listener tells


def _serve() -> None:
    """The worker's side: units come through standard input, and when that ends, so does the process, whatever it is doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the messages
    units: queue.SimpleQueue[tuple[Unit, bool]] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                units.put(pickle.load(sys.stdin.buffer))
        except (EOFError, OSError):
            os._exit(1)

    try:
        work: Work = pickle.load(sys.stdin.buffer)
    except (
        EOFError,
        OSError,
        pickle.UnpicklingError,
    ):  # the run was killed before it could say anything
        os._exit(1)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        unit, wait = units.get()
        _send(out, work_on(work, unit, {}, wait, made=lambda name: _send(out, name)))


if __name__ == "__main__":
    from sublora.processes import (
        _serve as serve,
    )  # pickle knows the classes by their module's own name, not as __main__

    serve()
