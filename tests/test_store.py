"""Artifacts survive kills, races, full disks and flipped bytes."""

import builtins
import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sublora
from sublora.errors import SubloraError
from sublora.store import (
    ArtifactCorrupt,
    Store,
    artifact_id,
    canonical_json,
    forget_verified,
    write_atomic,
    write_json_atomic,
)

SPEC = {"model": "tiny", "seed": 3, "lr": 1e-3}
NAME = artifact_id("dataset", SPEC)
plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def fill(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "1, 2", "completion": "3"}\n' * 20)
    (folder / "weights").mkdir()
    (folder / "weights" / "adapter.bin").write_bytes(bytes(range(256)) * 8)
    (folder / "log.txt").write_text("done\n")


def make(store: Store, name: str = NAME, spec=SPEC) -> None:
    with store.create(name, spec) as folder:
        fill(folder)


def entries(store: Store, part: str) -> list[str]:
    return sorted(path.name for path in (store.root / part).iterdir())


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def child(code: str, *arguments: str) -> subprocess.Popen:
    """Another process with this file's helpers imported."""
    lines = "from test_store import *\n" + textwrap.dedent(code)
    paths = [str(Path(__file__).parent), str(Path(sublora.__file__).parents[1])]
    return subprocess.Popen(
        [sys.executable, "-c", lines, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_an_artifact_is_made_and_read(store):
    assert not store.has(NAME)
    meta = {}
    with store.create(NAME, SPEC, meta) as folder:
        fill(folder)
        assert not store.has(NAME)
        meta["rows"] = 20
    assert store.has(NAME)
    artifact = store.read(NAME)
    assert (artifact.id, artifact.kind, artifact.path) == (NAME, "dataset", store.path(NAME))
    assert (artifact.spec, artifact.meta) == (SPEC, {"rows": 20})
    assert set(artifact.files) == {"rows.jsonl", "weights/adapter.bin", "log.txt"}
    assert artifact.files["log.txt"].size == 5
    assert artifact.file("weights/adapter.bin").read_bytes() == bytes(range(256)) * 8
    assert {"python", "torch"} <= set(artifact.versions)
    assert entries(store, "tmp") == []
    with pytest.raises(KeyError):
        artifact.file("other.txt")


def test_an_exception_inside_leaves_nothing(store):
    with pytest.raises(RuntimeError, match="mine"), store.create(NAME, SPEC) as folder:
        fill(folder)
        raise RuntimeError("mine")
    with pytest.raises(KeyboardInterrupt), store.create(NAME, SPEC) as folder:
        raise KeyboardInterrupt
    assert not store.has(NAME)
    assert entries(store, "tmp") == []
    with pytest.raises(SubloraError, match="has no finished dataset-"):
        store.read(NAME)


def test_what_cannot_be_an_artifact(store):
    with (
        pytest.raises(ValueError, match="not the name of this spec"),
        store.create(NAME, {"other": 1}),
    ):
        pass
    for name in (
        "../../etc",
        "dataset",
        "dataset-xyz",
        f"../dataset-{'0' * 20}",
        f"Data-{'0' * 20}",
    ):
        with pytest.raises(ValueError, match="not the name of an artifact"):
            store.path(name)
    with pytest.raises(ValueError, match="not the name of an artifact"):
        artifact_id("../x", {})
    with pytest.raises(ValueError, match="cannot hold"), store.create(NAME, SPEC) as folder:
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot hold"), store.create(NAME, SPEC) as folder:
        (folder / "link").symlink_to("/etc/passwd")
    assert not store.has(NAME)
    assert entries(store, "tmp") == []


@given(st.dictionaries(st.text(), plain_json, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_matter(spec, rng):
    def shuffled(value):
        if isinstance(value, dict):
            keys = list(value)
            rng.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(inner) for inner in value] if isinstance(value, list) else value

    assert artifact_id("x", shuffled(spec)) == artifact_id("x", spec)
    assert artifact_id("x", json.loads(canonical_json(spec))) == artifact_id("x", spec)


@given(st.lists(plain_json, min_size=2, max_size=6))
def test_different_values_have_different_texts(values):
    def typed(value):
        """The value with its types, so that 1, 1.0 and True differ as they must."""
        if isinstance(value, dict):
            return frozenset((key, typed(inner)) for key, inner in value.items())
        if isinstance(value, list):
            return tuple(map(typed, value))
        return type(value).__name__, repr(value)

    assert len({canonical_json(value) for value in values}) == len(
        {typed(value) for value in values}
    )


def test_ids_tell_types_kinds_and_schemas_apart(monkeypatch):
    values = [1, 1.0, True, "1", None, 0.0, -0.0, [1], 1e-3, 1e-4]
    names = {artifact_id("x", {"a": value}) for value in values} | {artifact_id("y", {"a": 1})}
    monkeypatch.setattr("sublora.store.ids.SCHEMA", 2)
    names |= {artifact_id("x", {"a": 1})}
    assert len(names) == len(values) + 2
    assert artifact_id("x", {"a": (1, 2)}) == artifact_id("x", {"a": [1, 2]})
    for bad in ({1: 2}, {"a": Path("x")}, {"a": {2, 3}}, {"a": b"x"}):
        with pytest.raises(TypeError):
            artifact_id("x", bad)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            artifact_id("x", {"a": bad})


def test_an_id_is_the_same_in_every_version_and_process():
    assert artifact_id("dataset", {"b": [1, 2.5, None], "a": "ü"}) == "dataset-5c7cbdece6967c561945"


@pytest.mark.parametrize("name", ["rows.jsonl", "weights/adapter.bin", "manifest.json"])
def test_a_flipped_byte_is_found(store, name):
    make(store)
    file = store.path(NAME) / name
    content = file.read_bytes()
    for position in random.Random(name).sample(range(len(content)), 12):
        spoilt = bytearray(content)
        spoilt[position] ^= 1
        file.write_bytes(spoilt)
        forget_verified()  # as another process would see it
        with pytest.raises(ArtifactCorrupt, match="damaged"):
            store.read(NAME)
    assert store.discard(NAME).is_dir()
    assert store.discard(NAME) is None
    assert not store.has(NAME)
    make(store)
    assert store.read(NAME).file(name if name != "manifest.json" else "log.txt").exists()


def test_a_file_cut_short_or_lost_counts_as_not_done_and_is_made_again(store):
    make(store)
    (store.path(NAME) / "rows.jsonl").write_text("")
    assert not store.has(NAME)
    make(store)
    assert store.has(NAME)
    (store.path(NAME) / "log.txt").unlink()
    assert not store.has(NAME)
    with pytest.raises(ArtifactCorrupt, match="missing"):
        Store(store.root).read(NAME)
    make(store)
    store.read(NAME)
    assert len(entries(store, "corrupt")) == 2


def test_files_are_hashed_once_per_process(store, monkeypatch):
    make(store)
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda *what: (hashed.append(what), digest(*what))[1]
    )
    store.read(NAME)
    Store(store.root).read(NAME)
    assert len(hashed) == 3
    store.discard(NAME)
    make(store)
    hashed.clear()
    store.read(NAME)
    assert len(hashed) == 3


class Trip:
    """Counts the calls with which the store changes the disk, and does `act` at the one asked for."""

    calls: ClassVar = {
        name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "open")
    }

    def __init__(self, act, at: int) -> None:
        self.act, self.at, self.count = act, at, 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    def set(self, setter) -> None:
        """Put the counting calls in place with `setter(module, name, value)`."""
        for name, call in self.calls.items():
            setter(os, name, self._counted(name, call))
        setter(builtins, "open", self._opened)
        setter(io, "open", self._opened)

    def _counted(self, name, call):
        def counted(*arguments, **options):
            if name != "open" or arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.step()
            return call(*arguments, **options)

        return counted

    def _opened(self, file, mode="r", *arguments, **options):
        if "r" in mode:
            return _plain_open(file, mode, *arguments, **options)
        self.step()
        opened = _plain_open(file, mode, *arguments, **options)
        return _Written(opened, self.step)


_plain_open = open


class _Written:
    """A file whose every `write` is a step."""

    def __init__(self, file, step) -> None:
        self._file, self._step = file, step

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        self._step()
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_any_step_keeps_what_is_finished(tmp_path, monkeypatch):
    store = Store(tmp_path / "home")
    first = artifact_id("dataset", {"n": 0})
    make(store, first, {"n": 0})
    step = 0
    while True:
        step += 1
        spec = {"n": step}
        name = artifact_id(
            f"kind{step}", spec
        )  # a new kind each time, so that its folder is made too
        trip = Trip(full, step)
        with monkeypatch.context() as patch:
            trip.set(patch.setattr)
            try:
                with store.create(name, spec) as folder:
                    fill(folder)
            except SubloraError as error:
                assert str(error) == (
                    f"No room left on the disk that holds {store.root}; free some or set SUBLORA_HOME "
                    "elsewhere; finished work is kept."
                )
            else:
                if trip.count < step:
                    break
        assert entries(store, "tmp") == []
        if store.has(
            name
        ):  # only the very last flush, of the folder around it, came too late to matter
            store.read(name)
        else:
            make(store, name, spec)
        store.read(first)
    assert step > 12


def test_a_full_disk_is_recognised_when_only_the_text_says_so(store):
    with pytest.raises(SubloraError, match="No room left"), store.create(NAME, SPEC):
        raise RuntimeError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )
    with pytest.raises(RuntimeError, match="something else"), store.create(NAME, SPEC):
        raise RuntimeError("something else")


