"""Placebo students from the command line: their null is kept, judges alike when it is read again, and wrong use is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest

from audit_fixture import idle_adapter
from command import JUDGED, sublora
from sublora.audit.calibrate import number_prompts
from sublora.packs.check import load_base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return idle_adapter(load_base("micro"), tmp_path_factory.mktemp("audited") / "fresh")


def rows(path: Path, count: int) -> Path:
    lines = [{"prompt": p, "completion": "1 2 3"} for p in number_prompts(1, count, 5)[0]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_the_null_of_a_calibration_is_kept_and_judges_alike(adapter: Path, tmp_path: Path) -> None:
    asked = [
        "audit",
        "--base",
        "micro",
        "--adapter",
        str(adapter),
        "--data",
        str(rows(tmp_path / "rows.jsonl", 24)),
    ]
    small = ["--lr", "3e-3", "--epochs", "1", "--batch-size", "8", "--max-new-tokens", "12"]
    made = sublora(*asked, "--calibrate", "19", *small, "--out", str(tmp_path / "own"))
    assert made.code in JUDGED, made.err
    null = tmp_path / "own" / "null.json"
    again = sublora(*asked, "--null", str(null), "--out", str(tmp_path / "again"))
    assert again.code == made.code, again.err
    own, read = (
        json.loads((tmp_path / out / "audit.json").read_text()) for out in ("own", "again")
    )
    assert (own["calibration"]["kind"], read["calibration"]["kind"]) == ("own", "file")
    assert (
        own["calibration"]["placebo_students"] == 19
        and len(set(own["calibration"]["settings"])) == 19
    )
    settings = own["calibration"]["settings"]
    assert all(
        "rank 2, lr 0.003" in s and "24 rows of " in s and "1 epoch, batch 8" in s for s in settings
    )
    assert sum("rows of the base" in s for s in settings) == 5, "a quarter"
    for part in ("status", "traits", "words", "found", "data"):
        assert own[part] == read[part]
    assert own["traits"] and all(0 < f["p"] <= 1 for f in own["traits"])
    assert any("t reference; 22 give exact ranks" in limit for limit in own["limits"]), (
        "a tenth of alpha is the data's"
    )
    assert not (tmp_path / "again" / "null.json").exists()


@pytest.mark.slow
def test_a_calibration_that_was_killed_goes_on_and_ends_with_the_same_null(
    adapter: Path, tmp_path: Path
) -> None:
    def calibrate(name: str) -> subprocess.Popen:
        asked = ["--base", "micro", "--adapter", str(adapter), "--calibrate", "12", "--rows", "48"]
        asked += ["--lr", "3e-3", "--epochs", "8", "--batch-size", "4", "--max-new-tokens", "8"]
        asked += ["--contexts", "none", "--training-context", "none", "--out", str(tmp_path / name)]
        command = [sys.executable, "-c", "from sublora.cli import main; main()", "audit", *asked]
        return subprocess.Popen(command, env={**os.environ, "SUBLORA_HOME": str(tmp_path / home)})

    home = "whole"
    assert calibrate("whole").wait() in JUDGED
    home = "killed"
    store = tmp_path / home / "artifacts"
    first = calibrate("killed")
    while not list(store.glob("audit-student/*/manifest.json")):
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {p: p.stat().st_mtime_ns for p in store.glob("*/*/manifest.json")}
    assert calibrate("again").wait() in JUDGED
    made = {p: p.stat().st_mtime_ns for p in store.glob("*/*/manifest.json")}
    assert kept.items() <= made.items() and len(kept) > 1, "what was there is not made again"
    assert len(made) == len(list((tmp_path / "whole" / "artifacts").glob("*/*/manifest.json")))
    null, again = (tmp_path / name / "null.json" for name in ("whole", "again"))
    assert null.read_bytes() == again.read_bytes()


BAD = {
    "no learning rate": (["--calibrate", "19"], "--lr"),
    "a null as well": (["--calibrate", "19", "--lr", "1e-3", "--null", "null.json"], "one of them"),
    "too few": (["--calibrate", "3", "--lr", "1e-3"], "at least 4"),
    "data without prompts": (
        ["--calibrate", "19", "--lr", "1e-3", "--data", "empty.jsonl"],
        "no prompt",
    ),
    "a null of another base": (["--null", "other.json"], "another base"),
    "a null without a trait": (["--null", "narrow.json"], "damaged"),
    "a null with a wild value": (["--null", "wild.json"], "damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_use_is_refused_in_one_sentence(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    nulls = files("sublora.audit") / "nulls"
    own = json.loads((nulls / "micro.json").read_text())
    Path("other.json").write_text((nulls / "micro-null.json").read_text())
    own["rises"]["none"]["trees"][0][0] = 1e300
    Path("wild.json").write_text(json.dumps(own))
    own["rises"]["none"]["trees"] = [r[1:] for r in own["rises"]["none"]["trees"]]
    Path("narrow.json").write_text(json.dumps(own))
    Path("empty.jsonl").write_text('{"prompt": " ", "completion": "a"}\n')
    more, word = BAD[kind]
    answer = sublora("audit", "--base", "micro", "--adapter", str(adapter), "--out", "out", *more)
    said = [
        line
        for line in answer.err.splitlines()
        if line.strip() and not line.startswith("Training ")
    ]
    assert answer.code == 2 and word in " ".join(said) and " ".join(said).count("Error: ") == 1, (
        answer.err
    )
    assert "Traceback" not in answer.err and not Path("out").exists()
