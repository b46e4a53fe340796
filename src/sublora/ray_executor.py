"""Units on the workers of a Ray cluster: one machine with many GPUs, a batch job over several nodes, a cloud.

A unit is one task. It is idempotent, so a task whose worker died is simply run again. Workers that see the store's folder read and
write there; others get what they need, and send back what they made, through Ray's object store, and this process commits it.
"""

import contextlib
import os
import platform
import signal
import tempfile
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sublora.errors import SubloraError
from sublora.execute import Watch
from sublora.model import Base, load_base
from sublora.rates import device_name
from sublora.recipe import Recipe
from sublora.stages import Maker, perform
from sublora.store import ArtifactCorrupt, Busy, NoRoom, Store, write_atomic
from sublora.units import Unit
from sublora.workers import SMALL_MODEL

RETRIES = 5  # of a unit whose worker died
VISIBLE_SECONDS = 60.0  # how long a network disk may take to show one machine what another one wrote
LOOK_SECONDS = 1.0  # between looks at what running units have finished


@dataclass(frozen=True)
class Work:
    """What a worker must know besides its unit. `root` is the store as the driver sees it, `token` the text of a file in it, by which
    a worker knows that it sees the same folder."""

    model: str
    revision: str | None
    dtype: str
    identity: tuple[tuple[str, str], ...]
    device: str
    threads: int
    rows_at_once: int
    root: str
    token: str


@dataclass(frozen=True)
class Answer:
    """How a task ended. `lacks` names the artifacts that a worker without the shared folder needs first; `sent` holds what it made."""

    status: Literal["done", "busy", "lacks", "failed", "no room"]
    sentence: str = ""
    trace: str = ""
    lacks: tuple[str, ...] = ()
    sent: dict[str, dict[str, bytes]] = field(default_factory=dict, repr=False)
    seconds: float | None = None
    device: str = ""

    def error(self) -> Exception:
        """What a failed unit is reported with."""
        if not self.trace:
            return SubloraError(self.sentence)
        error = WorkerError(self.sentence)
        error.__cause__ = RuntimeError(self.trace)
        return error


class WorkerError(Exception):
    """What a worker's unit raised, with the trace as its cause."""


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. `device` of the workers; `threads` that a unit of a large model uses on a CPU."""

    device: Literal["cpu", "cuda"]
    threads: int

    def executor(self, recipe: Recipe, base: Base, store: Store, rows_at_once: int) -> "Ray":
        small = self.device == "cpu" and base.model.num_parameters() <= SMALL_MODEL
        threads = 1 if small or self.device == "cuda" else self.threads
        return Ray(store, work_for(recipe, base, store, rows_at_once, self.device, threads))


def work_for(recipe: Recipe, base: Base, store: Store, rows_at_once: int, device: str, threads: int) -> Work:
    """What the workers of a run of this recipe must know."""
    folder = Path(recipe.model).expanduser()
    return Work(
        str(folder.absolute()) if folder.is_dir() else recipe.model, recipe.revision, recipe.dtype,
        tuple(sorted(base.identity.items())), device, threads, rows_at_once, str(store.root), _token(store),
    )  # fmt: skip


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
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # the workers are the run: with Ray's niceness of 15 they would starve beside anything else on the machine
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", num_cpus=threads, **quiet)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at {address}" if address else "on this machine"
        raise SubloraError(
            f"Ray {where} does not answer ({' '.join(str(error).split())[:160]}); start it with `ray start --head`, "
            "or check --ray-address."
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
            raise SubloraError("The Ray cluster has no GPU; add a node that has one, or use --device cpu.")
        smallest = min((int(n["Resources"].get("CPU", 1)) for n in ray.nodes() if n["Alive"]), default=1)
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
        self._sent: dict[str, Any] = {}  # datasets in the object store, for workers that do not see the folder
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
        return max(1, int(have.get("GPU", 0) if self.work.device == "cuda" else have.get("CPU", 1) / self.work.threads))

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
            late = _until_visible(self.ray.store, unit.makes)
            if late:
                self.watch.failed(
                    unit, SubloraError(f"A worker made {late[0]}, but it cannot be seen in {self.ray.store.root} here.")
                )
            else:
                self.watch.finished(unit, answer.seconds, answer.device)


def _died(error: Exception) -> str:
    return f"Its worker died {RETRIES + 1} times ({type(error).__name__}); it may lack memory."


def _until_visible(store: Store, names: Sequence[str]) -> list[str]:
    """The artifacts that do not show up in the store within VISIBLE_SECONDS."""
    until = time.monotonic() + VISIBLE_SECONDS
    while True:
        late = [name for name in names if not store.has(name)]
        if not late or time.monotonic() > until:
            return late
        time.sleep(0.5)


def _token(store: Store) -> str:
    """The text of the file `token` in the store's root."""
    file = store.root / "token"
    if not file.exists():
        write_atomic(file, uuid.uuid4().hex)
    return file.read_text("utf-8")


def work_on(
    work: Work, unit: Unit, inputs: dict[str, list[Any]], wait: bool, made: Callable[[str], None] | None = None
) -> Answer:
    """One unit, on a worker. Errors travel as text, so that nothing has to be unpickled that this process does not know."""
    try:
        maker = _maker(work)
        if made is not None:
            maker = replace(maker, made=made)
        shared = maker.store.root == Path(work.root)
        if shared:
            _until_visible(maker.store, unit.needs)
        else:
            lacks = tuple(name for name in unit.needs if not maker.store.has(name) and name not in inputs)
            if lacks:
                return Answer("lacks", lacks=lacks)
            _receive(maker.store, unit, inputs)
        seconds = perform(unit, maker, wait=wait)
        sent = {} if shared else {name: maker.store.export(name) for name in unit.makes}
        return Answer("done", sent=sent, seconds=seconds, device=device_name(work.device, work.threads))
    except Busy:
        return Answer("busy")
    except NoRoom as error:
        return Answer("no room", f"{error} (on {platform.node()})")
    except SubloraError as error:
        return Answer("failed", str(error))
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Answer("failed", text, traceback.format_exc())


def _receive(store: Store, unit: Unit, inputs: dict[str, list[Any]]) -> None:
    import ray

    for name in unit.needs:
        if not store.has(name):
            store.adopt(name, ray.get(inputs[name][0]))


@cache
def _maker(work: Work) -> Maker:
    """This worker's base and store, kept from unit to unit."""
    import torch

    torch.set_num_threads(work.threads)
    base = load_base(work.model, device=work.device, dtype=work.dtype, revision=work.revision)
    if tuple(sorted(base.identity.items())) != work.identity:
        raise SubloraError(
            f"The model {work.model} on {platform.node()} is not the one that the run was started with; "
            "give all machines the same folder, or the same revision of a hub id."
        )
    return Maker(base, Store(_root(work)), work.rows_at_once)


def _root(work: Work) -> Path:
    """The store's folder, if this machine sees it; else one of its own."""
    with contextlib.suppress(OSError):
        if (Path(work.root) / "token").read_text("utf-8") == work.token:
            return Path(work.root)
    return Path(tempfile.gettempdir()) / f"sublora-{os.getuid() if hasattr(os, 'getuid') else 0}-{work.token[:12]}"
