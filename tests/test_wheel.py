"""The package as it is installed: a wheel with all that the program reads, and nothing beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sublora"


def python(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    known = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=known, cwd=more.get("HOME"))


@pytest.mark.slow
def test_the_wheel_installs_and_works_from_elsewhere(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    built = python("-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT))
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip(f"hatchling cannot be had here: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("sublora-*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")}
    kept = {f"sublora/{p.relative_to(SOURCE).as_posix()}" for p in SOURCE.rglob("*") if p.is_file()}
    kept = {n for n in kept if "__pycache__" not in n}
    assert {n for n in names if ".dist-info/" not in n} == kept
    done = python("-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    assert done.returncode == 0 and (site / "bin" / "sublora").is_file(), done.stderr
    elsewhere = {"PYTHONPATH": str(site), "HOME": str(tmp_path), "SUBLORA_HOME": str(tmp_path)}
    where = python("-c", "import sublora; print(sublora.__file__)", **elsewhere)
    assert where.stdout.startswith(str(site))
    for words in (["--version"], ["ls", "models"], ["plan", "rank", "--model", "micro"]):
        answer = python("-m", "sublora.cli", *words, **elsewhere)
        assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr
