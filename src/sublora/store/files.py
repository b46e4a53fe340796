"""Files and folders that are on the disk as a whole or not at all, and the sentence for a full disk."""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sublora.errors import SubloraError


class NoRoom(SubloraError):
    """The disk is full: a matter of the machine, so that going on with other work is of no use."""


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Replace a file's content at once: a reader, or a crash, sees the old or the new. Text becomes UTF-8. Raises NoRoom where the disk is
    full, OSError where the folder is missing or cannot be written to."""
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with room(path.parent, "use another folder"):
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path | str, value: Any) -> None:
    """`write_atomic` of indented JSON. ValueError for NaN and infinity, which browsers cannot read."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def held(lock: Path) -> bool:
    """Whether a living process, or another thread, holds a lock."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if folder or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_new(source: Path, target: Path) -> bool:
    """Rename a folder to a name that must be free; False if it is taken."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or target.exists():
            return False
        raise
    return True


@contextmanager
def room(folder: Path, fix: str = "set SUBLORA_HOME elsewhere") -> Iterator[None]:
    """Turn "no space left" in any guise into the sentence for the user."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, SubloraError) and says_no_room(error):
            why = f"No room left on the disk that holds {folder}; free some or {fix}; finished work is kept."
            raise NoRoom(why) from error
        raise


def says_no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is that of a full disk."""
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
