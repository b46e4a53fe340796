"""Units on the workers of a Ray cluster: one machine with many GPUs, a batch job over several nodes, a cloud.

A unit is one task. It is idempotent, so a task whose worker died is simply run again. Workers that see the store's folder read and
write there; others get what they need, and send back what they made, through Ray's object store, and this process commits it.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sublora.errors import SubloraError
from sublora.execute import Watch
from sublora.model import Base
from sublora.recipe import Recipe
from sublora.remote import RETRIES, Answer, Work, until_visible, work_for, work_on
from sublora.store import ArtifactCorrupt, NoRoom, Store
from sublora.units import Unit
from sublora.workers import is_small

REACH_SECONDS = 10.0  # for a cluster's first sign of life
LOOK_SECONDS = 1.0  # between looks at what running units have finished


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. `device` of the workers; `threads` that a unit of a large model uses on a CPU."""

    device: Literal["cpu", "cuda"]
    threads: int

    def executor(self, recipe: Recipe, base: Base, store: Store, rows_at_once: int) -> "Ray":
        small = self.device == "cpu" and is_small(base)
        threads = 1 if small or self.device == "cuda" else self.threads
        return Ray(store, work_for(recipe, base, store, rows_at_once, self.device, threads))


def _reach(address: str) -> None:
    """Raises OSError where nothing listens at a HOST:PORT. Ray itself would try for many minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS):
            pass


@contextlib.contextmanager
def connect(address: str | None, threads: int, device: str = "auto") -> Iterator[Cluster]:
    """Start Ray on this machine with `threads` CPUs, or join the cluster at `address`.

    Raises SubloraError where the package is missing, no cluster answers, or it has no GPU although `device` is cuda.
    """
    try:
        import ray
    except ImportError:
        raise SubloraError(
            "--executor ray needs the package ray, which is not installed here; install it with pip install 'sublora[ray]'."
        ) from None
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # how Ray will be; said once, or it warns at every start
    quiet: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # the workers are the run: with Ray's niceness of 15 they would starve beside anything else on the machine
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", num_cpus=threads, **quiet)
        else:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        where = f"at {address}" if address else "on this machine"
        raise SubloraError(
            f"Ray {where} does not answer ({' '.join(str(error).split())[:160]}); start it with `ray start --head`, "
            "or check --ray-address and, for a cluster that asks for a token, set RAY_AUTH_MODE=token."
        ) from None
    if threading.current_thread() is threading.main_thread() and asked_to_stop is not None:
        signal.signal(signal.SIGTERM, asked_to_stop)  # Ray puts its own handler there
    try:
        have = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if have.get("GPU", 0) >= 1 else "cpu"
        if device not in ("cpu", "cuda"):
            raise SubloraError(
                f"Workers of Ray compute on cpu or cuda, not on '{device}'; use --device cpu, cuda or auto."
            )
        if device == "cuda" and have.get("GPU", 0) < 1:
            raise SubloraError(
                "The Ray cluster has no GPU; add a node that has one, or use --device cpu."
            )
        smallest = min(
            (int(n["Resources"].get("CPU", 1)) for n in ray.nodes() if n["Alive"]), default=1
        )
        yield Cluster(device, max(1, min(threads, smallest)))
    finally:
        ray.shutdown()


class Ray:
    """Hands units to Ray, see `execute.Executor`."""

    def __init__(self, store: Store, work: Work) -> None:
        import ray

        self.ray, self.store, self.work = ray, store, work
        gpu = 1 if work.device == "cuda" else 0
        self._task = ray.remote(num_cpus=work.threads, num_gpus=gpu, max_retries=RETRIES)(work_on)
        self._shared = ray.put(work)
        self._sent: dict[
            str, Any
        ] = {}  # datasets in the object store, for workers that do not see the folder
        self._send = False

    def run(self, units: Sequence[Unit], watch: Watch) -> None:
        flight = _Flight(self, deque((unit, False) for unit in units), watch)
        try:
            while flight.queue or flight.pending:
                flight.submit()
                flight.land(timeout=0.5)
        except BaseException:
            for ref in flight.pending:
                self.ray.cancel(ref, force=True)
            raise

    @property
    def workers(self) -> int:
        """Units that the cluster can run at once."""
        have = self.ray.cluster_resources()
        return max(
            1,
            int(
                have.get("GPU", 0)
                if self.work.device == "cuda"
                else have.get("CPU", 1) / self.work.threads
            ),
        )

    def submit(self, unit: Unit, wait: bool) -> Any:
        inputs = {name: [self._ref(name)] for name in unit.needs} if self._send else {}
        return self._task.remote(self._shared, unit, inputs, wait)

    def _ref(self, name: str) -> Any:
        """A reference to an artifact's files; those of datasets are kept, as many packs need them."""
        if name in self._sent:
            return self._sent[name]
        ref = self.ray.put(self.store.export(name))
        if name.startswith("dataset-"):
            self._sent[name] = ref
        return ref

    def send_inputs(self) -> None:
        self._send = True


