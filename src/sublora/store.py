"""Artifacts: immutable folders, named by what they were made from, that are either whole or not there.

An artifact is built in a temporary folder on the same disk, the manifest with the hashes of its files is
written last, all is flushed, and one rename makes it visible. So the manifest in its place means that the
work is done, a kill at any moment leaves at most a temporary folder (see `Store.sweep`), and of two makers
of one artifact one wins.

Layout of the root: `artifacts/KIND/ID/`, `tmp/` (being built), `locks/`, `corrupt/` (moved away by
`discard`), and of other modules `runs/` (known_runs), `checkpoints/` (stages), `verdicts/` (judge), `rates.json`
(rates).
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
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

from sublora.errors import SubloraError

SCHEMA = 1
MANIFEST = "manifest.json"
_ID = re.compile(r"([a-z][a-z0-9]*(?:-[a-z0-9]+)*)-([0-9a-f]{20})")
# Folders whose files were hashed by this process: (path, inode and time of the manifest).
_verified: set[tuple[str, int, int]] = set()


class ArtifactCorrupt(SubloraError):
    """An artifact is not what its manifest says. `Store.discard` moves it away, so that it is made again."""


class NoRoom(SubloraError):
    """The disk is full: a matter of the machine, so that going on with other work is of no use."""


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


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, floats as their shortest exact decimal, ASCII only.

    `1`, `1.0` and `True` stay different, as do `0.0` and `-0.0`; a tuple is the same as a list. TypeError for
    anything that JSON would bend (keys that are no strings, paths, arrays), ValueError for NaN and infinity.
    """
    _check_plain(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


_ATOMS = frozenset({str, bool, int, float, type(None)})


def _check_plain(value: Any) -> None:
    if isinstance(value, dict | list | tuple | Mapping):
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"a spec has the key {key!r}; keys must be strings")
            value = value.values()
        for inner in value:
            if (
                type(inner) not in _ATOMS
            ):  # a call for each of the many texts of a plan would take most of its time
                _check_plain(inner)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise TypeError(
            f"a spec holds a {type(value).__name__}; only plain JSON values can be hashed"
        )


def artifact_id(kind: str, spec: Mapping[str, Any]) -> str:
    """`KIND-` and 20 hexadecimal digits of the SHA-256 of the schema version, the kind and the spec."""
    text = canonical_json({"schema": SCHEMA, "kind": kind, "spec": dict(spec)})
    name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    _kind_of(name)
    return name


