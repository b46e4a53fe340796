"""One unit in another process, here or on another machine: what its worker must know, how it does it, and what it answers.

A unit is idempotent, so one whose worker died is simply run again.
"""

import contextlib
import os
import platform
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sublora.errors import SubloraError
from sublora.model import Base
from sublora.packs.check import load_base
from sublora.rates import device_name
from sublora.recipe import Recipe
from sublora.stages import Maker, perform
from sublora.store import Busy, NoRoom, Store, write_atomic
from sublora.units import Unit

RETRIES = 5  # of a unit whose worker died
VISIBLE_SECONDS = (
    60.0  # how long a network disk may take to show one machine what another one wrote
)


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


def work_for(
    recipe: Recipe, base: Base, store: Store, rows_at_once: int, device: str, threads: int
) -> Work:
    """What the workers of a run of this recipe must know."""
    folder = Path(recipe.model).expanduser()
    return Work(
        str(folder.absolute()) if folder.is_dir() else recipe.model,
        recipe.revision,
        recipe.dtype,
        tuple(sorted(base.identity.items())),
        device,
        threads,
        rows_at_once,
        str(store.root),
        _token(store),
    )


def work_on(
    work: Work,
    unit: Unit,
    inputs: dict[str, list[Any]],
    wait: bool,
    made: Callable[[str], None] | None = None,
) -> Answer:
    """One unit, on a worker. Errors travel as text, so that nothing has to be unpickled that this process does not know."""
    try:
        maker = _maker(work)
        if made is not None:
            maker = replace(maker, made=made)
        shared = maker.store.root == Path(work.root)
        if shared:
            until_visible(maker.store, unit.needs)
        else:
            lacks = tuple(
                name for name in unit.needs if not maker.store.has(name) and name not in inputs
            )
            if lacks:
                return Answer("lacks", lacks=lacks)
            _receive(maker.store, unit, inputs)
        seconds = perform(unit, maker, wait=wait)
        sent = {} if shared else {name: maker.store.export(name) for name in unit.makes}
        return Answer(
            "done", sent=sent, seconds=seconds, device=device_name(work.device, work.threads)
        )
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
    return (
        Path(tempfile.gettempdir())
        / f"sublora-{os.getuid() if hasattr(os, 'getuid') else 0}-{work.token[:12]}"
    )


def until_visible(store: Store, names: Sequence[str]) -> list[str]:
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
