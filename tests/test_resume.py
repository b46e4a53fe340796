"""Runs go on: a second process helps, --fresh keeps the old run, a batch system's signal ends cleanly, run.json tells how it goes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from command import SMALL, sublora
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.runner.display import Display
from sublora.runner.execution import Count, Execution
from sublora.runner.folder import RunRecord, guard_other_recipe
from sublora.store import Store

ONE = [
    *SMALL,
    "--set",
    "train.lora.ranks=[1]",
    "--set",
    "train.lora.lrs=[1e-3]",
    "--set",
    "train.full=null",
]


def process(out: Path, store: Path, *more: str) -> subprocess.Popen:
    code = "from sublora.cli import main; main()"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "run",
            "rank-lr",
            *ONE,
            "--threads",
            "1",
            "--out",
            str(out),
            *more,
        ],
        env={**os.environ, "SUBLORA_HOME": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files(store: Path) -> dict[str, dict]:
    return {
        p.parent.name: json.loads(p.read_text())["files"]
        for p in store.glob("artifacts/*/*/manifest.json")
    }


def test_fresh_makes_a_new_folder_and_shares_the_artifacts(tmp_path: Path, own_store: Path) -> None:
    out = tmp_path / "run"
    assert sublora("run", "rank-lr", *ONE, "--out", str(out)).code == 0
    before, old = files(own_store), (out / "run.json").read_bytes()
    answer = sublora("run", "rank-lr", *ONE, "--out", str(out), "--fresh")
    assert (
        answer.code == 0
        and f"A new run in {out}-2" in answer.err
        and "stays as it is" in answer.err
    )
    assert (out / "run.json").read_bytes() == old and files(own_store) == before
    assert (tmp_path / "run-2" / "results.csv").read_bytes() == (out / "results.csv").read_bytes()
    run = json.loads((tmp_path / "run-2" / "run.json").read_text())
    assert run["status"] == "done"
    assert (
        run["progress"]["students (LoRA)"] == {"total": 6, "done": 6, "running": 0, "failed": 0}
        and run["failed"] == []
    )
    # the same command on a finished run keeps when it was started and how long it took
    assert sublora("run", "rank-lr", *ONE, "--out", str(out)).code == 0
    again = json.loads((out / "run.json").read_text())
    assert again["started"] == json.loads(old)["started"]
    assert again["seconds"]["students (LoRA)"] >= json.loads(old)["seconds"]["students (LoRA)"] > 0
    listed = json.loads(next((own_store / "runs").glob("*.json")).read_text())
    assert set(listed["artifacts"]) == set(before)


@pytest.mark.slow
def test_two_processes_on_one_run_share_the_work(tmp_path: Path) -> None:
    processes = [process(tmp_path / "run", tmp_path / "store") for _ in range(2)]
    ends = [p.communicate(timeout=240) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], ends
    assert sum("this one helps" in err for _, err in ends) == 1
    assert not list((tmp_path / "store" / "corrupt").iterdir()) and not list(
        (tmp_path / "store" / "tmp").iterdir()
    )
    assert sublora("run", "rank-lr", *ONE, "--out", str(tmp_path / "alone")).code == 0
    assert (tmp_path / "run" / "results.csv").read_bytes() == (
        tmp_path / "alone" / "results.csv"
    ).read_bytes()
    assert files(tmp_path / "store") == files(Path(os.environ["SUBLORA_HOME"]))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_with_3_and_a_sentence(tmp_path: Path, name: str, executor: str) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="ray is not installed")
    child = process(tmp_path / "run", tmp_path / "store", "--executor", executor)
    while (
        not list((tmp_path / "store").glob("artifacts/dataset/*/manifest.json"))
        and child.poll() is None
    ):
        time.sleep(0.01)
    child.send_signal(getattr(signal, name))
    _, err = child.communicate(timeout=120)
    assert child.returncode == 3 and "run the same command again" in err and "Traceback" not in err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "interrupted" and run["progress"]["datasets"]["running"] == 0
    again = process(tmp_path / "run", tmp_path / "store", "--executor", executor)
    assert again.communicate(timeout=240) and again.returncode == 0


def test_a_killed_run_is_listed_as_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text(
        json.dumps({"status": "running", "sentence": "What it does."})
    )
    assert "stopped" in sublora("ls", "runs").out
    with FileLock(tmp_path / "runs" / "a" / ".lock"):
        assert "running" in sublora("ls", "runs").out


def test_run_json_is_written_at_a_bounded_rate_and_whole(tmp_path: Path, own_store: Path) -> None:
    path = tmp_path / "run.json"
    execution = Execution(None, Store(own_store), Display())
    execution.counts["students"] = Count(10, 3, running=2, failed=1)
    often, seldom = (
        RunRecord(path, {"name": "a"}, {"train": 5.0}, every=every) for every in (0.0, 1e6)
    )
    often.execution = seldom.execution = execution
    execution.clock.spent = {"train": 1.5, "measure": 2.0}
    often.changed()
    run = json.loads(path.read_text())
    assert run["progress"] == {"students": {"total": 10, "done": 3, "running": 2, "failed": 1}}
    assert run["seconds"] == {"train": 6.5, "measure": 2.0} and run["failed"] == []
    seldom.changed()
    execution.counts["students"].done = 4
    before = path.read_bytes()
    seldom.changed()
    assert path.read_bytes() == before
    seldom.write("done")
    assert json.loads(path.read_text())["progress"]["students"]["done"] == 4


def test_a_folder_of_the_first_version_is_gone_on_with_and_another_recipe_is_refused(
    tmp_path: Path,
) -> None:
    recipe = open_recipe("rank")
    first = recipe.model_dump(mode="json")
    for later in ("kind", "vary"):  # what 0.1 did not know
        first.pop(later, None)
        first["train"].pop(later, None)
    (tmp_path / "run.json").write_text(json.dumps({"recipe": first}))
    guard_other_recipe(tmp_path, recipe)
    with pytest.raises(SubloraError, match="choose another --out, give --fresh, or remove it"):
        guard_other_recipe(tmp_path, open_recipe("rank", sets=["level=0.1"]))
    (tmp_path / "run.json").write_text("{")
    guard_other_recipe(tmp_path, recipe)
