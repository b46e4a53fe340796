"""Units on Ray: the same bytes as in this process, with and without a shared folder; workers may die."""

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
from sublora.remote import Answer, Work, _maker, work_on

from command import SMALL, sublora
from sublora import ray_executor, remote
from sublora.errors import SubloraError
from sublora.packs.check import load_base
from sublora.plan import make_plan
from sublora.recipe import load_recipe
from sublora.store import Busy, NoRoom, Store
from sublora.units import data_units, measure_units, train_units

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


def work(root: Path, token: str, base) -> Work:
    return Work(
        "micro",
        None,
        "float32",
        tuple(sorted(base.identity.items())),
        "cpu",
        1,
        2048,
        str(root),
        token,
    )


@pytest.fixture
def plan_and_base():
    recipe = load_recipe("rank", sets=[*SMALL[1::2], "train.lora.ranks=[1]"])
    base = load_base("micro")
    return make_plan(recipe, base.identity, 60.0), base


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


def test_units_and_answers_travel(plan_and_base) -> None:
    plan, _ = plan_and_base
    for unit in (*data_units(plan), *train_units(plan), *measure_units(plan)):
        again = pickle.loads(pickle.dumps(unit))
        assert again == unit and (again.id, again.makes, again.needs) == (
            unit.id,
            unit.makes,
            unit.needs,
        )
        assert len(pickle.dumps(unit)) < 200_000


def test_a_worker_without_the_folder_asks_for_what_it_lacks_and_sends_what_it_made(
    tmp_path: Path, own_store: Path, plan_and_base, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, base = plan_and_base
    monkeypatch.setattr(remote.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(remote, "_receive", receive := Received(Store(own_store)))
    here, away = Store(own_store), work(tmp_path / "not-there", "f" * 32, base)
    for unit in data_units(plan):
        answer = work_on(away, unit, {}, True)
        assert (answer.status, set(answer.sent)) == ("done", {unit.stage.id}) and answer.seconds > 0
        for name, content in answer.sent.items():
            here.adopt(name, content)
    unit = train_units(plan)[0]
    assert work_on(away, unit, {}, True).status == "done"  # it made the datasets itself
    other = work(tmp_path / "not-there", "e" * 32, base)  # another machine
    lacks = work_on(other, unit, {}, True)
    assert (lacks.status, lacks.lacks) == ("lacks", unit.needs)
    answer = work_on(other, unit, dict.fromkeys(unit.needs), True)
    assert answer.status == "done" and receive.taken == set(unit.needs)
    for name, content in answer.sent.items():
        here.adopt(name, content)
        assert (
            here.read(name).files
            == Store(tmp_path / f"sublora-{os.getuid()}-{'f' * 12}").read(name).files
        )
    spoilt = answer.sent[unit.makes[0]] | {"training.json": b"{}"}
    here.discard(unit.makes[0])
    with pytest.raises(SubloraError, match="damaged"):
        here.adopt(unit.makes[0], spoilt)
    assert not here.has(unit.makes[0]) and not list((own_store / "tmp").iterdir())
    wrong = Work(**{**away.__dict__, "identity": (("weights", "other"),)})
    assert "is not the one that the run was started with" in work_on(wrong, unit, {}, True).sentence
    _maker.cache_clear()


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
    monkeypatch, plan_and_base, error, status
) -> None:
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(remote, "_maker", fail)
    answer = work_on(None, data_units(plan_and_base[0])[0], {}, True)
    assert answer.status == status and bool(answer.trace) == isinstance(error, ValueError)
    assert "\n" not in answer.sentence
    assert pickle.loads(pickle.dumps(answer)) == answer


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, what):
        return lambda unit, *_: self.lines.append(
            f"{what} {unit.id if hasattr(unit, 'id') else unit}"
        )


def test_the_driver_answers_each_way_a_task_can_end(own_store: Path, plan_and_base) -> None:
    """Without Ray: its three calls are replaced by a list of answers."""
    plan, _ = plan_and_base
    units, store, told = data_units(plan)[:3], Store(own_store), Told()
    answers = {u.id: deque() for u in units}
    answers[units[0].id] += [Answer("busy"), Answer("done")]
    answers[units[1].id] += [Answer("lacks", lacks=("x",)), Answer("failed", "It is bad.")]
    answers[units[2].id] += [RuntimeError("its worker died")]

    class Exceptions:
        RayError = RuntimeError

    class Driver:
        workers, sending, asked = 2, False, []
        exceptions = Exceptions
        ray = property(lambda self: self)

        def submit(self, unit, wait):
            self.asked.append((unit.id, wait, self.sending))
            return unit.id, len(self.asked)

        def send_inputs(self):
            self.sending = True

        def wait(self, refs, **_):
            return refs[:1], refs[1:]

        def get(self, ref):
            answer = answers[ref[0]].popleft()
            if isinstance(answer, Exception):
                raise answer
            if answer.status == "done":
                spec = next(u for u in units if u.id == ref[0]).stage.spec
                with store.create(ref[0], spec) as folder:
                    (folder / "rows.jsonl").write_text("")
            return answer

    driver = Driver()
    driver.store = store
    flight = ray_executor._Flight(driver, deque((u, False) for u in units), told)
    while flight.queue or flight.pending:
        flight.submit()
        flight.land(0.0)
    a, b, c = (u.id for u in units)
    assert driver.asked == [
        (a, False, False),
        (b, False, False),
        (c, False, False),
        (b, False, True),
        (a, True, True),
    ]
    ends = [line for line in told.lines if not line.startswith("started")]
    assert ends == [
        f"postponed {a}",
        f"postponed {b}",
        f"failed {c}",
        f"failed {b}",
        f"finished {a}",
    ]


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
    monkeypatch.setattr(remote, "_token", lambda _: "no worker sees this")
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