class Store:
    """A folder of artifacts, shared by all runs and safe to use from several processes.

    `root` defaults to the environment's SUBLORA_HOME, or else `~/.cache/sublora`. SubloraError where it
    cannot be written to.
    """

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or os.environ.get("SUBLORA_HOME") or Path("~/.cache/sublora")
        self.root = Path(chosen).expanduser().absolute()
        with _room(self.root):
            try:
                for name in ("artifacts", "tmp", "locks", "corrupt"):
                    (self.root / name).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.root / "tmp"):
                    pass
            except OSError as error:
                if _says_no_room(error):
                    raise
                raise SubloraError(
                    f"The store {self.root} cannot be written to ({error.strerror or error}); "
                    "make it writable or set SUBLORA_HOME to another folder."
                ) from error

    def path(self, artifact_id: str) -> Path:
        """Where the artifact is, or will be. ValueError for a name that `artifact_id` cannot have made."""
        return self.root / "artifacts" / _kind_of(artifact_id) / artifact_id

    def has(self, artifact_id: str) -> bool:
        """Whether the artifact is done: its manifest is there, every file has its size (hashes: `read`)."""
        path = self.path(artifact_id)
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            return all(
                (path / name).stat().st_size == entry["size"]
                for name, entry in manifest["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def read(self, artifact_id: str) -> Artifact:
        """The artifact, with every file checked against its SHA-256 the first time in this process.

        Raises ArtifactCorrupt for a file or manifest that was changed, SubloraError for an artifact that is
        not there.
        """
        path = self.path(artifact_id)
        try:
            content = (path / MANIFEST).read_bytes()
            state = (path / MANIFEST).stat()
        except FileNotFoundError as error:
            raise SubloraError(
                f"The store {self.root} has no finished {artifact_id}; run the recipe again to make it."
            ) from error
        artifact = _parse_manifest(artifact_id, path, content)
        key = (str(path), state.st_ino, state.st_mtime_ns)
        if key not in _verified:
            for name, entry in artifact.files.items():
                _verify(artifact, name, entry)
            _verified.add(key)
        return artifact

    def discard(self, artifact_id: str) -> Path | None:
        """Move an artifact to `corrupt/`, so that it counts as not done. Returns its new place, if any."""
        away = self.root / "corrupt" / f"{artifact_id}.{uuid.uuid4().hex[:8]}"
        try:
            os.rename(self.path(artifact_id), away)
        except FileNotFoundError:
            return None
        return away

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

        `meta` is kept in the manifest beside the spec (counts, losses) and is not part of the identity; it
        may be filled inside the block. Where another maker was faster, its artifact stays and ours is
        dropped. Raises SubloraError where the disk is full, ValueError where the name does not belong to
        the spec.
        """
        if artifact_id != _name_for(_kind_of(artifact_id), spec):
            raise ValueError(f"{artifact_id} is not the name of this spec")
        with self._workplace(artifact_id) as content:
            yield content
            self._commit(content, artifact_id, spec, {} if meta is None else meta)

    @contextmanager
    def _workplace(self, artifact_id: str) -> Iterator[Path]:
        """An empty folder on the same disk, removed afterwards if it is still there."""
        work = self.root / "tmp" / f"{artifact_id}.{uuid.uuid4().hex[:12]}"
        content = work / "content"
        alive = FileLock(
            work / "alive"
        )  # tells `sweep` that the maker lives; the system frees it at death
        try:
            with _room(self.root):
                content.mkdir(parents=True)
                alive.acquire()
                yield content
        finally:
            alive.release()
            shutil.rmtree(work, ignore_errors=True)

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
                _verify(artifact, name, artifact.files[name])
            (content / MANIFEST).write_bytes(files[MANIFEST])
            self._publish(content, artifact_id)

    @contextmanager
    def lock(
        self, artifact_id: str, waiting: Callable[[], None] | None = None, *, wait: bool = True
    ) -> Iterator[None]:
        """Hold the artifact's name against other processes and threads; a dead holder's lock is free.

        While another one holds it, `waiting` is called twice a second and may raise to give up. With `wait=False`
        raises Busy instead of waiting.
        """
        _kind_of(artifact_id)
        lock = FileLock(self.root / "locks" / f"{artifact_id}.lock")
        with _room(self.root):
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

    def sweep(self, grace_seconds: float = 60.0) -> int:
        """Remove the temporary folders of makers that died; returns how many.

        Folders younger than `grace_seconds` are left alone: their maker may not have marked them yet.
        """
        removed = 0
        for work in sorted((self.root / "tmp").iterdir()):
            try:
                if not work.is_dir() or time.time() - work.stat().st_mtime < grace_seconds:
                    continue
                with FileLock(work / "alive", timeout=0):
                    shutil.rmtree(work / "content", ignore_errors=True)
            except (Timeout, FileNotFoundError):  # alive, or finished while we looked
                continue
            shutil.rmtree(work, ignore_errors=True)
            removed += 1
        return removed

    def _commit(
        self, content: Path, name: str, spec: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> None:
        files = _walk(content)
        entries = {file: _entry(content / file) for file in files}
        body = {
            "schema": SCHEMA,
            "id": name,
            "kind": _kind_of(name),
            "spec": json.loads(canonical_json(spec)),
            "meta": dict(meta),
            "files": {
                file: {"sha256": entry.sha256, "size": entry.size}
                for file, entry in entries.items()
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }
        body["sha256"] = _self_hash(body)
        with open(content / MANIFEST, "x", encoding="utf-8") as file:
            file.write(json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False))
        self._publish(content, name)

    def _publish(self, content: Path, name: str) -> None:
        """Flush a finished folder and give it its name."""
        # All at once, because flushes that wait together cost a journalling file system one commit.
        inside = sorted(content.rglob("*"), reverse=True)
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(_flush_path, [*inside, content]))
        target = self.path(name)
        if not target.parent.exists():
            target.parent.mkdir(exist_ok=True)
            _flush_path(target.parent.parent)
        if not _rename_new(content, target) and not self.has(name):
            # What is there is broken (a file lost or cut short), or is being replaced by another process.
            self.discard(name)
            _rename_new(content, target)
        _flush_path(target.parent)


def forget_verified() -> None:
    """Files that this process has hashed are hashed again when they are next read."""
    _verified.clear()


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Replace a file's content at once: a reader, or a crash, sees the old or the new. Text becomes UTF-8.

    Raises SubloraError where the disk is full, OSError where the folder is missing or cannot be written to.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with _room(path.parent, "use another folder"):
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path | str, value: Any) -> None:
    """`write_atomic` of indented JSON. ValueError for NaN and infinity, which browsers cannot read."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


_name_for = artifact_id  # the methods of Store have parameters of that name


def _kind_of(name: str) -> str:
    match = _ID.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of an artifact")
    return match[1]


def _walk(content: Path) -> list[str]:
    """The names of the files that a maker left in its folder."""
    files = []
    for path in content.rglob("*"):
        name = path.relative_to(content).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()) or name == MANIFEST:
            raise ValueError(
                f"an artifact cannot hold {name!r}: only files of its own, and no {MANIFEST}"
            )
        if path.is_file():
            files.append(name)
    return sorted(files)


def _entry(path: Path) -> FileEntry:
    with open(path, "rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())


def _flush_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if folder or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(source: Path, target: Path) -> bool:
    """Rename a folder to a name that must be free; False if it is taken."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or target.exists():
            return False
        raise
    return True


def _self_hash(body: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in body.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _parse_manifest(name: str, path: Path, content: bytes) -> Artifact:
    try:
        body = json.loads(content)
        files = {
            file: FileEntry(entry["sha256"], entry["size"]) for file, entry in body["files"].items()
        }
        whole = body["sha256"] == _self_hash(body) and name == body["id"] == artifact_id(
            body["kind"], body["spec"]
        )
        artifact = Artifact(
            name,
            body["kind"],
            path,
            body["spec"],
            body["meta"],
            files,
            body["created"],
            body["versions"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, MANIFEST, "cannot be read") from error
    if not whole:
        raise _corrupt(path, MANIFEST, "was changed")
    return artifact


def _verify(artifact: Artifact, name: str, entry: FileEntry) -> None:
    try:
        with open(artifact.path / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise _corrupt(artifact.path, name, "is missing") from error
    if digest != entry.sha256:
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


@contextmanager
def _room(folder: Path, mend: str = "set SUBLORA_HOME elsewhere") -> Iterator[None]:
    """Turn "no space left" in any guise into the sentence for the user."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, SubloraError) and _says_no_room(error):
            raise NoRoom(
                f"No room left on the disk that holds {folder}; free some or {mend}; finished work is kept."
            ) from error
        raise


def _says_no_room(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Writers in Rust and C++ (safetensors, torch) report the system's error as text only.
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        seen.add(id(error))
        error = error.__cause__
    return False
