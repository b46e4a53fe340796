"""What `sublora store verify`, `gc` and `du` do."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sublora.errors import SubloraError
from sublora.store.artifacts import MANIFEST, ArtifactCorrupt, Store, forget_verified
from sublora.store.files import held
from sublora.store.known_runs import known_runs, notes_locked

# An artifact that no run refers to is kept for so long: whoever made it may be about to note a run.
YOUNG_SECONDS = 3600.0


@dataclass(frozen=True)
class Removed:
    """What `collect` removed, or would remove: how many of each, and bytes. `young` ones were kept for
    their age, and the runs of `kept_hosts` because their folders cannot be seen from here."""

    artifacts: int = 0
    checkpoints: int = 0
    corrupt: int = 0
    leftovers: int = 0
    notes: int = 0
    bytes: int = 0
    young: int = 0
    kept_hosts: tuple[str, ...] = ()


@dataclass
class Usage:
    """Artifacts and bytes of a kind or a run; `alone` are the bytes that no other run refers to."""

    artifacts: int = 0
    bytes: int = 0
    alone: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Disk:
    kinds: dict[str, Usage] = field(default_factory=dict)
    runs: dict[str, Usage] = field(default_factory=dict)
    unused: Usage = field(default_factory=Usage)


def artifact_folders(store: Store) -> Iterator[Path]:
    """All folders under `artifacts/`, whole or not, by kind."""
    for kind in sorted((store.root / "artifacts").iterdir()):
        yield from sorted(kind.iterdir())


def damaged(store: Store) -> Iterator[tuple[Path, str | None]]:
    """(folder, what is wrong or None) of every artifact, each file hashed anew."""
    forget_verified()
    for folder in artifact_folders(store):
        wrong = None
        try:
            store.read(folder.name)
        except (ArtifactCorrupt, ValueError) as error:  # ValueError: a name that is none of ours
            wrong = str(error)
        except SubloraError:
            if not folder.exists():  # moved away by another process while we looked
                continue
            wrong = f"The artifact {folder} has no {MANIFEST}."
        yield folder, wrong


def size_of(path: Path) -> int:
    """Bytes of all files in a folder, or of a file; 0 for what is gone."""
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def collect(
    store: Store,
    *,
    dry_run: bool = False,
    min_age: float = YOUNG_SECONDS,
    forget: Collection[str] = (),
) -> Removed:
    """Remove what no known run refers to, what was moved away as damaged, and what dead makers left. While it works no run can begin to use
    the store (see `known_runs`); what a living maker holds, and artifacts younger than `min_age` seconds, are left alone. Runs of the hosts
    in `forget` do not count unless their folder is seen. Raises SubloraError where a run's note cannot be read."""
    with notes_locked(store):
        runs = known_runs(store)
        gone = [r for r in runs if r.gone or (r.host in forget and not r.folder.is_dir())]
        kept = [r for r in runs if r not in gone]
        used = frozenset().union(*(r.artifacts for r in kept))
        steps = frozenset().union(*(r.steps for r in kept))
        counts = Counter(artifacts=0, checkpoints=0, corrupt=0, bytes=0, young=0)

        def remove(path: Path, what: str) -> None:
            counts[what] += 1
            counts["bytes"] += size_of(path)
            if dry_run:
                return
            if path.is_dir():
                # out of sight in one step first, so that a kill leaves no half artifact under its name
                away = path if what == "corrupt" else store.move_away(path)
                shutil.rmtree(away, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

        for folder in list(artifact_folders(store)):
            if folder.name in used:
                continue
            if time.time() - folder.stat().st_mtime < min_age or _held(store, folder.name):
                counts["young"] += 1
            else:
                remove(folder, "artifacts")
        for path in sorted(store.root.glob("checkpoints/*")):
            step = path.name.split(".")[0]
            if step not in steps and not _held(store, step):
                remove(path, "checkpoints")
        for path in sorted((store.root / "corrupt").iterdir()):
            remove(path, "corrupt")
        leftovers = store.sweep(dry_run=dry_run)
        if not dry_run:
            for run in gone:
                run.note.unlink(missing_ok=True)
    others = tuple(sorted({r.host for r in kept if not r.here and not r.folder.is_dir()}))
    return Removed(**counts, leftovers=leftovers, notes=len(gone), kept_hosts=others)


def _held(store: Store, name: str) -> bool:
    """Whether a living process makes an artifact or works at a step."""
    return held(store.root / "locks" / f"{name}.lock")


def disk_usage(store: Store) -> Disk:
    """Bytes by kind and by run, as the manifests say; a shared artifact counts for each of its runs."""
    sizes: dict[str, int] = {}
    disk = Disk()
    for folder in artifact_folders(store):
        size = sizes[folder.name] = _size_said(folder)
        usage = disk.kinds.setdefault(folder.parent.name, Usage())
        usage.artifacts += 1
        usage.bytes += size
    runs = [r for r in known_runs(store) if not r.gone]
    users = Counter(name for run in runs for name in run.artifacts)
    for run in runs:
        here = {name: sizes[name] for name in run.artifacts if name in sizes}
        alone = sum(size for name, size in here.items() if users[name] == 1)
        place = str(run.folder) if run.here else f"{run.folder} on {run.host}"
        missing = len(run.artifacts) - len(here)
        disk.runs[place] = Usage(len(here), sum(here.values()), alone, missing)
    unused = [size for name, size in sizes.items() if name not in users]
    disk.unused.artifacts, disk.unused.bytes = len(unused), sum(unused)
    for part in ("models", "corrupt", "tmp", "checkpoints", "verdicts"):
        if (store.root / part).is_dir():
            files = list((store.root / part).iterdir())
            disk.kinds[f"{part}/"] = Usage(len(files), sum(map(size_of, files)))
    return disk


def _size_said(folder: Path) -> int:
    """Bytes of an artifact as its manifest says, or of what is there."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return sum(entry["size"] for entry in files.values()) + size_of(folder / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return size_of(folder)
