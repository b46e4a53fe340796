"""`sublora store`: damage is found, what no run refers to goes, what a run or a living maker uses stays."""

import json
import os
import time
from pathlib import Path

import pytest

from command import sublora
from sublora.store import Store, artifact_id
from sublora.store.known_runs import note_run


@pytest.fixture
def store(own_store: Path) -> Store:
    return Store(own_store)


def make(store: Store, number: int, kind: str = "student", hours_old: float = 2.0) -> str:
    spec = {"n": number}
    name = artifact_id(kind, spec)
    with store.create(name, spec) as folder:
        (folder / "weights.bin").write_bytes(bytes([number]) * 1000)
    past = time.time() - hours_old * 3600
    os.utime(store.path(name), (past, past))
    return name


def names(store: Store) -> set[str]:
    return {p.name for p in store.root.glob("artifacts/*/*")}


@pytest.mark.parametrize(
    "harm", ["flip", "cut", "lose a file", "lose the manifest", "a strange folder"]
)
def test_verify_finds_damage_and_moves_it_away(store: Store, harm: str) -> None:
    good, bad = make(store, 1), make(store, 2)
    assert sublora("store", "verify").code == 0
    file = store.path(bad) / "weights.bin"
    if harm == "flip":
        file.write_bytes(bytes([3]) + file.read_bytes()[1:])
    elif harm == "cut":
        file.write_bytes(b"")
    elif harm == "lose a file":
        file.unlink()
    elif harm == "lose the manifest":
        (store.path(bad) / "manifest.json").unlink()
    else:
        store.path(bad).rename(store.path(bad).with_name("strange"))
    answer = sublora("store", "verify")
    assert (
        answer.code == 1
        and "2 artifacts" in answer.out
        and "1 damaged" in answer.out
        and "--move" in answer.out
    )
    assert len(names(store)) == 2
    assert sublora("store", "verify", "--move").code == 1
    assert names(store) == {good} and len(list((store.root / "corrupt").iterdir())) == 1
    assert sublora("store", "verify").code == 0


def test_gc_removes_only_what_no_run_refers_to(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shared, mine, other, stray = (make(store, n) for n in range(4))
    young = make(store, 9, hours_old=0.1)
    note_run(store, tmp_path / "a", [shared, mine], ["pack-" + "a" * 20])
    note_run(store, tmp_path / "b", [shared, other], [])
    (store.root / "checkpoints").mkdir()
    for unit in "ab":
        (store.root / "checkpoints" / f"pack-{unit * 20}.safetensors").write_bytes(b"x")
    broken = make(store, 5)
    store.discard(broken)
    before = names(store)
    answer = sublora("store", "gc", "--dry-run")
    assert (
        "Would remove 1 artifacts that no run refers to, 1 checkpoints, 1 damaged ones and 0 leftovers"
        in answer.out
    )
    assert names(store) == before and list((store.root / "corrupt").iterdir())
    answer = sublora("store", "gc")
    assert answer.code == 0 and "1 more are younger than 1 h" in answer.out
    assert names(store) == {shared, mine, other, young} and not list(
        (store.root / "corrupt").iterdir()
    )
    assert [p.name[5] for p in (store.root / "checkpoints").iterdir()] == ["a"]
    (tmp_path / "b").rmdir()
    answer = sublora("store", "gc", "--min-age", "0")
    assert "1 runs whose folder is gone" in answer.out
    assert names(store) == {shared, mine} and stray not in names(store)


def test_gc_leaves_a_living_maker_and_other_machines_alone(store: Store, tmp_path: Path) -> None:
    name, far = make(store, 1, "dataset"), make(store, 2)
    note_run(store, tmp_path / "gone", [far], [])
    note = next((store.root / "runs").iterdir())
    note.write_text(note.read_text().replace(json.loads(note.read_text())["host"], "another"))
    spec = {"n": 3}
    with store.lock(name), store.create(artifact_id("student", spec), spec) as folder:
        os.utime(folder.parent, (0, 0))
        answer = sublora("store", "gc")
        assert folder.is_dir()
    assert names(store) == {name, far, artifact_id("student", spec)}
    assert "Runs of another are kept" in answer.out
    sublora("store", "gc", "--forget", "another")
    assert names(store) == {artifact_id("student", spec)}


def test_gc_removes_nothing_when_a_note_cannot_be_read(store: Store, tmp_path: Path) -> None:
    make(store, 1)
    note_run(store, tmp_path, [], [])
    next((store.root / "runs").iterdir()).write_text("{")
    answer = sublora("store", "gc")
    assert answer.code == 2 and "cannot be read" in answer.err and len(names(store)) == 1


def test_du_counts_shared_artifacts_for_each_run(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shared, mine = make(store, 1), make(store, 2)
    make(store, 3)
    note_run(store, tmp_path / "a", [shared, mine, artifact_id("student", {"n": 99})], [])
    note_run(store, tmp_path / "b", [shared], [])
    lines = {
        line.split()[0]: line.split()[1:]
        for line in sublora("store", "du").out.splitlines()
        if line
    }
    assert lines["student"][0] == "3" and lines[str(tmp_path / "a")][:2] == ["2", "1"]
    size = lambda i: float(lines[str(tmp_path / "a")][i])  # noqa: E731
    assert size(2) == pytest.approx(2 * size(4)) and lines["no"][1] == "1"
