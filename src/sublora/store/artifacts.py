"""Artifacts: immutable folders, named by what they were made from, that are either whole or not there.

An artifact is built in a temporary folder on the same disk, the manifest with the hashes of its files is written last, all is flushed, and
one rename makes it visible. So the manifest in its place means that the work is done, a kill at any moment leaves at most a temporary
folder (see `Store.sweep`), and of two makers of one artifact one wins.

Layout of the root: `artifacts/KIND/ID/`, `tmp/` (being built), `locks/`, `corrupt/` (moved away by `discard`), and of other modules `runs/`
(known_runs), `models/` (kept), `checkpoints/` (steps), `verdicts/` (judge), `rates.json` (rates).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sublora.errors import SubloraError, reason
from sublora.store import ids
from sublora.store.files import flush, rename_new, room, says_no_room
from sublora.store.ids import kind_of

MANIFEST = "manifest.json"
# Folders whose files were hashed by this process: (path, inode and time of the manifest).
_verified: set[tuple[str, int, int]] = set()


class ArtifactCorrupt(SubloraError):
    """An artifact is not what its manifest says. `Store.discard` moves it away, so that it is made again."""


class Busy(Exception):
    """Another process, or another thread, holds the lock."""


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact; `size` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. `files` maps names relative to `path` (with `/`) to what they hold."""

    id: str
    kind: str
    path: Path
    spec: Mapping[str, Any]
    meta: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    created: str
    versions: Mapping[str, str]

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists; KeyError for any other."""
        if name not in self.files:
            raise KeyError(f"{self.id} has no file {name!r}")
        return self.path / name


def store_root() -> Path:
    """The environment's SUBLORA_HOME, or else `~/.cache/sublora`."""
    return Path(os.environ.get("SUBLORA_HOME") or "~/.cache/sublora").expanduser().absolute()


