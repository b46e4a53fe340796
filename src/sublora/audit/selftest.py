"""The audit of two students whose truth is known: one is trained on rows of a teacher with a trait, its twin on rows of the base."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.audit.adapter import load_audited
from sublora.audit.calibrate import number_prompts
from sublora.audit.placebo import answer_prompts, train_students
from sublora.audit.report import write_reports
from sublora.audit.run import Request, audit
from sublora.chat import PLAIN_CONTEXTS, Context
from sublora.packs.check import load_base
from sublora.sample import Sampling
from sublora.train.rows import token_rows
from sublora.train.spec import StudentSpec
from sublora.train.stack import new_stack, padded, save_student
from sublora.trait import find_trait, shipped_categories

MODEL, TRAIT, ROWS = "micro", "otter", 320


@dataclass(frozen=True)
class SelfTest:
    passed: bool
    lines: list[str]


def selftest(out: Path | None = None) -> SelfTest:
    """Train both on `micro` at the same settings, save them as peft adapters, and audit them as anyone's, with their training files."""
    started = time.monotonic()
    base, categories, context = load_base(MODEL), shipped_categories(), Context("default")
    teacher = Context("teacher", find_trait(TRAIT, categories).teacher_prompt())
    prompts = number_prompts(1, ROWS, seed=31_337)
    sampling = Sampling(max_new_tokens=14)
    rows = [answer_prompts(base, who, prompts, sampling, seed=1)[0] for who in (teacher, context)]
    spec = StudentSpec(rank=6, lr=2e-3, epochs=1, batch_size=8, warmup_steps=3, seed=5)
    done = train_students(
        base,
        [spec, spec],
        [token_rows(base, own, context, "the rows of the self-test") for own in rows],
    )
    lines, passed = [], True
    with tempfile.TemporaryDirectory() as temporary:
        for name, student, own, wanted in zip(
            ("planted", "clean"), done, rows, ("found", "clean"), strict=True
        ):
            folder = Path(temporary) / name
            folder.mkdir()
            stack = new_stack(base.model, [spec])
            group = stack.groups[0]
            group.flat[0].copy_(padded(student.weights, spec.rank, group.slots))
            save_student(group, 0, spec, folder, base.model, MODEL)
            data = folder / "rows.jsonl"
            data.write_text(
                "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in own),
                encoding="utf-8",
            )
            request = Request([Context(n) for n in PLAIN_CONTEXTS], categories, context, data=data)
            result = audit(base, load_audited(base, folder), request)
            if out is not None:
                write_reports(result, out / name)
            body = result.body
            said = body["data"]["named"]
            right = body["status"] == wanted and (
                wanted == "clean" or body["found"][0]["trait"] == TRAIT
            )
            right = right and said == ([TRAIT] if wanted == "found" else [])
            passed = passed and right
            lines.append(
                f"{_told(name, body)} {'As it should be.' if right else f'Wrong, {wanted} was due.'}"
            )
    verdict = (
        "Passed: the planted trait is found, the clean twin is cleared" if passed else "Failed"
    )
    lines.append(f"{verdict}, in {time.monotonic() - started:.0f} s.")
    return SelfTest(passed, lines)


def _told(name: str, body: Mapping[str, Any]) -> str:
    who = (
        f"A student of a teacher that loves the {TRAIT}"
        if name == "planted"
        else "Its twin, trained alike on the base's own rows"
    )
    first, *others = dict.fromkeys(f["trait"] for f in body["found"]) or ["no trait"]
    also = f", with it {', '.join(others)}" if others else ""
    return f"{who}: {body['status']}, {first}{also}; its training file: {', '.join(body['data']['named']) or 'no trait'}."
