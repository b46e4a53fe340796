"""Units of work side by side in this process.

On a CPU every worker computes with one thread and on a copy of the base of its own. Packs of a small model run almost twice as fast
on two cores like this than with every product split over both, and what a unit computes does not depend on how many workers there are.
"""

import copy
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

from sublora.model import Base

SMALL_MODEL = 20_000_000  # parameters up to which a worker gets a copy of the base
Unit = TypeVar("Unit")


def is_small(base: Base) -> bool:
    """Whether a model on a CPU is so small that one thread computes it best: its products are too short to be split over several."""
    return base.device.type == "cpu" and base.model.num_parameters() <= SMALL_MODEL


class Stopped(Exception):
    """Another unit failed, or the user interrupted; this one gave up."""


class Workers:
    """`threads` workers of one thread each for a small model on a CPU; else one worker with all threads, or the GPU."""

    def __init__(self, base: Base, threads: int) -> None:
        import torch

        small = is_small(base)
        self.count = threads if small else 1
        self.threads_each = 1 if small else threads
        torch.set_num_threads(self.threads_each)
        self._stop = threading.Event()
        self._bases: queue.SimpleQueue[Base] = queue.SimpleQueue()
        self._bases.put(base)
        for _ in range(self.count - 1):
            self._bases.put(
                replace(base, model=copy.deepcopy(base.model), chat=copy.deepcopy(base.chat))
            )

    def check(self) -> None:
        """Call often inside a unit; raises Stopped when the unit should give up."""
        if self._stop.is_set():
            raise Stopped

    def each(self, units: Sequence[Unit], work: Callable[[Base, Unit], None]) -> None:
        """Run `work(base, unit)` for every unit. The first error stops the others and is raised."""

        def one(unit: Unit) -> None:
            import torch

            torch.set_num_threads(self.threads_each)  # the setting belongs to the thread
            self.check()
            base = self._bases.get()
            try:
                work(base, unit)
            except BaseException:
                self._stop.set()  # before this worker takes another unit
                raise
            finally:
                self._bases.put(base)

        with ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(one, unit) for unit in units]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [f.exception() for f in finished if f.exception() is not None]
            except BaseException:  # the user interrupted
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            if failed:
                pool.shutdown(cancel_futures=True)
                raise next((e for e in failed if not isinstance(e, Stopped)), failed[0])
