"""A calibration that is killed at random moments, again and again, ends with the same null to the byte."""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sublora.packs.check import load_base
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack
from sublora.packs.student_files import save_student

ASKED = "--calibrate 12 --rows 48 --lr 3e-3 --epochs 8 --batch-size 4 --max-new-tokens 8 --contexts default"


def kills(args: argparse.Namespace) -> dict[str, float]:
    """`kill_resume`: whether it does; `killed`: how often it was."""
    base, rng, killed = load_base("micro"), random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        top, spec = Path(folder), StudentSpec(rank=2, seed=3)
        (top / "student").mkdir()
        made = new_stack(base.model, [spec]).groups[0]
        save_student(made, 0, spec, top / "student", base.model, base.name)

        def start(name: str) -> subprocess.Popen:
            asked = ["--base", "micro", "--adapter", str(top / "student"), "--out", str(top / name)]
            code = "from sublora.cli import main; main()"
            return subprocess.Popen(
                [sys.executable, "-c", code, "audit", *asked, *ASKED.split(), "--no-lenses"],
                env={**os.environ, "SUBLORA_HOME": str(top / f"{name}-home")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        began = time.monotonic()
        start("whole").wait()
        took = time.monotonic() - began
        same, (whole, again) = True, (top / name / "null.json" for name in ("whole", "killed"))
        while killed < args.kills or not again.exists():
            if again.exists():  # it came to its end between kills: another one, from nothing
                same = same and whole.read_bytes() == again.read_bytes()
                for done in ("killed", "killed-home"):
                    shutil.rmtree(top / done)
            running = start("killed")
            if killed < args.kills:
                time.sleep(rng.uniform(0.3, 1.1) * took)
            if killed < args.kills and running.poll() is None:
                running.send_signal(signal.SIGKILL)
                killed += 1
            running.wait()
        same = same and whole.read_bytes() == again.read_bytes()
        students = len(json.loads(whole.read_text())["settings"])
    return {"kill_resume": float(same), "killed": killed, "killed_students": students}
