"""Steps on the workers of a Ray cluster: one machine with many GPUs, a batch job over several nodes, a cloud.

A step is one task. It is idempotent, so a task whose worker died is simply run again. Workers that
see the store's folder read and write there; others get what they need, and send back what they
made, through Ray's object store, and this process commits it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sublora.errors import SubloraError
from sublora.runner.execution import Execution
from sublora.runner.worker import RETRIES, Answer, Setup, one_thread, until_visible, work_on
from sublora.steps.step import Step
from sublora.store import ArtifactCorrupt, Store

REACH_SECONDS = 10.0  # for a cluster's first sign of life
LOOK_SECONDS = 1.0  # between looks at what running steps have finished
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. `device` of the workers; `threads` that a step of a large model uses on a CPU."""

    device: Literal["cpu", "cuda"]
    threads: int

    def executor(self, steps: Sequence[Step], setup: Setup, store: Store) -> Ray:
        one = self.device == "cuda" or all(one_thread(s, "cpu") for s in steps)
        threads = 1 if one else self.threads
        return Ray(store, replace(setup, device=self.device, threads=threads))


def _reach(address: str) -> None:
    """Raises OSError where nothing listens at a HOST:PORT. Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS):
            pass


def _start(ray: Any, address: str | None, threads: int) -> None:
    # how Ray will be; said once, or it warns at every start
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # the workers are the run: with Ray's niceness of 15 they would starve beside anything else
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", num_cpus=threads, include_dashboard=False, **QUIET)
        else:
            _reach(address)
            ray.init(address=address, **QUIET)
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        where = f"at {address}" if address else "on this machine"
        raise SubloraError(
            f"Ray {where} does not answer ({' '.join(str(error).split())[:160]}); start it with "
            "`ray start --head`, or check --ray-address and, for a cluster that asks for a token, "
            "set RAY_AUTH_MODE=token."
        ) from None
    if threading.current_thread() is threading.main_thread() and asked_to_stop is not None:
        signal.signal(signal.SIGTERM, asked_to_stop)  # Ray puts its own handler there


@contextlib.contextmanager
def connect(address: str | None, threads: int, device: str = "auto") -> Iterator[Cluster]:
    """Start Ray on this machine with `threads` CPUs, or join the cluster at `address`.

    Raises SubloraError where the package is missing, no cluster answers, or it has no GPU although
    `device` is cuda.
    """
    try:
        import ray
    except ImportError:
        raise SubloraError(
            "--executor ray needs the package ray, which is not installed here; install it with "
            "pip install 'sublora[ray]'."
        ) from None
    _start(ray, address, threads)
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        if device == "auto":
            device = "cuda" if gpus >= 1 else "cpu"
        if device not in ("cpu", "cuda"):
            raise SubloraError(
                f"Workers of Ray compute on cpu or cuda, not on '{device}'; use --device cpu, cuda or auto."
            )
        if device == "cuda" and gpus < 1:
            raise SubloraError(
                "The Ray cluster has no GPU; add a node that has one, or use --device cpu."
            )
        cpus = [int(n["Resources"].get("CPU", 1)) for n in ray.nodes() if n["Alive"]]
        yield Cluster(device, max(1, min(threads, *cpus)) if cpus else 1)
    finally:
        ray.shutdown()


class Ray:
    """Hands steps to Ray, see `execution.Executor`."""

    def __init__(self, store: Store, setup: Setup, ray: Any = None) -> None:
        if ray is None:
            import ray
        self.ray, self.store, self.setup = ray, store, setup
        gpu = 1 if setup.device == "cuda" else 0
        self._task = ray.remote(num_cpus=setup.threads, num_gpus=gpu, max_retries=RETRIES)(work_on)
        self._shared = ray.put(setup)
        self._sent: dict[str, Any] = {}  # artifacts in the object store, as many steps need them
        self._send = False  # whether workers do not see the folder
        self._pending: dict[Any, tuple[Step, bool]] = {}
        self._started: set[str] = set()
        self._looked = time.monotonic()
        self._slots = self.workers

    def close(self) -> None:
        for ref in self._pending:
            self.ray.cancel(ref, force=True)

    @property
    def workers(self) -> int:
        """Steps that the cluster can make at once."""
        have, on_gpu = self.ray.cluster_resources(), self.setup.device == "cuda"
        return max(
            1, int(have.get("GPU", 0) if on_gpu else have.get("CPU", 1) / self.setup.threads)
        )

    def room(self) -> bool:
        """A few more than run, so that no worker waits and an autoscaler sees that there is more to do."""
        return len(self._pending) < 2 * self._slots + 2

    def submit(self, step: Step, wait: bool) -> None:
        inputs = {name: [self._ref(name)] for name in step.needs} if self._send else {}
        ref = self._task.remote(self._shared, step, inputs, wait)
        self._pending[ref] = step, wait

    def _ref(self, name: str) -> Any:
        """A reference to an artifact's files; those of datasets are kept, as many packs need them."""
        if name in self._sent:
            return self._sent[name]
        ref = self.ray.put(self.store.export(name))
        if self.store.read(name).kind == "dataset":
            self._sent[name] = ref
        return ref

    def advance(self, run: Execution) -> None:
        for step, _ in list(self._pending.values())[: self._slots]:
            self._start(step, run)
        ready, _ = self.ray.wait(list(self._pending), num_returns=1, timeout=0.5)
        for ref in ready:
            self._landed(ref, run)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked, self._slots = time.monotonic(), self.workers
            for step, _ in self._pending.values():
                for name in step.makes if step.id in self._started else ():
                    if self.store.has(name):
                        run.made(name)

    def _start(self, step: Step, run: Execution) -> None:
        if step.id not in self._started:
            self._started.add(step.id)
            run.started(step)

    def _landed(self, ref: Any, run: Execution) -> None:
        step, wait = self._pending.pop(ref)
        self._start(step, run)
        try:
            answer: Answer = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            died = (
                f"Its worker died {RETRIES + 1} times ({type(error).__name__}); it may lack memory."
            )
            answer = Answer("failed", died)
        if answer.status == "lacks":
            self._send = True
            self.submit(step, wait)
            return
        if answer.status == "done":
            answer = self._adopted(step, answer)
        self._started.discard(step.id)
        run.ended(step, answer)

    def _adopted(self, step: Step, answer: Answer) -> Answer:
        """The answer once all that the step made is in the store here."""
        try:
            for name, files in answer.sent.items():
                self.store.adopt(name, files)
        except ArtifactCorrupt as error:
            return Answer("failed", str(error))
        late = until_visible(self.store, step.makes)
        if late:
            unseen = f"A worker made {late[0]}, but it cannot be seen in {self.store.root} here."
            return Answer("failed", unseen)
        return answer
