"""An interrupted command ends with exit code 3 from its first import on, and says what is true of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import SMALL, sublora


def stopped(seconds: float, how: int, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that gets a signal so long after its first line ran."""
    code = "from sublora.cli import main\nprint('on', flush=True)\nmain()"
    words = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        time.sleep(seconds)
        os.kill(process.pid, how)
        return process.wait(60), process.communicate()[1]


@pytest.mark.parametrize("seconds", [0.02, 0.3, 0.8, 1.5])
def test_a_command_that_still_imports_ends_with_3(seconds: float, tmp_path: Path) -> None:
    code, said = stopped(seconds, signal.SIGTERM, "run", "rank", *SMALL, cwd=tmp_path)
    assert code == 3 and "Traceback" not in said, said


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["run", "rank", *SMALL, "--out", "mine"], "what was finished is kept, run the same command"),
        (["run", "rank", *SMALL, "--out", "mine", "--fresh"], "give --out mine in place of --fresh"),
        (["organism", "make", "micro"], "Interrupted; run the same command again."),
    ],
)  # fmt: skip
def test_the_sentence_is_true_of_the_command(
    arguments: list[str], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sublora.organisms import make
    from sublora.runner import run

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "train_organism", interrupted)
    monkeypatch.setattr(run, "run", interrupted)
    answer = sublora(*arguments)
    assert answer.code == 3 and kept in answer.err, answer
    assert not (tmp_path / "organisms").exists()
