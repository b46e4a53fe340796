"""Damaged input of an audit: students, training files, settings and trait files. Each is read or refused in one sentence, never a traceback.

    python benchmarks/audit.py --parts fuzz [--fuzz 1000] [--json FILE]

Bytes are changed, values of JSON are replaced, files are removed, emptied, or stand where a folder should. Some of what can be read is
audited to the end.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from sublora.audit.adapter import load_audited
from sublora.audit.data_rows import check_rows
from sublora.audit.report import write_reports
from sublora.audit.run import Job, audit
from sublora.audit.screen import screen_file
from sublora.audit.trained_with import trained_with
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack
from sublora.packs.student_files import save_student
from sublora.traits.trait import load_category, shipped_categories

LIMIT = 60  # seconds for one damaged input
NONE = Context("none")
BYTES = [b"NaN", b"1e999", b"[" * 5000, b"{" * 5000, b'"\\ud800"', b"../../etc",
         b"<script>", b"null", b"-1", b"99999999999", b"\n", b"\xff", b"&a [*a, *a]"]  # fmt: skip
VALUES = [None, True, -1, 0, 10**400, 1e308, float("nan"), "",
          "x" * 9999, "\ud800", "../..", "(a+)+$", [], {}, [[]], {"": None}, ["."]]  # fmt: skip
ROWS = [
    {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "1 2"}]}
    for i in range(9)
]
STATE = {"global_step": 9, "epoch": 1.0, "log_history": [{"learning_rate": 1e-3}]}


def good_inputs(base: Base, top: Path) -> dict[str, Path]:
    """Sound input of each kind, by kind."""
    spec = StudentSpec(rank=2, targets=("q_proj", "v_proj"))
    group = new_stack(base.model, [spec]).groups[0]
    group.flat += 0.02 * torch.randn(group.flat.shape, generator=torch.Generator().manual_seed(1))
    lora, full, files = (top / name for name in ("lora", "full", "files"))
    for folder in (lora, full, files):
        folder.mkdir()
    save_student(group, 0, spec, lora, base.model, "micro")
    (lora / "trainer_state.json").write_text(json.dumps(STATE))
    (lora / "axolotl.yml").write_text("learning_rate: 2e-4\nnum_epochs: 1\nchat_template: chatml\n")
    base.model.save_pretrained(full)
    (files / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (files / "rows.json").write_text(json.dumps(ROWS, indent=1))
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), files / "rows.parquet")
    trees = resources.files("sublora.traits") / "trees.yaml"
    (files / "traits.yaml").write_bytes(trees.read_bytes())
    return {"lora": lora, "full": full, "files": files}


def changed_bytes(whole: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in or doubled."""
    out = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(out), 4096 if rng.random() < 0.8 else len(out)) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] = rng.randrange(256)
        elif kind == 1:
            del out[at : at + rng.randint(1, 200)]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.randint(1, 30))
        elif kind == 3:
            out[at:at] = rng.choice(BYTES)
        elif kind == 4:
            out[at:at] = out[at : at + rng.randint(1, 400)]
        else:
            del out[at:]
    return bytes(out)


def changed_value(found: Any, rng: random.Random) -> Any:
    """A value somewhere inside is replaced, removed, or put under another name."""
    if not isinstance(found, dict | list) or not found or rng.random() < 0.1:
        return rng.choice(VALUES)
    own = dict(found) if isinstance(found, dict) else dict(enumerate(found))
    key = rng.choice(list(own))
    kind = rng.randrange(6)
    if kind == 0:
        del own[key]
    elif kind == 1 and isinstance(found, dict):
        own[rng.choice(["", "x", "module.x", "\ud800"])] = own.pop(key)
    else:
        own[key] = changed_value(own[key], rng)
    return own if isinstance(found, dict) else list(own.values())


def hurt(path: Path, rng: random.Random) -> None:
    kind = rng.random()
    if kind < 0.05:
        path.unlink()
        if rng.random() < 0.7:
            rng.choice([path.mkdir, path.touch, lambda: path.symlink_to(path)])()
    elif kind < 0.5 and path.suffix in (".json", ".jsonl"):
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        at = rng.randrange(len(texts))
        texts[at] = json.dumps(changed_value(json.loads(texts[at]), rng))
        path.write_text("\n".join(texts))
    else:
        path.write_bytes(changed_bytes(path.read_bytes(), rng))


@contextlib.contextmanager
def limit(seconds: int):
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def use(base: Base, path: Path, thorough: bool, out: Path) -> None:
    """What an audit does with this file."""
    categories = shipped_categories()
    if path.name == "traits.yaml":
        load_category(path)
    elif path.stem == "rows":
        check_rows(path, skip_broken=True)
        if thorough:
            screen_file(base, path, categories[1:2], NONE, 0.05)
    else:
        with contextlib.suppress(SubloraError):
            trained_with(path.parent, path)
        found = load_audited(base, path.parent, any_base=thorough)
        if thorough:
            write_reports(audit(base, found, Job([NONE], categories[:1], NONE)), out)


def fuzz(args: argparse.Namespace) -> dict[str, float]:
    """One file of sound input is damaged at a time."""
    base, rng = load_base("micro"), random.Random(args.seed)
    counts = {"fuzzed": 0, "refused": 0, "tracebacks": 0, "hangs": 0, "written_outside": 0}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        good = good_inputs(base, top)
        files = [path for folder in good.values() for path in sorted(folder.iterdir())]
        before = {*top.iterdir(), top / "bad", top / "out"}
        for number in range(args.fuzz):
            chosen = files[number % len(files)]
            shutil.rmtree(top / "bad", ignore_errors=True)
            shutil.copytree(chosen.parent, top / "bad")
            path = top / "bad" / chosen.name
            hurt(path, rng)
            kept = sorted(p.name for p in path.parent.iterdir())
            counts["fuzzed"] += 1
            try:
                with limit(LIMIT):
                    use(base, path, number // len(files) % 10 == 0, top / "out")
            except SubloraError as error:
                counts["refused"] += 1
                counts["tracebacks"] += "\n" in str(error)
            except TimeoutError:
                counts["hangs"] += 1
            except Exception as error:
                counts["tracebacks"] += 1
                print(f"{chosen.name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            new = {*top.iterdir()} - before or sorted(p.name for p in path.parent.iterdir()) != kept
            counts["written_outside"] += bool(new)
    return counts