class Store:
    """A folder of artifacts, shared by all runs and safe to use from several processes. `root` defaults to `store_root()`.

    SubloraError where it cannot be written to."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root).expanduser().absolute() if root else store_root()
        with room(self.root):
            try:
                for name in ("artifacts", "tmp", "locks", "corrupt"):
                    (self.root / name).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.root / "tmp"):
                    pass
            except OSError as error:
                if says_no_room(error):
                    raise
                lost = self.root.is_symlink() and not self.root.exists()
                why = "it is a link to a folder that is not there" if lost else reason(error)
                raise SubloraError(
                    f"The store {self.root} cannot be written to ({why}); "
                    "make it writable or set SUBLORA_HOME to another folder."
                ) from error

    def path(self, artifact_id: str) -> Path:
        """Where the artifact is, or will be. ValueError for a name that `artifact_id` cannot have made."""
        return self.root / "artifacts" / kind_of(artifact_id) / artifact_id

    def has(self, artifact_id: str) -> bool:
        """Whether the artifact is done: its manifest is there, every file has its size (hashes: `read`)."""
        path = self.path(artifact_id)
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            files = manifest["files"].items()
            return all((path / name).stat().st_size == entry["size"] for name, entry in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def read(self, artifact_id: str) -> Artifact:
        """The artifact, with every file checked against its SHA-256 the first time in this process. Raises ArtifactCorrupt for a file or
        manifest that was changed, SubloraError for an artifact that is not there."""
        path = self.path(artifact_id)
        try:
            content = (path / MANIFEST).read_bytes()
            state = (path / MANIFEST).stat()
        except FileNotFoundError as error:
            why = f"The store {self.root} has no finished {artifact_id}; run the recipe again to make it."
            raise SubloraError(why) from error
        artifact = _parse_manifest(artifact_id, path, content)
        key = (str(path), state.st_ino, state.st_mtime_ns)
        if key not in _verified:
            for name in artifact.files:
                _verify(artifact, name)
            _verified.add(key)
        return artifact

    def created(self, artifact_id: str) -> str | None:
        """When the artifact was finished (ISO 8601, UTC, whole seconds) by its manifest alone; None where it is not done."""
        if not self.has(artifact_id):
            return None
        return str(json.loads((self.path(artifact_id) / MANIFEST).read_bytes())["created"])

    def discard(self, artifact_id: str) -> Path | None:
        """Move an artifact to `corrupt/`, so that it counts as not done. Returns its new place, if any."""
        return self.move_away(self.path(artifact_id))

    def move_away(self, folder: Path) -> Path | None:
        """Move any folder to `corrupt/`. Returns its new place, if it was there."""
        away = self.root / "corrupt" / f"{folder.name}.{uuid.uuid4().hex[:8]}"
        try:
            return folder.rename(away)
        except FileNotFoundError:
            return None

    def discard_corrupt(self, artifact_id: str) -> Path | None:
        """`discard`, if it is still damaged once no other process can be doing the same."""
        with self.lock(artifact_id):
            try:
                self.read(artifact_id)
            except ArtifactCorrupt:
                return self.discard(artifact_id)
            except SubloraError:  # moved away by another process
                return None
        return None

    @contextmanager
    def create(
        self, artifact_id: str, spec: Mapping[str, Any], meta: Mapping[str, Any] | None = None
    ) -> Iterator[Path]:
        """Yield an empty folder to fill; a clean exit makes it the artifact, an exception removes it.

        `meta` is kept in the manifest beside the spec (counts, losses) and is not part of the identity; it may be filled inside the block.
        Where another maker was faster, its artifact stays and ours is dropped. Raises SubloraError where the disk is full, ValueError where
        the name does not belong to the spec.
        """
        if artifact_id != ids.artifact_id(kind_of(artifact_id), spec):
            raise ValueError(f"{artifact_id} is not the name of this spec")
        with self._workplace(artifact_id) as content:
            yield content
            self._commit(content, artifact_id, spec, {} if meta is None else meta)

    @contextmanager
    def _workplace(self, artifact_id: str) -> Iterator[Path]:
        """An empty folder on the same disk, removed afterwards if it is still there."""
        work = self.root / "tmp" / f"{artifact_id}.{uuid.uuid4().hex[:12]}"
        content = work / "content"
        # tells `sweep` that the maker lives; the system frees it at death
        alive = FileLock(work / "alive")
        try:
            with room(self.root):
                content.mkdir(parents=True)
                alive.acquire()
                yield content
        finally:
            alive.release()
            shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def new_folder(self, place: str) -> Iterator[Path]:
        """Yield an empty folder to fill; a clean exit makes it the folder `place` below the root as a whole, an exception removes it. Where
        there is one of that name already, it stays."""
        target = self.root / place
        with self._workplace(target.name) as content:
            yield content
            _flush_all(content)
            target.parent.mkdir(exist_ok=True)
            rename_new(content, target)
            flush(target.parent)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold any name against other processes and threads, which wait for it."""
        with FileLock(self.root / "locks" / f"{name}.lock"):
            yield

    def export(self, artifact_id: str) -> dict[str, bytes]:
        """All files of a verified artifact, its manifest among them, for `adopt` in a store on another machine."""
        artifact = self.read(artifact_id)
        return {name: (artifact.path / name).read_bytes() for name in (*artifact.files, MANIFEST)}

    def adopt(self, artifact_id: str, files: Mapping[str, bytes]) -> None:
        """Take in what `export` gave elsewhere, as it is. Raises ArtifactCorrupt where a file does not fit the manifest."""
        with self._workplace(artifact_id) as content:
            artifact = _parse_manifest(artifact_id, content, files[MANIFEST])
            for name in artifact.files:
                target = content / name
                if not target.resolve().is_relative_to(content.resolve()):
                    raise _corrupt(content, name, "is outside")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files[name])
                _verify(artifact, name)
            (content / MANIFEST).write_bytes(files[MANIFEST])
            self._publish(content, artifact_id)

    @contextmanager
    def lock(
        self, artifact_id: str, waiting: Callable[[], None] | None = None, *, wait: bool = True
    ) -> Iterator[None]:
        """Hold the artifact's name against other processes and threads; a dead holder's lock is free. While another one holds it, `waiting`
        is called twice a second and may raise to give up. With `wait=False` raises Busy instead of waiting."""
        kind_of(artifact_id)
        lock = FileLock(self.root / "locks" / f"{artifact_id}.lock")
        with room(self.root):
            while True:
                try:
                    lock.acquire(timeout=0.5 if wait else 0)
                    break
                except Timeout:
                    if not wait:
                        raise Busy(artifact_id) from None
                    if waiting is not None:
                        waiting()
            try:
                yield
            finally:
                lock.release()

    def sweep(self, grace_seconds: float = 60.0, *, dry_run: bool = False) -> int:
        """Remove the temporary folders of makers that died; returns how many. Folders younger than `grace_seconds` are left alone: their
        maker may not have marked them yet."""
        removed = 0
        for work in sorted((self.root / "tmp").iterdir()):
            try:
                if not work.is_dir() or time.time() - work.stat().st_mtime < grace_seconds:
                    continue
                with FileLock(work / "alive", timeout=0):
                    if not dry_run:
                        shutil.rmtree(work / "content", ignore_errors=True)
            except (Timeout, FileNotFoundError):  # alive, or finished while we looked
                continue
            if not dry_run:
                shutil.rmtree(work, ignore_errors=True)
            removed += 1
        return removed

    def _commit(
        self, content: Path, name: str, spec: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> None:
        body = {"schema": ids.SCHEMA, "id": name, "kind": kind_of(name)}
        body |= {"spec": json.loads(ids.canonical_json(spec)), "meta": dict(meta)}
        body["files"] = {file: _entry(content / file) for file in _walk(content)}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        body |= {"created": created, "versions": _versions()}
        body["sha256"] = _self_hash(body)
        with open(content / MANIFEST, "x", encoding="utf-8") as file:
            file.write(json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False))
        self._publish(content, name)

    def _publish(self, content: Path, name: str) -> None:
        """Flush a finished folder and give it its name."""
        _flush_all(content)
        target = self.path(name)
        if not target.parent.exists():
            target.parent.mkdir(exist_ok=True)
            flush(target.parent.parent)
        if not rename_new(content, target) and not self.has(name):
            # What is there is broken (a file lost or cut short), or is being replaced by another process.
            self.discard(name)
            rename_new(content, target)
        flush(target.parent)


