"""How large a sweep may be: a plan of 100,000 students, and a run on workers of Ray of which some are killed.

    python benchmarks/scale.py                    both; 8 workers, 2 of them killed
    python benchmarks/scale.py --students 2000 --workers 0

The plan is what `sublora plan` takes for a recipe like rank-lr with 25 ranks, 20 seeds, two arms and as many learning rates as it needs:
seconds of the whole command, and the most memory that it held. The workers are Ray's on this machine, as many as `--threads` says; one
is killed in the middle of a step, and a second one when more is made. The same recipe is then run here from an empty store, and every
artifact and table is compared byte by byte.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANKS, SEEDS = 25, 20
SMALL = [
    *("train.lora.ranks=[1,2,4]", "train.lora.lrs=[1e-3,3e-3]", "train.full.lrs=[1e-3]"),
    *("data.rows=96", "data.heldout_rows=16", "data.seeds=[1,2]", "train.seeds=[1,2]"),
    "measure.samples=3",
]
TABLES = ("results.csv", "cells.csv", "verdicts.json")


def command(*words: str, store: Path, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from sublora.cli import main; main()", *words],
        env={**os.environ, "SUBLORA_HOME": str(store)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def plan(students: int, folder: Path) -> dict[str, Any]:
    """Seconds and gigabytes of `sublora plan`; `students` is rounded to what whole grids have."""
    lrs = [round(1e-6 * 1.01**i, 15) for i in range(max(1, students // (2 * RANKS * SEEDS)))]
    seeds, ranks = list(range(SEEDS)), list(range(1, RANKS + 1))
    recipe = {
        "name": "large",
        "extends": "rank-lr",
        "fixed_lr": None,
        "data": {"seeds": seeds},
        "train": {"full": None, "seeds": seeds, "lora": {"ranks": ranks, "lrs": lrs}},
    }
    (folder / "large.yaml").write_text(json.dumps(recipe))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    asked = command("plan", "large.yaml", store=folder / "store", folder=folder)
    printed, _ = asked.communicate()
    assert asked.returncode == 0, printed
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "plan_students": 2 * RANKS * SEEDS * len(lrs),
        "plan_s": round(time.monotonic() - started, 1),
        "plan_cpu_s": round(cpu, 1),
        "plan_gb": round(after.ru_maxrss / 1e6, 2),
    }


def files(store: Path) -> dict[str, dict]:
    return {
        p.parent.name: json.loads(p.read_text())["files"]
        for p in store.glob("artifacts/*/*/manifest.json")
    }


def workers_of(process: subprocess.Popen) -> list[int]:
    """Ray's workers of this run that are making a step now."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if (path / "cmdline").read_text().startswith("ray::work_on"):
                parent = _parent(path.name)
                if process.pid in (parent, _parent(parent)):
                    found.append(int(path.name))
    return found


def _parent(pid: str | int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


def ray(workers: int, kill: int, folder: Path) -> dict[str, Any]:
    """A run on so many workers, some of them killed on the way, against the same run here."""
    words = ["run", "rank-lr", *(w for s in SMALL for w in ("--set", s)), "--out"]
    far, here = folder / "far", folder / "here"
    on_ray = ["--executor", "ray", "--threads", str(workers)]
    run = command(*words, str(folder / "run-far"), *on_ray, store=far, folder=folder)
    killed = 0
    while run.poll() is None:
        made = len(list(far.glob("artifacts/*/*/manifest.json")))
        if killed < kill and made > 6 * killed:
            for pid in workers_of(run)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.1)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed
    again = command(*words, str(folder / "run-here"), store=here, folder=folder)
    printed = again.communicate()[0]
    assert again.returncode == 0, printed
    own, theirs = files(here), files(far)
    equal = sum(theirs.get(name) == of for name, of in own.items())
    same = all(
        (folder / "run-far" / t).read_bytes() == (folder / "run-here" / t).read_bytes()
        for t in TABLES
    )
    return {
        "ray_workers": workers,
        "ray_killed": killed,
        "ray_artifacts": len(own),
        "ray_equal": equal if own.keys() == theirs.keys() else 0,
        "ray_tables_equal": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--students", type=int, default=100_000, help="to plan; 0: no plan")
    parser.add_argument("--workers", type=int, default=8, help="of Ray; 0: no run")
    parser.add_argument("--kill", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        if options.students:
            figures |= plan(options.students, folder)
        if options.workers:
            figures |= ray(options.workers, options.kill, folder)
    for key, value in figures.items():
        print(f"{key:<20}{value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
