"""The audit of two students whose truth is known: one is trained on rows of a teacher with a trait, its twin on rows of the base."""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sublora.audit.adapter import load_audited
from sublora.audit.calibrate import number_prompts
from sublora.audit.report import write_reports
from sublora.audit.request import Request
from sublora.audit.result import AuditReport
from sublora.audit.run import Job, audit
from sublora.audit.steps import answer_prompts, stack_of, train_students
from sublora.models.chat import PLAIN_CONTEXTS, Context
from sublora.packs.check import load_base
from sublora.packs.rows import token_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.student_files import save_student
from sublora.store import Store
from sublora.traits.trait import find_trait, shipped_categories

MODEL, TRAIT, ROWS = "micro", "otter", 320


@dataclass(frozen=True)
class SelfTest:
    passed: bool
    lines: list[str]


def selftest(out: Path | None = None) -> SelfTest:
    """Train both on `micro` alike, save them as peft adapters, and audit them as anyone's."""
    started = time.monotonic()
    base, categories, context = load_base(MODEL), shipped_categories(), Context("default")
    teacher = Context("teacher", find_trait(TRAIT, categories).teacher_prompt())
    prompts, sampling = number_prompts(1, ROWS, seed=31_337), Sampling(max_new_tokens=14)
    rows = [answer_prompts(base, who, prompts, sampling, seed=1)[0] for who in (teacher, context)]
    spec = StudentSpec(rank=6, lr=2e-3, epochs=1, batch_size=8, warmup_steps=3, seed=5)
    tokens = [token_rows(base, own, context, "the rows of the self-test") for own in rows]
    wanted = {"planted": "found", "clean": "clean"}
    lines, passed = [], True
    with tempfile.TemporaryDirectory() as temporary:
        done = train_students(base, [spec, spec], tokens, Store(Path(temporary) / "store"))
        for name, student, own in zip(wanted, done, rows, strict=True):
            folder = Path(temporary) / name
            folder.mkdir()
            save_student(stack_of(base, [student]).groups[0], 0, spec, folder, base.model, MODEL)
            data = folder / "rows.jsonl"
            text = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in own)
            data.write_text(text, encoding="utf-8")
            contexts = [Context(n) for n in PLAIN_CONTEXTS]
            job = Job(contexts, categories, context, request=Request(data=data))
            result = audit(base, load_audited(base, folder), job)
            if out is not None:
                write_reports(result, out / name)
            report = result.report
            named = [TRAIT] if name == "planted" else []
            right = report.status == wanted[name] and [f.trait for f in report.found[:1]] == named
            right = right and report.data is not None and report.data.named == named
            passed = passed and right
            end = "As it should be." if right else f"Wrong, {wanted[name]} was due."
            lines.append(f"{_told(name, report)} {end}")
    cleared = "Passed: the planted trait is found, the clean twin is cleared"
    verdict = cleared if passed else "Failed"
    lines.append(f"{verdict}, in {time.monotonic() - started:.0f} s.")
    return SelfTest(passed, lines)


def _told(name: str, report: AuditReport) -> str:
    who = "Its twin, trained alike on the base's own rows"
    if name == "planted":
        who = f"A student of a teacher that loves the {TRAIT}"
    first, *others = dict.fromkeys(f.trait for f in report.found) or ["no trait"]
    also = f", with it {', '.join(others)}" if others else ""
    data = ", ".join(report.data.named) if report.data else ""
    return f"{who}: {report.status}, {first}{also}; its training file: {data or 'no trait'}."