def forget_verified() -> None:
    """Files that this process has hashed are hashed again when they are next read."""
    _verified.clear()


def _flush_all(content: Path) -> None:
    # All at once, because flushes that wait together cost a journalling file system one commit.
    inside = sorted(content.rglob("*"), reverse=True)
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(flush, [*inside, content]))


def _walk(content: Path) -> list[str]:
    """The names of the files that a maker left in its folder."""
    files = []
    for path in content.rglob("*"):
        name = path.relative_to(content).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()) or name == MANIFEST:
            why = f"an artifact cannot hold {name!r}: only files of its own, and no {MANIFEST}"
            raise ValueError(why)
        if path.is_file():
            files.append(name)
    return sorted(files)


def _entry(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": file.tell()}


def _self_hash(body: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in body.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _parse_manifest(name: str, path: Path, content: bytes) -> Artifact:
    try:
        body = json.loads(content)
        own = ids.artifact_id(body["kind"], body["spec"])
        whole = body["sha256"] == _self_hash(body) and name == body["id"] == own
        files = {file: FileEntry(e["sha256"], e["size"]) for file, e in body["files"].items()}
        rest = {key: body[key] for key in ("kind", "spec", "meta", "created", "versions")}
        artifact = Artifact(id=name, path=path, files=files, **rest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, MANIFEST, "cannot be read") from error
    if not whole:
        raise _corrupt(path, MANIFEST, "was changed")
    return artifact


def _verify(artifact: Artifact, name: str) -> None:
    try:
        found = _entry(artifact.path / name)
    except FileNotFoundError as error:
        raise _corrupt(artifact.path, name, "is missing") from error
    if found["sha256"] != artifact.files[name].sha256:
        raise _corrupt(artifact.path, name, "was changed")


def _corrupt(path: Path, name: str, what: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"The artifact {path} is damaged ({name} {what}); remove that folder and run again to make it anew."
    )


@cache
def _versions() -> dict[str, str]:
    """Versions of what can change an artifact's content."""
    versions = {"python": platform.python_version()}
    for package in ("sublora", "torch", "transformers", "peft", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
