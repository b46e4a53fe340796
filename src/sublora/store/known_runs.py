"""Which runs refer to a store: each run leaves a note of its folder and the artifacts of its plan under `runs/` in the store's root.

A run is noted before it looks for what is done, and nothing that a noted run refers to is ever removed, so a run may rely on what it
found. A note whose run folder was removed no longer counts, unless another machine wrote it: its folders cannot be seen from here.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sublora.errors import SubloraError
from sublora.store.artifacts import Store
from sublora.store.files import write_json_atomic


@dataclass(frozen=True)
class KnownRun:
    """A note: `artifacts` of the plan, and `steps` that may have a checkpoint. `here` tells whether this machine wrote it."""

    note: Path
    folder: Path
    host: str
    artifacts: frozenset[str]
    steps: frozenset[str]

    @property
    def here(self) -> bool:
        return self.host == platform.node()

    @property
    def gone(self) -> bool:
        """The user removed the run's folder."""
        return self.here and not self.folder.is_dir()


@contextlib.contextmanager
def notes_locked(store: Store) -> Iterator[Path]:
    """Hold the notes, so that no run is noted while something is removed. Yields their folder."""
    folder = store.root / "runs"
    folder.mkdir(exist_ok=True)
    with FileLock(store.root / "locks" / "runs.lock"):
        yield folder


def note_run(store: Store, out: Path, artifacts: Sequence[str], steps: Sequence[str]) -> None:
    """Note that the run in `out` refers to these artifacts; the note of the same folder is replaced."""
    folder, host = str(out.absolute()), platform.node()
    name = hashlib.sha256(f"{host}\n{folder}".encode()).hexdigest()[:20]
    with notes_locked(store) as notes:
        note = {"folder": folder, "host": host}
        note |= {"artifacts": sorted(set(artifacts)), "units": sorted(set(steps))}
        write_json_atomic(notes / f"{name}.json", note)


def known_runs(store: Store) -> list[KnownRun]:
    """All notes, by folder. Raises SubloraError for one that cannot be read: what it refers to is not known."""
    runs = []
    for note in sorted((store.root / "runs").glob("*.json")):
        try:
            body = json.loads(note.read_text("utf-8"))
            found = (frozenset(body[key]) for key in ("artifacts", "units"))
            runs.append(KnownRun(note, Path(body["folder"]), body["host"], *found))
        except FileNotFoundError:
            continue
        except (KeyError, TypeError, ValueError):
            raise SubloraError(
                f"The note {note} of a run cannot be read, so what that run uses is not known and nothing is removed; "
                "run its recipe again, which writes it anew, or remove the file."
            ) from None
    return sorted(runs, key=lambda r: str(r.folder))
