"""Steps on Ray: the same bytes as in this process, with and without a shared folder; workers may die."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from command import SMALL, sublora
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.models.known import known_base
from sublora.packs.check import load_base
from sublora.runner import run, worker
from sublora.runner.ray import Ray
from sublora.runner.worker import Answer, Setup, Worker, work_on, worker_of
from sublora.store import Busy, NoRoom, Store

GRID = [
    *SMALL,
    "--set",
    "train.lora.ranks=[1,2]",
    "--set",
    "train.lora.lrs=[1e-3]",
    "--set",
    "train.full.lrs=[1e-3]",
]


def files(store: Path) -> dict[str, dict]:
    return {
        p.parent.name: json.loads(p.read_text())["files"]
        for p in store.glob("artifacts/*/*/manifest.json")
    }


def setup(root: Path, token: str, base) -> Setup:
    identity = tuple(sorted(base.identity.items()))
    return Setup("micro", "micro", identity, "float32", None, "cpu", 1, str(root), token)


@pytest.fixture
def steps_and_base():
    recipe = open_recipe("rank", sets=[*SMALL[1::2], "train.lora.ranks=[1]"])
    base = load_base("micro")
    return recipe.plan(known_base(base)), base


def of(steps, kind: str) -> list:
    return [step for step in steps if step.kind.startswith(kind)]


def test_without_the_package_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = sublora("run", "rank-lr", *GRID, "--executor", "ray", "--out", str(tmp_path / "run"))
    assert (
        answer.code == 2
        and answer.err.count("\n") == 1
        and "pip install 'sublora[ray]'" in answer.err
    )
    assert not (tmp_path / "run").exists()
    assert "--executor ray" in sublora("run", "rank-lr", "--ray-address", "auto").err


def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            answer = sublora(
                "run",
                "rank-lr",
                *GRID,
                "--executor",
                "ray",
                "--ray-address",
                given,
                "--out",
                str(tmp_path / "run"),
            )
            assert answer.code == 2 and answer.err.count("\n") == 1 and given in answer.err


def test_steps_travel(steps_and_base) -> None:
    for step in steps_and_base[0]:
        again = pickle.loads(pickle.dumps(step))
        assert again == step and (again.id, again.makes, again.needs) == (
            step.id,
            step.makes,
            step.needs,
        )
        assert len(pickle.dumps(step)) < 200_000


def test_a_worker_without_the_folder_asks_for_what_it_lacks_and_sends_what_it_made(
    tmp_path: Path, own_store: Path, steps_and_base, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, base = steps_and_base
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(worker, "receive", receive := Received(Store(own_store)))
    here, away = Store(own_store), setup(tmp_path / "not-there", "f" * 32, base)
    for step in of(steps, "datasets"):
        answer = work_on(away, step, {}, True)
        assert (answer.status, set(answer.sent)) == ("done", set(step.makes)) and answer.seconds > 0
        for name, content in answer.sent.items():
            here.adopt(name, content)
    step = of(steps, "students")[0]
    assert work_on(away, step, {}, True).status == "done"  # it made the datasets itself
    other = setup(tmp_path / "not-there", "e" * 32, base)  # another machine
    lacks = work_on(other, step, {}, True)
    assert (lacks.status, lacks.lacks) == ("lacks", step.needs)
    answer = work_on(other, step, dict.fromkeys(step.needs), True)
    assert answer.status == "done" and receive.taken == set(step.needs)
    for name, content in answer.sent.items():
        here.adopt(name, content)
        assert (
            here.read(name).files
            == Store(tmp_path / f"sublora-{os.getuid()}-{'f' * 12}").read(name).files
        )
    spoilt = answer.sent[step.makes[0]] | {"training.json": b"{}"}
    here.discard(step.makes[0])
    with pytest.raises(SubloraError, match="damaged"):
        here.adopt(step.makes[0], spoilt)
    assert not here.has(step.makes[0]) and not list((own_store / "tmp").iterdir())
    third = setup(tmp_path / "not-there", "d" * 32, base)  # a machine that has made nothing yet
    wrong = Setup(**{**third.__dict__, "identity": (("weights", "other"),)})
    step = of(steps, "datasets")[0]
    assert "is not the one that the run was started with" in work_on(wrong, step, {}, True).sentence
    worker_of.cache_clear()


class Received:
    def __init__(self, store: Store) -> None:
        self.store, self.taken = store, set()

    def __call__(self, store, unit, inputs) -> None:
        for name in inputs:
            if not store.has(name):
                self.taken.add(name)
                store.adopt(name, self.store.export(name))


@pytest.mark.parametrize(
    ("error", "status"),
    [(Busy("x"), "busy"), (NoRoom("No room left."), "no room"), (SubloraError("bad"), "failed"), (ValueError("a\nb"), "failed")],
)  # fmt: skip
def test_what_goes_wrong_on_a_worker_travels_as_text(
    own_store: Path, steps_and_base, error, status
) -> None:
    steps, base = steps_and_base

    class Fails:
        model = None
        id, makes = steps[0].id, steps[0].makes

        def make(self, workshop, wanted):
            raise error

    here = setup(own_store, "", base)
    answer = Worker(here, Store(own_store), base).make(Fails(), True)
    assert answer.status == status and bool(answer.trace) == isinstance(error, ValueError)
    assert "\n" not in answer.sentence
    assert pickle.loads(pickle.dumps(answer)) == answer


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, step) -> None:
        self.lines.append(f"started {step.id}")

    def ended(self, step, answer: Answer) -> None:
        self.lines.append(f"{answer.status} {step.id}")


def test_the_driver_answers_each_way_a_task_can_end(own_store: Path, steps_and_base) -> None:
    """Without Ray: its calls are replaced by a list of answers."""
    steps, base = steps_and_base
    (a, b, c), store, told = of(steps, "datasets")[:3], Store(own_store), Told()
    answers = {
        a.id: deque([Answer("busy")]),
        b.id: deque([Answer("lacks", lacks=("x",)), Answer("failed", "It is bad.")]),
        c.id: deque([RuntimeError("its worker died")]),
    }

    class Driver:
        """What `ray` is asked for."""

        exceptions = type("Exceptions", (), {"RayError": RuntimeError})
        put = staticmethod(lambda value: value)
        cluster_resources = staticmethod(lambda: {"CPU": 2})

        def remote(self, *arguments, **_):
            """Both `ray.remote(...)(function)` and `task.remote(...)`."""
            if not arguments:
                return lambda _work_on: self
            _, step, _, wait = arguments
            self.asked.append((step.id, wait))
            return step.id, len(self.asked)

        def get(self, ref):
            answer = answers[ref[0]].popleft()
            if isinstance(answer, Exception):
                raise answer
            return answer

        def wait(self, refs, **_):
            return refs[:1], refs[1:]

    driver = Driver()
    driver.asked = []
    ray = Ray(store, setup(own_store, "", base), driver)
    for step in (a, b, c):
        assert ray.room()
        ray.submit(step, False)
    while sum(not line.startswith("started") for line in told.lines) < 3:
        ray.advance(told)
    assert driver.asked == [(a.id, False), (b.id, False), (c.id, False), (b.id, False)]
    ends = [line for line in told.lines if not line.startswith("started")]
    assert ends == [f"busy {a.id}", f"failed {c.id}", f"failed {b.id}"]
    assert sorted(line for line in told.lines if line.startswith("started")) == sorted(
        f"started {s.id}" for s in (a, b, c)
    )


def run_process(out: Path, store: Path) -> subprocess.Popen:
    code = "from sublora.cli import main; main()"
    command = ["run", "rank-lr", *GRID, "--threads", "2", "--executor", "ray", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "SUBLORA_HOME": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(process: subprocess.Popen) -> list[int]:
    """Ray's workers that run a unit now, of this driver alone."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title, status = (path / "cmdline").read_text(), (path / "status").read_text()
            parent = int(status.split("PPid:")[1].split()[0])
            grandparent = int(
                Path(f"/proc/{parent}/status").read_text().split("PPid:")[1].split()[0]
            )
        except (OSError, IndexError, ValueError):
            continue
        if title.startswith("ray::work_on") and process.pid in (parent, grandparent):
            found.append(int(path.name))
    return found


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(
    tmp_path: Path, own_store: Path
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    child = run_process(tmp_path / "ray", tmp_path / "store")
    killed = 0
    while child.poll() is None and not killed:
        if list((tmp_path / "store").glob("artifacts/dataset/*/manifest.json")):
            for worker in workers_of(child)[:1]:
                os.kill(worker, signal.SIGKILL)
                killed += 1
        time.sleep(0.1)
    _out, err = child.communicate(timeout=240)
    assert child.returncode == 0 and killed == 1, err
    assert sublora("run", "rank-lr", *GRID, "--out", str(tmp_path / "local")).code == 0
    for name in ("results.csv", "cells.csv", "verdicts.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert files(tmp_path / "store") == files(own_store)
    assert json.loads((tmp_path / "ray" / "run.json").read_text())["executor"] == "ray"


@pytest.mark.slow
def test_ray_without_a_shared_folder_gives_the_same_bytes(
    tmp_path: Path, own_store: Path, monkeypatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its sockets need a short path
    monkeypatch.setattr(run, "token_of", lambda _: "no worker sees this")
    answer = sublora(
        "run",
        "rank-lr",
        *GRID,
        "--threads",
        "2",
        "--executor",
        "ray",
        "--out",
        str(tmp_path / "ray"),
    )
    assert answer.code == 0, answer.err
    far = next(tmp_path.glob("sublora-*"))
    assert files(far) == files(own_store) and len(files(far)) > 10
    monkeypatch.setenv("SUBLORA_HOME", str(tmp_path / "own"))
    assert sublora("run", "rank-lr", *GRID, "--out", str(tmp_path / "local")).code == 0
    assert (tmp_path / "ray" / "results.csv").read_bytes() == (
        tmp_path / "local" / "results.csv"
    ).read_bytes()