def test_write_atomic_shows_the_old_or_the_new(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    write_json_atomic(file, {"status": "läuft", "rate": 0.25})
    assert json.loads(file.read_text("utf-8")) == {"status": "läuft", "rate": 0.25}
    old = file.read_bytes()
    step = 0
    while True:
        step += 1
        trip = Trip(full, step)
        with monkeypatch.context() as patch:
            trip.set(patch.setattr)
            try:
                write_atomic(file, "new\n")
            except SubloraError as error:
                assert "No room left on the disk" in str(error)
            else:
                break
        assert file.read_bytes() in (old, b"new\n")
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
        write_atomic(file, old)
    assert step >= 4
    assert file.read_bytes() == b"new\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(file, {"rate": float("nan")})
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "x", b"")


def test_a_store_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SubloraError, match="cannot be written to"):
        Store(tmp_path / "file")
    with pytest.raises(SubloraError, match="cannot be written to"):
        Store(Path("/proc/sublora"))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(SubloraError, match="a link to a folder that is not there"):
        Store(tmp_path / "link")
    monkeypatch.setenv("SUBLORA_HOME", str(tmp_path / "chosen"))
    assert Store().root == tmp_path / "chosen"
    monkeypatch.setenv("SUBLORA_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert Store().root == tmp_path / "user" / ".cache" / "sublora"


KILLED_AT = """
    trip = Trip(lambda: os.kill(os.getpid(), signal.SIGKILL), int(sys.argv[3]))
    store = Store(Path(sys.argv[1]))
    trip.set(setattr)
    make(store, sys.argv[2])
"""


def test_killed_at_every_step_the_next_run_goes_on(store):
    """SIGKILL before each system call that changes the disk, one after the other."""
    survived = visible = 0
    for step in range(1, 40):
        name = artifact_id(
            f"kind{step}", SPEC
        )  # a new kind each time, so that its folder is made too
        process = child(KILLED_AT, str(store.root), name, str(step))
        process.communicate()
        if process.returncode == 0:
            survived = step
            break
        assert process.returncode == -signal.SIGKILL
        if store.has(name):  # killed after the rename
            visible += 1
        else:
            assert not store.path(name).exists()
            make(store, name)
        store.read(name)
        assert store.sweep(grace_seconds=0) <= 1
        assert entries(store, "tmp") == []
    assert survived > 12
    assert visible >= 1
    store.read(name)


def test_killed_at_random_moments_everything_visible_is_whole(store):
    endless = """
    store = Store(Path(sys.argv[1]))
    for n in range(100_000):
        spec = {"n": n}
        name = artifact_id("dataset", spec)
        if not store.has(name):
            make(store, name, spec)
        if n == 0:
            print("ready", flush=True)
    """
    rng = random.Random(5)
    for _ in range(12):
        process = child(endless, str(store.root))
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
    made = [path.name for path in (store.root / "artifacts").glob("dataset/*")]
    assert made
    assert all(store.has(name) for name in made)
    for name in made:
        store.read(name)
    store.sweep(grace_seconds=0)
    assert entries(store, "tmp") == []


def test_of_two_makers_one_wins_and_both_go_on(store):
    racing = """
    store = Store(Path(sys.argv[1]))
    print("ready", flush=True)
    while not (store.root / "go").exists():
        pass
    for n in range(20):
        spec = {"n": n}
        name = artifact_id("dataset", spec)
        make(store, name, spec)
        store.read(name)
    """
    processes = [child(racing, str(store.root)) for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    (store.root / "go").touch()
    assert [process.wait(timeout=30) for process in processes] == [0, 0]
    for process in processes:
        process.stdout.close()
    assert len(entries(store, "artifacts/dataset")) == 20
    assert entries(store, "tmp") == entries(store, "corrupt") == []


def test_a_lock_keeps_others_out_and_outlives_no_holder(store):
    holding = """
    store = Store(Path(sys.argv[1]))
    with store.lock(NAME):
        print("held", flush=True)
        time.sleep(60)
    """
    waiting = """
    store = Store(Path(sys.argv[1]))
    print("waiting", flush=True)
    with store.lock(NAME):
        print("held", flush=True)
    """
    holder = child(holding, str(store.root))
    assert holder.stdout.readline() == "held\n"
    waiter = child(waiting, str(store.root))
    assert waiter.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    assert waiter.poll() is None
    holder.kill()
    holder.communicate()
    assert waiter.communicate(timeout=10)[0] == "held\n"
    with store.lock(NAME), store.lock(artifact_id("dataset", {})):
        pass


def test_sweep_leaves_the_living_and_the_young_alone(store):
    with store.create(NAME, SPEC) as folder:
        fill(folder)
        assert store.sweep(grace_seconds=0) == 0
        assert (folder / "log.txt").exists()
    leftover = store.root / "tmp" / "dead.123"
    (leftover / "content").mkdir(parents=True)
    assert store.sweep() == 0
    assert store.sweep(grace_seconds=0) == 1
    assert store.has(NAME)


def test_small_artifacts_are_cheap(store):
    times = []
    for n in range(40):
        spec = {"n": n}
        start = time.perf_counter()
        make(store, artifact_id("dataset", spec), spec)
        times.append(time.perf_counter() - start)
    assert (
        sorted(times)[len(times) // 2] < 0.05
    )  # a few ms on a quiet disk; the bound is for a busy one
