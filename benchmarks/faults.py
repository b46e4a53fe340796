"""Kills, races, full disks and flipped bytes: does anything get lost, and is what is left the same as without them?

    python benchmarks/faults.py                       200 kills (a fifth of them on Ray), 50 races, full disks, flipped bytes
    python benchmarks/faults.py --kills 5 --ray-kills 0 --races 4

A small sweep is killed with SIGKILL again and again until it finishes; then its results.csv and the SHA-256 of every file of every
artifact are compared with those of a sweep that nobody disturbed. Children are forked, so that a kill hits the work and not an import.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sublora.models.base import Base
from sublora.packs.check import load_base
from sublora.store import Store, artifact_id, forget_verified

SWEEP = [
    "run", "rank-lr", "--threads", "2", "--set", "data.rows=64", "--set", "data.heldout_rows=16", "--set", "data.seeds=[1,2]",
    "--set", "train.seeds=[1,2]", "--set", "train.lora.ranks=[1,8]", "--set", "train.lora.lrs=[1e-3]", "--set", "train.full.lrs=[1e-3]",
    "--set", "fixed_lr=1e-3", "--set", "measure.samples=3",
]  # fmt: skip
PART_RAY = 1.2  # the same on Ray, where most of a sweep of seconds is the start of the workers
EARLY = 0.1  # share of kills while the model is loaded and nothing is written yet
PAGE = 4  # kills of one sweep in its last stage, which begins anew each time
PART = 0.4  # of an undisturbed sweep's time, from its first write on, within which the other kills fall
TABLES = ("results.csv", "cells.csv", "verdicts.json", "answers.json")


def fork(work: Callable[[], int | None], log: Path) -> int:
    """Run `work` in a forked child, in a process group of its own, with its output in `log`; returns the child's id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def sweep(out: Path, store: Path, *more: str) -> Callable[[], int]:
    """The sweep as the command line runs it, on the base that was loaded before the fork (workers of Ray load their own)."""

    def work() -> int:
        from sublora.cli.entry import run_command
        from sublora.runner import run

        os.environ["SUBLORA_HOME"] = str(store)
        sys.argv = ["sublora", *SWEEP, "--out", str(out), *more]
        run.load_base = lambda *_, **__: loaded()
        return run_command()

    return work


@cache
def loaded() -> Base:
    return load_base("micro")


def end_of(pid: int, seconds: float | None = None) -> int | None:
    """The child's exit code (negative: a signal), or None if it still runs after `seconds`."""
    until = time.monotonic() + (seconds if seconds is not None else 600.0)
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    if seconds is None:
        os.killpg(pid, signal.SIGKILL)
        raise TimeoutError("a sweep of seconds took ten minutes")
    return None


def kill_time(out: Path, longest: float, rng: random.Random, pid: int) -> int | None:
    """Wait for a random moment of a child: rarely before it has written run.json, mostly within `longest` seconds after that.
    Returns its exit code if it ended before."""
    early = rng.random() < EARLY
    moment = rng.uniform(0.0, longest)
    if early:
        return end_of(pid, moment)
    file = out / "run.json"
    before = file.stat().st_mtime_ns if file.exists() else 0
    while not (file.exists() and file.stat().st_mtime_ns != before):
        code = end_of(pid, 0.005)
        if code is not None:
            return code
    return end_of(pid, moment)


def state(out: Path, store: Path) -> dict[str, object]:
    """What has to be the same: the tables, and the hashes of all files of all artifacts, taken from the files themselves."""
    forget_verified()
    found: dict[str, object] = {name: (out / name).read_bytes() for name in TABLES}
    for folder in store.glob("artifacts/*/*"):
        artifact = Store(store).read(
            folder.name
        )  # hashes every file, and compares it with the manifest
        found[artifact.id] = {name: entry.sha256 for name, entry in artifact.files.items()}
    return found


