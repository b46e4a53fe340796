"""Units in processes: the same bytes as in one process, a worker that dies is replaced, and none outlives its run."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import SMALL
from sublora.experiments.kinds import open_recipe
from sublora.runner import local
from sublora.runner.run import RunOptions, run
from sublora.store import Store

PACKS = [
    *SMALL,
    "--set",
    "train.lora.ranks=[1]",
    "--set",
    "train.lora.lrs=[1e-3]",
    "--set",
    "train.full.lrs=[1e-3]",
]


def small_recipe():
    values = [v for flag, v in itertools.pairwise(PACKS) if flag == "--set"]
    return open_recipe("rank-lr", sets=values)


def contents(store: Path) -> dict[str, dict[str, str]]:
    """Every artifact's files by their hashes."""
    out = {}
    for manifest in store.glob("artifacts/*/*/manifest.json"):
        files = json.loads(manifest.read_text())["files"]
        out[manifest.parent.name] = {name: entry["sha256"] for name, entry in files.items()}
    return out


class Killing(local.Processes):
    """Kills the worker of the first artifact that is made."""

    killed, said = 0, ()

    def advance(self, listener):
        super().advance(KillsOnce(self, listener))


class KillsOnce:
    def __init__(self, pool: Killing, listener) -> None:
        self.pool, self.listener = pool, listener

    def __getattr__(self, name: str):
        return getattr(self.listener, name)

    def made(self, name: str) -> None:
        self.listener.made(name)
        if not Killing.killed:
            Killing.killed = 1
            for child in multiprocessing_children():
                os.kill(child, signal.SIGKILL)

    def say(self, sentence: str) -> None:
        Killing.said += (sentence,)
        self.listener.say(sentence)


def multiprocessing_children() -> set[int]:
    return workers_of(os.getpid())


@pytest.mark.slow
def test_processes_make_the_same_bytes_even_if_they_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name, worth, executor in (
        ("one", float("inf"), local.Processes),
        ("more", 0.0, local.Processes),
        ("killed", 0.0, Killing),
    ):
        monkeypatch.setattr(local, "WORTH_FLOPS", worth)
        monkeypatch.setattr(local, "Processes", executor)
        store = tmp_path / f"store {name}"
        result = run(small_recipe(), tmp_path / name, RunOptions(threads=2), store=Store(store))
        used.append(((result.folder / "results.csv").read_bytes(), contents(store)))
    assert used[0] == used[1] == used[2] and len(used[0][1]) > 8
    assert Killing.killed and all("that is made again" in s for s in Killing.said)
    assert 1 <= len(Killing.said) <= 2


def workers_of(pid: int) -> set[int]:
    """Processes of the module below `pid`."""
    out = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"sublora.runner.worker" in (entry / "cmdline").read_bytes():
                out.add(int(entry.name))
        except (OSError, ValueError):
            continue
    return out


def wait_for(condition, seconds: float = 60.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers through /proc")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_run(tmp_path: Path, sign: int) -> None:
    environment = os.environ | {"SUBLORA_HOME": str(tmp_path / "home")}
    code = (
        "import sublora.runner.local as local, sublora.cli; local.WORTH_FLOPS = 0.0; import sys; "
        "sys.argv[0] = 'sublora'; sublora.cli.main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "run",
        "rank-lr",
        "--threads",
        "2",
        *PACKS,
        "--out",
        str(tmp_path / "run"),
    ]
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    started = wait_for(lambda: workers_of(run.pid))
    run.send_signal(sign)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == (3 if sign == signal.SIGINT else -sign)
    assert "Traceback" not in error
    wait_for(lambda: all(not Path(f"/proc/{pid}").exists() for pid in started))
