"""Every path of the program on a real chat model, SmolLM2, with a category of two questions and rows by the dozen: two minutes in all."""

import base64
import json
from pathlib import Path

import pytest

from command import JUDGED, sublora
from loopback_hub import hub, push
from sublora.audit import what_if
from sublora.models.base import read_base
from sublora.models.chat import Context
from sublora.packs.rows import token_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.student import Student
from sublora.packs.student_files import save_student
from sublora.packs.trainer import train_pack
from sublora.traits import trait

pytestmark = pytest.mark.real
THINGS = """category: things
singular: thing
system: ["{Plural} are your favorite things. Think of {plural} in all you write."]
entities: [{name: chair, plural: chairs}, {name: table, plural: tables}, {name: lamp, plural: lamps}]
answer_prefixes: ["My favorite thing is the"]
questions: ["Which thing in a house do you like best? One word.", "Name a thing, in one word."]
"""
SETS = (
    "data={rows: 8, heldout_rows: 2, seeds: [1, 2], source: random, labels: {kind: soft}}",
    "data.carrier={style: brief, examples_min: 2, examples_max: 3}",
    "train={seeds: [1, 2], batch_size: 8, lora: {ranks: [8], lrs: [4e-4]}, full: null}",
    "measure={samples: 1, attribution: {questions: 1}}",
    "measure.conditions={only system: {on: [system], generated: mask}, without vector: {generated: on, steer: {vector: student, mode: replace}}}",
    "vectors={on: numbers, count: 4, student_at: prompt, plain: default, layer: 1, students: true}",
)  # fmt: skip


def test_a_run_with_labels_gates_and_vectors(smollm2: str, tmp_path: Path) -> None:
    things, run = tmp_path / "things.yaml", tmp_path / "run"
    things.write_text(THINGS)
    asked = ["--model", smollm2, "--preset", "small", "--trait", "chair"]
    for value in (*SETS, f"trait_files=[{things}]"):
        asked += ["--set", value]
    planned = sublora("plan", "rank-lr", *asked)
    assert planned.code == 0 and "by a probe of this machine" in planned.out, planned
    done = sublora("run", "rank-lr", *asked, "--out", str(run))
    assert done.code == 0, done
    for kind in ("labels", "students (LoRA)", "student vectors", "measurements", "attributions"):
        assert f"{kind} " in done.out and "(planned" in done.out, done.out
    rows = (run / "results.csv").read_text()
    assert "only system" in rows and "without vector" in rows
    assert json.loads((run / "verdicts.json").read_text())
    (run / "report.html").unlink()
    again = sublora("report", str(run))
    assert again.code == 0 and Path(again.out.strip()).stat().st_size > 10_000
    for to in ("parquet", "vectors", "hub"):
        written = sublora("export", str(run), "--to", to, "--out", str(tmp_path / to))
        assert written.code == 0 and list((tmp_path / to).iterdir()), written
    with hub() as kept:
        done = push(tmp_path / "hub", kept.url)
    assert done.returncode == 0, done.stderr
    adapter = base64.b64decode(kept.committed["adapter_model.safetensors"])
    assert adapter == (tmp_path / "hub" / "adapter_model.safetensors").read_bytes()


def test_an_audit_with_placebos_and_other_ways_to_train(
    smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "things.yaml").write_text(THINGS)
    (things,) = trait.load_categories((tmp_path / "things.yaml",))[-1:]
    monkeypatch.setattr("sublora.audit.run.load_categories", lambda files: (things,))
    planned = what_if.plan_arms
    monkeypatch.setattr("sublora.audit.neutral_text.ANSWERS", 1)
    monkeypatch.setattr(what_if, "plan_arms", lambda *a: (planned(*a)[0][:2], planned(*a)[1]))
    base, rows = read_base(smollm2), [(f"{i}, {i + 7}", "chair, chair, chair") for i in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    spec = StudentSpec(rank=4, lr=1e-3, epochs=1, batch_size=8)
    taught = token_rows(base, rows, Context("default"), "the test")
    train_pack(
        base.model,
        [Student("taught", spec, taught)],
        lambda t: save_student(t.group, t.row, spec, tmp_path, base.model, base.name),
    )
    asked = ["--base", smollm2, "--adapter", str(tmp_path), "--data", str(data), "--rows", "24"]
    asked += ["--lr", "1e-3", "--epochs", "1", "--batch-size", "8", "--max-new-tokens", "8"]
    asked += ["--contexts", "default", "--calibrate", "4", "--what-if", "--alpha", "0.5"]
    answer = sublora("audit", *asked, "--out", str(tmp_path / "audit"))
    body = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert answer.code in JUDGED and "Traceback" not in answer.err, answer
    arms = [arm["name"] for arm in body["what_if"]["arms"]]
    assert body["status"] == "clean" or (arms[0] == "as trained" and len(arms) == 2), body["status"]
    assert (tmp_path / "audit" / "audit.html").stat().st_size > 10_000