def half_done(store: Path) -> list[str]:
    """Artifacts that are visible and not whole."""
    forget_verified()
    bad = []
    for folder in store.glob("artifacts/*/*"):
        try:
            Store(store).read(folder.name)
        except Exception as error:
            bad.append(str(error))
    return bad


def stage_of(out: Path, store: Path) -> str:
    """The stage that a killed sweep was in, by what its store has."""
    count = {
        kind: len(list(store.glob(f"artifacts/{kind}/*/manifest.json")))
        for kind in ("dataset", "student", "measurement")
    }
    if not (out / "run.json").exists():
        return "start"
    if count["dataset"] < 8:
        return "datasets"
    if count["student"] < 12:
        return "students"
    return "measurements" if count["measurement"] < 14 else "tables and page"


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def ray_workers(pid: int) -> list[int]:
    found = []
    for member in family(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{member}/cmdline").read_text().startswith("ray::work_on"):
                found.append(member)
    return found


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Report:
    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.figures: dict[str, object] = {}

    def add(self, what: str, tried: object, fine: object) -> None:
        self.rows.append((what, str(tried), str(fine)))
        print(f"{what}: {tried} tried, {fine} fine", file=sys.stderr, flush=True)

    def table(self) -> str:
        widths = [
            max(len(row[i]) for row in [*self.rows, ("fault", "tried", "fine")]) for i in range(3)
        ]
        lines = [("fault", "tried", "fine"), *self.rows]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def undisturbed(folder: Path, name: str, *more: str) -> float:
    """A sweep that nobody kills, in folder/NAME and NAME-store; seconds from its first write to its end."""
    pid = fork(sweep(folder / name, folder / f"{name}-store", *more), folder / "log.txt")
    code = None
    while code is None and not (folder / name / "run.json").exists():
        code = end_of(pid, 0.01)
    began = time.monotonic()
    if (code := end_of(pid) if code is None else code) != 0:
        sys.exit(
            f"the undisturbed sweep ended with {code}: {(folder / 'log.txt').read_text()[-2000:]}"
        )
    return time.monotonic() - began


def kills(
    folder: Path,
    reference: dict[str, object],
    wanted: int,
    longest: float,
    rng: random.Random,
    executor: str,
    report: Report,
) -> tuple[int, int]:
    """(kills, kills after which the sweep came to the reference). Sweeps of one store each, until enough kills are counted."""
    total, same, stages, sweeps = 0, 0, Counter(), 0
    more = ("--executor", "ray") if executor == "ray" else ()
    while total < wanted:
        sweeps += 1
        out, store = folder / f"{executor}-{sweeps}", folder / f"{executor}-{sweeps}-store"
        mine, last, deadline = 0, 0, time.monotonic() + 900
        while True:
            pid = fork(sweep(out, store, *more), folder / "log.txt")
            code = None
            if total + mine < wanted and last < PAGE:
                code = kill_time(out, longest, rng, pid)
                if code is None:
                    stage = stage_of(out, store)
                    stages[stage] += 1
                    last += stage == "tables and page"
                    mine += 1
                    victims = ray_workers(pid) if more and rng.random() < 0.5 else []
                    if victims:
                        kill_all([rng.choice(victims)])
                        stages["(a Ray worker)"] += 1
                        code = end_of(pid)  # the run itself goes on
                    else:
                        relatives = family(pid)
                        os.kill(pid, signal.SIGKILL)
                        end_of(pid)
                        if more:
                            time.sleep(
                                1.0
                            )  # Ray's own processes notice and go; whoever stays is a leftover
                            kill_all(relatives[1:])
                        continue
            else:
                code = end_of(pid)
            if code is not None:
                break
            if time.monotonic() > deadline:
                raise TimeoutError("a sweep of seconds does not come to its end")
        fine = code == 0 and state(out, store) == reference
        print(f"{executor}: {total + mine} kills, {dict(stages)}", file=sys.stderr, flush=True)
        if not fine:
            print(
                f"sweep {sweeps} ({executor}) ended with {code} and differs; see {out}, {store}",
                file=sys.stderr,
            )
        total, same = total + mine, same + (mine if fine else 0)
        if fine:
            shutil.rmtree(out)
            shutil.rmtree(store)
    where = ", ".join(f"{stage} {count}" for stage, count in sorted(stages.items()))
    report.add(f"kill -9, {executor} ({sweeps} sweeps: {where})", total, same)
    return total, same


def races(folder: Path, rounds: int, report: Report) -> tuple[int, int]:
    """Two processes make one artifact at once: without any lock in even rounds, as units of a run in odd ones."""
    from sublora.experiments.kinds import open_recipe
    from sublora.models.known import known_base
    from sublora.steps.step import Workshop, perform

    base, clean = loaded(), 0
    for number in range(rounds):
        root = folder / f"race-{number}"
        store = Store(root)
        recipe = open_recipe(
            "rank",
            sets=[
                "data.rows=8",
                "data.heldout_rows=4",
                f"data.seeds=[{number}]",
                "train.seeds=[1]",
            ],
        )
        unit = recipe.plan(known_base(base))[0]
        spec = {"round": number}
        plain = artifact_id("race", spec)

        def one(store=store, unit=unit, spec=spec, plain=plain, number=number) -> int:
            while not (store.root / "go").exists():
                pass
            made: list[str] = []
            if number % 2:
                perform(unit, Workshop(store, lambda _: base, made=made.append))
                store.read(unit.id)
                return 10 + len(made)
            with store.create(plain, spec) as content:
                (content / "a.bin").write_bytes(b"\0" * 100_000)
                (content / "b").mkdir()
                (content / "b" / "c.txt").write_text("c\n")
            store.read(plain)
            return 0

        pids = [fork(one, folder / "log.txt") for _ in range(2)]
        time.sleep(0.02)
        (root / "go").touch()
        codes = sorted(end_of(pid) or 0 for pid in pids)
        there = [p.name for p in root.glob("artifacts/*/*")]
        wanted, name = ([10, 11], unit.id) if number % 2 else ([0, 0], plain)
        left = [*(root / "tmp").iterdir(), *(root / "corrupt").iterdir()]
        fine = codes == wanted and there == [name] and not left and not half_done(root)
        clean += fine
        if fine:
            shutil.rmtree(root)
        else:
            print(f"race {number}: codes {codes}, artifacts {there}, left {left}", file=sys.stderr)
    report.add("two processes race on one artifact", rounds, clean)
    return rounds, clean


def full_disks(
    folder: Path, reference: dict[str, object], rng: random.Random, report: Report
) -> tuple[int, int]:
    """The sweep on a small tmpfs that is full again and again: each time one sentence, nothing half done, and it goes on with room."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True
    ).returncode:
        report.add("full disk (a tmpfs cannot be mounted here)", 0, 0)
        return 0, 0
    tried, fine, size, log = 0, 0, 64, folder / "disk.txt"
    try:
        while True:
            log.write_text("")
            code = end_of(fork(sweep(disk / "run", disk / "store"), log))
            if code == 0:
                break
            tried += 1
            last = log.read_text().strip().splitlines()[-1]
            said = last.startswith("Error: ") and (
                "No room left" in last or "No space left" in last
            )
            bad = half_done(disk / "store") if (disk / "store" / "artifacts").is_dir() else []
            if code == 2 and said and not bad and "Traceback" not in log.read_text():
                fine += 1
            else:
                print(f"full disk at {size} kB: code {code}, {last!r}, {bad}", file=sys.stderr)
            size += rng.randrange(8, 300)
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        same = state(disk / "run", disk / "store") == reference
        report.add(
            f"full disk at {tried} sizes up to {size} kB, then the sweep ends as the reference: {same}",
            tried,
            fine if same else 0,
        )
        return tried, fine if same else 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def flips(
    folder: Path, reference: dict[str, object], rng: random.Random, limit: int, report: Report
) -> tuple[int, int]:
    """One byte of one file of an artifact is flipped: `verify` finds it, and the same command makes the artifact again."""
    out, store = folder / "flip", folder / "flip-store"
    assert end_of(fork(sweep(out, store), folder / "log.txt")) == 0
    chosen = [f for f in sorted(store.glob("artifacts/*/*/*")) if f.is_file() and f.stat().st_size]
    by_name: dict[str, list[Path]] = {}
    for file in chosen:
        by_name.setdefault(f"{file.parent.parent.name}/{file.name}", []).append(file)
    found = redone = 0
    names = sorted(by_name)
    for number in range(limit):
        file = rng.choice(by_name[names[number % len(names)]])
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        found += len(half_done(store)) == 1
        code = end_of(fork(sweep(out, store), folder / "log.txt"))
        fine = code == 0 and state(out, store) == reference
        redone += fine
        if not fine:
            print(f"flipped byte in {file}: code {code}", file=sys.stderr)
    report.add(f"a flipped byte in a file ({len(names)} kinds of files): found", limit, found)
    report.add("a flipped byte in a file: made again, all as the reference", limit, redone)
    return limit, min(found, redone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=160, help="in-process")
    parser.add_argument(
        "--ray-kills", type=int, default=40, help="on Ray, half of them of a worker"
    )
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--flips", type=int, default=24)
    parser.add_argument("--no-full-disk", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if (
        os.geteuid() == 0
        and "SUBLORA_FAULTS_OWN_MOUNTS" not in os.environ
        and shutil.which("unshare")
    ):
        # a name space of its own for mounts, so that a tmpfs goes away with this process however it ends
        os.environ["SUBLORA_FAULTS_OWN_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "-m", sys.executable, *sys.argv])
    # what every child needs is imported once, before it is forked, and with one thread: OpenMP's threads do not survive a fork, and a child
    # that waits for them never ends
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)

    import sublora.runner.run  # noqa: F401

    loaded()

    rng, report, started = random.Random(options.seed), Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        whole = undisturbed(folder, "plain")
        reference = state(folder / "plain", folder / "plain-store")
        figures: dict[str, object] = {}
        local = (
            kills(folder, reference, options.kills, PART * whole, rng, "local", report)
            if options.kills
            else (0, 0)
        )
        figures |= {"kills_local": local[0]}
        figures["races"], figures["races_clean"] = races(folder, options.races, report)
        if not options.no_full_disk:
            figures["full_disks"], figures["full_disks_clean"] = full_disks(
                folder, reference, rng, report
            )
        if options.flips:
            figures["flips"], figures["flips_mended"] = flips(
                folder, reference, rng, options.flips, report
            )
        on_ray = (0, 0)
        if options.ray_kills:
            whole = undisturbed(folder, "plain-ray", "--executor", "ray")
            if state(folder / "plain-ray", folder / "plain-ray-store") != reference:
                sys.exit("an undisturbed sweep on Ray is not the same as in one process")
            on_ray = kills(
                folder, reference, options.ray_kills, PART_RAY * whole, rng, "ray", report
            )
        figures |= {
            "kills_ray": on_ray[0],
            "kills": local[0] + on_ray[0],
            "kills_identical": local[1] + on_ray[1],
            "seconds": round(time.monotonic() - started),
        }
    print(report.table())
    print(
        f"{figures['kills_identical']} of {figures['kills']} kills left nothing behind; {figures['seconds']} s"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    clean = [
        (figures[a], figures[b])
        for a, b in (("kills", "kills_identical"), ("races", "races_clean"))
    ]
    sys.exit(0 if all(a == b for a, b in clean) else 1)


if __name__ == "__main__":
    main()
