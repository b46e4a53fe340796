"""The benchmarks of faults and overhead, cut down to a minute."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def bench(name: str, tmp_path: Path, *arguments: str) -> tuple[dict, str]:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments, "--json", str(file)],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


@pytest.mark.slow
def test_nothing_is_lost_in_a_few_kills_races_and_flips(tmp_path: Path) -> None:
    few = ["--kills", "5", "--ray-kills", "0", "--races", "6", "--flips", "2", "--no-full-disk"]
    figures, printed = bench("faults.py", tmp_path, *few)
    assert (figures["kills"], figures["kills_identical"]) == (5, 5)
    assert (figures["races"], figures["races_clean"]) == (6, 6) and (
        figures["flips"],
        figures["flips_mended"],
    ) == (
        2,
        2,
    )
    assert "5 of 5 kills" in printed


@pytest.mark.slow
def test_overhead_is_counted(tmp_path: Path) -> None:
    small = [
        "data.rows=96",
        "data.seeds=[1]",
        "train.seeds=[1]",
        "train.lora.ranks=[1]",
        "train.lora.lrs=[1e-3]",
        "train.full=null",
    ]
    sets = [part for value in small for part in ("--sweep-set", value)]
    figures, _ = bench("overhead.py", tmp_path, "--cells", "20", *sets)
    assert figures["ms_per_cell"] > 0 and 0 < figures["overhead_fraction"] < 1


@pytest.mark.slow
def test_a_large_plan_is_timed(tmp_path: Path) -> None:
    figures, _ = bench("scale.py", tmp_path, "--students", "2000", "--workers", "0")
    assert figures["plan_students"] == 2000 and 0 < figures["plan_gb"] < 2


@pytest.mark.slow
def test_wrong_inputs_are_answered_by_a_clear_sentence(tmp_path: Path) -> None:
    figures, printed = bench("people.py", tmp_path, "--count", "150", "--seed", "7")
    assert figures == {"wrong_inputs": 150, "unclear": 0, "tracebacks": 0}, printed


@pytest.mark.slow
def test_a_run_without_barriers_is_shorter(tmp_path: Path) -> None:
    few = ["--recipes", "rank-lr", "--workers", "32", "--seconds", "2"]
    figures, printed = bench("barriers.py", tmp_path, *few)
    assert figures[0]["none_s"] < figures[0]["barriers_s"] and "rank-lr" in printed
