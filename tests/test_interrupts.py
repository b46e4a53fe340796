"""An interrupted command ends with exit code 3 from its first import on, and says what is true of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import SMALL, sublora


def stopped(
    seconds: float, how: int, *arguments: str, cwd: Path, before: str = "", within: float = 60
) -> tuple[int, str]:
    """Exit code and standard error of a command that gets a signal so long after its first line ran, behind the code `before`."""
    code = f"{before}\nfrom sublora.cli import main\nprint('on', flush=True)\nmain()"
    words = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        time.sleep(seconds)
        os.kill(process.pid, how)
        return process.wait(within), process.communicate()[1]


@pytest.mark.parametrize("seconds", [0.02, 0.3, 0.8, 1.5])
def test_a_command_that_still_imports_ends_with_3(seconds: float, tmp_path: Path) -> None:
    code, said = stopped(seconds, signal.SIGTERM, "run", "rank", *SMALL, cwd=tmp_path)
    assert code == 3 and "Traceback" not in said, said


def test_a_command_that_does_not_come_to_answer_ends_with_3(tmp_path: Path) -> None:
    """As one in the middle of a long step, which Python cannot interrupt."""
    deaf = "import ctypes\nfrom sublora.cli import entry\nfrom sublora.cli.interrupts import keeps_what_is_finished as keeps\n"
    deaf += "def work():\n    with keeps('run again'):\n        ctypes.CDLL(None).system(b'exec sleep 30 2>/dev/null >/dev/null')\n"
    deaf += "entry.run_command = work"
    code, said = stopped(1, signal.SIGTERM, cwd=tmp_path, before=deaf, within=20)
    assert code == 3 and said == "Interrupted; what was finished is kept, run again to go on.\n", (
        said
    )


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists(), reason="this system has no pages of 2 MiB")
def test_tensors_of_a_command_lie_in_pages_that_are_freed_fast(tmp_path: Path) -> None:
    """Gigabytes of small pages took seconds to be freed, after the command had said its sentence."""
    work = "import sublora.cli.entry as e\ndef work():\n    import torch\n    held = torch.ones(2**23)\n"
    work += "    flags = [set(x.split()) for x in open('/proc/self/smaps') if x.startswith('VmFlags')]\n"
    work += "    return 0 if any('hg' in f for f in flags) else 1\ne.run_command = work\n"
    command = [sys.executable, "-c", f"{work}from sublora.cli import main\nmain()"]
    plain = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