class _Flight:
    """The units of one stage: waiting in the `queue` (with whether to wait for another process), or `pending` in Ray."""

    def __init__(self, ray: Ray, queue: deque[tuple[Unit, bool]], watch: Watch) -> None:
        self.ray, self.queue, self.watch = ray, queue, watch
        self.pending: dict[Any, Unit] = {}
        self.started: set[str] = set()
        self.slots, self.looked = ray.workers, time.monotonic()

    def submit(self) -> None:
        """Keep a few more units with Ray than it can run, so that no worker waits and an autoscaler sees that there is more to do."""
        while self.queue and len(self.pending) < 2 * self.slots + 2:
            if self.queue[0][1] and self.pending:
                break  # what another process makes is looked at again when nothing else is left
            unit, wait = self.queue.popleft()
            self.pending[self.ray.submit(unit, wait)] = unit
        for unit in list(self.pending.values())[: self.slots]:
            if unit.id not in self.started:
                self.started.add(unit.id)
                self.watch.started(unit)

    def land(self, timeout: float) -> None:
        ready, _ = self.ray.ray.wait(list(self.pending), num_returns=1, timeout=timeout)
        for ref in ready:
            self._landed(self.pending.pop(ref), ref)
        if time.monotonic() - self.looked > LOOK_SECONDS:
            self.looked, self.slots = time.monotonic(), self.ray.workers
            for unit in self.pending.values():
                if unit.id in self.started:
                    for name in unit.makes:
                        if self.ray.store.has(name):
                            self.watch.made(name)

    def _landed(self, unit: Unit, ref: Any) -> None:
        if unit.id not in self.started:
            self.watch.started(unit)
        self.started.discard(unit.id)
        try:
            answer: Answer = self.ray.ray.get(ref)
        except self.ray.ray.exceptions.RayError as error:
            self.watch.failed(unit, SubloraError(_died(error)))
            return
        if answer.status == "no room":
            raise NoRoom(answer.sentence)
        if answer.status == "failed":
            self.watch.failed(unit, answer.error())
        elif answer.status == "busy":
            self.watch.postponed(unit)
            self.queue.append((unit, True))
        elif answer.status == "lacks":
            self.watch.postponed(unit)
            self.ray.send_inputs()
            self.queue.appendleft((unit, False))
        else:
            try:
                for name, files in answer.sent.items():
                    self.ray.store.adopt(name, files)
            except ArtifactCorrupt as error:
                self.watch.failed(unit, error)
                return
            late = until_visible(self.ray.store, unit.makes)
            if late:
                self.watch.failed(
                    unit,
                    SubloraError(
                        f"A worker made {late[0]}, but it cannot be seen in {self.ray.store.root} here."
                    ),
                )
            else:
                self.watch.finished(unit, answer.seconds, answer.device)


def _died(error: Exception) -> str:
    return f"Its worker died {RETRIES + 1} times ({type(error).__name__}); it may lack memory."
